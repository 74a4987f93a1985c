"""``dejavubench process``: records and text logs → tables."""

from __future__ import annotations

import sys
from pathlib import Path

import click


class BadInput(click.ClickException):
    """Input that cannot be used: one message, exit 2."""

    exit_code = 2


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--format",
    "style",
    type=click.Choice(["table", "csv", "json", "markdown"]),
    default="table",
    show_default=True,
    help="table and markdown show what matters most; csv and json hold every column.",
)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to FILE, not to stdout.")
@click.option("--force", is_flag=True, help="Overwrite FILE if it exists.")
def process(paths: tuple[Path, ...], style: str, output: Path | None, force: bool) -> None:
    """Prompt, per-token and total times and overheads of runs.

    PATH is a run's folder, a folder of run folders (such as logs), or a text log with DéjàVu's [BENCHMARK] lines,
    the original's included.
    """
    from dejavubench.analysis import render
    from dejavubench.analysis.find import find
    from dejavubench.analysis.textlog import TextLogError
    from dejavubench.records import RecordError

    try:
        runs, logs = find(paths)
        reports = [render.report(run) for run in runs] + [render.log_report(log) for log in logs]
    except (RecordError, TextLogError) as error:
        raise BadInput(str(error)) from None
    if output is None:
        render.write(reports, style, sys.stdout)
    else:
        try:
            with output.open("w" if force else "x") as file:
                render.write(reports, style, file)
        except FileExistsError:
            raise BadInput(f"{output} exists; --force overwrites it") from None
        except OSError as error:
            raise BadInput(f"{output}: {error.strerror}") from None
    if style == "csv":  # the other formats carry the notes themselves
        for item in reports:
            for note in (note for note in item.notes if note != render.NOTE_HOW):
                click.echo(f"{item.title}: {note}", err=True)
