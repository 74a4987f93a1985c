"""``dejavubench process``: records and text logs → tables."""

from __future__ import annotations

from pathlib import Path

import click

from dejavubench.cli.output import BadInput, name_left_out, table_options
from dejavubench.cli.params import PATH
from dejavubench.cli.results import ARMS, write_reports

TABLES = (ARMS, "overhead", "chunks", "extents")
"""The rows of points and arms, and the tables with rows of their own."""


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=PATH)
@table_options("Format: table and markdown show the main columns, csv and json every column.")
@click.option(
    "--table",
    type=click.Choice(TABLES),
    default=TABLES[0],
    show_default=True,
    help="Rows of csv: arms, parts of overheads or of chunks' times, or single extents.",
)
def process(
    paths: tuple[Path, ...], style: str, output: Path | None, force: bool, table: str
) -> None:
    """Show prompt, token and total times of runs, and their overheads.

    PATH is a run's folder, or a folder of run folders, such as logs. It can also be a text log with
    DéjàVu's [BENCHMARK] lines, of the original too. Damaged input is left out and named on stderr;
    the exit status is then 1.
    """
    from dejavubench.analysis.findruns import find
    from dejavubench.analysis.tables import notes
    from dejavubench.analysis.tables.report import RunReport, log_report, report
    from dejavubench.records import RecordError
    from dejavubench.records.textlog import TextLogError

    if table != TABLES[0] and style != "csv":
        raise click.UsageError(
            f"--table {table} chooses the rows of csv. Add --format csv, or drop it."
        )
    wanted = find(paths)
    reports: list[RunReport] = []
    for run in wanted.runs:
        try:
            reports.append(report(run))
        except RecordError as error:
            wanted.bad.append(f"{run.path}: {error}")
    for log in wanted.logs:
        try:
            reports.append(log_report(log))
        except TextLogError as error:
            wanted.bad.append(str(error))
    if not reports:
        raise BadInput("\n".join(wanted.bad))

    write_reports(reports, style, output, force, table)
    if style == "csv":  # the other formats carry the notes themselves
        for item in reports:
            # docs/reference/columns.md says how overheads are paired.
            said = [note for note in item.notes if notes.PAIRED not in note]
            if said:
                click.echo("\n".join([f"{item.title}:", *(f"  {note}" for note in said)]), err=True)
    name_left_out(wanted.bad)
