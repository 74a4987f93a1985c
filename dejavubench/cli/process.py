"""``dejavubench process``: records and text logs → tables."""

from __future__ import annotations

from pathlib import Path

import click

from dejavubench.cli.output import BadInput, table_options, write_to


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@table_options("table and markdown show what matters most; csv and json hold every column.")
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
    write_to(output, force, lambda file: render.write(reports, style, file))
    if style == "csv":  # the other formats carry the notes themselves
        for item in reports:
            for note in (note for note in item.notes if note != render.NOTE_HOW):
                click.echo(f"{item.title}: {note}", err=True)
