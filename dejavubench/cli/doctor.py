"""``dejavubench doctor``: what would spoil a measurement here, and what to do."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dejavubench import values
from dejavubench.cli.errors import end_all_ranks, share_status
from dejavubench.cli.output import write_to
from dejavubench.cli.params import PATH, ParsedType
from dejavubench.errors import ExitStatus

if TYPE_CHECKING:
    from dejavubench.doctor.facts.job import Job

DEFAULT_PORT = 7601
"""The port of ``dejavubench sink``, unless it is told another one."""

LARGEST_PORT = 65535
"""The largest port of TCP."""


@click.command()
@click.option(
    "--dir",
    "folders",
    metavar="DIR",
    type=PATH,
    multiple=True,
    help="Folder that a run would write to; may be repeated. [default: the current folder]",
)
@click.option(
    "--port",
    metavar="PORT",
    type=ParsedType("port", partial(values.parse_count, most=LARGEST_PORT)),
    default=DEFAULT_PORT,
    show_default=True,
    help="TCP port that a sink would listen on.",
)
@click.option(
    "--format",
    "style",
    type=click.Choice(["table", "json"]),
    help="Format: json holds all facts too. [default: json if FILE ends in .json, else table]",
)
@click.option("-o", "--output", metavar="FILE", type=PATH, help="Write to FILE instead of stdout.")
@click.option("--force", is_flag=True, help="Overwrite FILE if it exists.")
def doctor(
    folders: tuple[Path, ...], port: int, style: str | None, output: Path | None, force: bool
) -> None:
    """Check this machine, and the links between ranks, before you measure.

    Start it as you will start the run: alone, or under mpirun with as many ranks on the same hosts.
    It takes about 10 seconds, and writes to each DIR for 2 seconds.

    WARN disturbs numbers, or leaves something unused. With BAD, runs do not work or would not
    measure what they say. Each such row says what to do. The exit status is 1 if something is BAD.
    """
    from dejavubench.doctor.bounded_collectives import MissingRanksError
    from dejavubench.doctor.examination import ExaminedSubjects, examine

    chosen_folders = folders or (Path(),)
    try:
        job = examine(ExaminedSubjects(chosen_folders, port))
    except MissingRanksError as error:
        click.echo(f"dejavubench: doctor: {error}", err=True)
        end_all_ranks(ExitStatus.FAILED)
    status: int = ExitStatus.OK
    if job is not None:
        try:
            status = _report(job, style, output, force)
        except click.ClickException as error:  # the other ranks wait for the status
            error.show()
            status = error.exit_code
    if job is not None and (job.problem or any(link.problem for link in job.links)):
        # Some rank or message is stuck, so MPI could not end by itself.
        end_all_ranks(ExitStatus.FAILED)
    sys.exit(share_status(status))


def _report(job: Job, style: str | None, output: Path | None, force: bool) -> int:
    """Print or write the report; return the exit status."""
    from dejavubench.cli.console import make_console
    from dejavubench.doctor.checks.registry import find_rows
    from dejavubench.doctor.findings import Status, find_worst_status
    from dejavubench.doctor.report import as_json, format_status_counts, show

    rows = find_rows(job)
    if style is None:
        style = "json" if output is not None and output.suffix.lower() == ".json" else "table"
    if style == "json":
        write_to(output, force, lambda file: file.write(as_json(job, rows) + "\n"))
    else:
        write_to(output, force, lambda file: show(job, rows, make_console(file=file)))
    if output is not None:
        click.echo(format_status_counts(rows), err=True)
    return ExitStatus.FAILED if find_worst_status(rows) is Status.BAD else ExitStatus.OK
