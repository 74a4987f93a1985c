"""``dejavubench process``: records and text logs → tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dejavubench.cli.output import add_table_options, name_left_out
from dejavubench.cli.params import PATH
from dejavubench.cli.read_reports import parts_of, read_reports
from dejavubench.cli.results import ARM_ROWS, write_reports

if TYPE_CHECKING:
    from dejavubench.analysis.reports.report import RunReport


class TableName(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """A table of csv: ``arms``, or a part of the report with rows of its own.

    The names come from the registry of parts. It is loaded when a name is read, not for ``--help``,
    which would become slow.
    """

    name = "name"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return a table's name that is known; analysis is imported only if it is not ``arms``."""
        if value == ARM_ROWS:
            return value
        from dejavubench.analysis.reports.report_order import ROW_CLASSES

        table_names = (ARM_ROWS, *ROW_CLASSES)
        if value not in table_names:
            self.fail(f"{value!r} is not one of {', '.join(table_names)}.", param, ctx)
        return value


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=PATH)
@add_table_options("Format: table shows the main tables, markdown all, csv and json every column.")
@click.option(
    "--long",
    "is_long",
    is_flag=True,
    help="Show all tables: also streaming, the model, parts of overheads and of chunks' times, "
    "single tokens, and notes on the machine.",
)
@click.option(
    "--table",
    type=TableName(),
    default=ARM_ROWS,
    show_default=True,
    help="Rows of csv: arms, overhead (its parts), chunks (parts of their times), extents (single "
    "ones), or another part of the report that has rows.",
)
@click.option(
    "--against",
    metavar="shipped|PATH",
    help="Say where each stream falls among measured machines: those of this package, of the runs "
    "in a folder, or of a table made by scripts/make_shipped.py.",
)
def process(
    paths: tuple[Path, ...],
    style: str,
    output: Path | None,
    force: bool,
    is_long: bool,
    table: str,
    against: str | None,
) -> None:
    """Show prompt, token and total times of runs, and their overheads.

    PATH is a run's folder, or a folder of run folders, such as logs. It can also be a text log with
    DéjàVu's [BENCHMARK] lines, of the original too. Damaged input is left out and named on stderr;
    the exit status is then 1.
    """
    if table != ARM_ROWS and style != "csv":
        raise click.UsageError(
            f"--table {table} chooses the rows of csv. Add --format csv, or drop it."
        )
    read_result = read_reports(paths, parts_of(against))
    reports = [report for report, _ in read_result.shown]
    shown_reports = (
        [report.without_long_tables() for report in reports]
        if style == "table" and not is_long
        else reports
    )
    write_reports(shown_reports, style, output, force, table)
    if style == "csv":  # the other formats carry the notes themselves
        _echo_notes(reports)
    name_left_out([*read_result.bad, *read_result.damage])


def _echo_notes(reports: Sequence[RunReport]) -> None:
    """Print the notes on stderr, because csv has no place for them."""
    from dejavubench.analysis.tables.arms_part import HOW_TIMES_ARE_MADE
    from dejavubench.records.notes import DAMAGED

    for report in reports:
        # docs/reference/columns.md says how the columns of csv are made. Damaged files are named
        # on stderr in every format.
        kinds_elsewhere = (HOW_TIMES_ARE_MADE.name, DAMAGED.name)
        notes = [note for note in report.notes if note.kind not in kinds_elsewhere]
        if notes:
            lines = [f"{report.title}:", *(f"  {note.text}" for note in notes)]
            click.echo("\n".join(lines), err=True)
