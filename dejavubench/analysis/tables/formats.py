"""Reports as a table for people (rich), as markdown, csv or json.

The table and markdown show two narrow blocks or more per run, and the notes. csv and json hold
every column.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING

from dejavubench.analysis import markdown
from dejavubench.analysis.columns import flat
from dejavubench.analysis.tables.report import RunReport, report
from dejavubench.analysis.tables.rows import frame

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType
    from rich.table import Table

    from dejavubench.analysis.tables.textcells import Block
    from dejavubench.records import Run

WARNINGS = ("FAILED", "INTERRUPTED", "INCOMPLETE", "CHANGED", "LOST", "NOISY", "NO MPS")
"""First words of notes that are shown in red."""


def write(reports: Sequence[RunReport], style: str, out: IO[str]) -> None:
    """Write reports as ``csv``, ``json`` or ``markdown``; :func:`show` prints tables."""
    if style == "csv":
        out.write(frame(row for item in reports for row in item.rows).to_csv(index=False))
    elif style == "json":
        documents = [
            {
                "run": item.title,
                "header": item.header,
                "notes": item.notes,
                "rows": [flat(row) for row in item.rows],
            }
            for item in reports
        ]
        json.dump(documents, out, indent=2, allow_nan=False, ensure_ascii=False)
        out.write("\n")
    else:
        out.write("\n".join(as_markdown(item) for item in reports))


def as_markdown(item: RunReport) -> str:
    lines = [f"## {item.title}", ""]
    for block in item.blocks:
        rows = [cells for group in block.groups for cells in group]
        table = markdown.table(block.columns, rows, block.leading)
        lines += [f"**{block.title}**", "", *table, ""]
    return "\n".join([*lines, *(f"- {note}" for note in item.notes)]) + "\n"


def show(reports: Sequence[RunReport], screen: Console) -> None:
    for number, item in enumerate(reports):
        if number:
            screen.print()
        screen.print(renderable(item))


def summary(run: Run) -> RenderableType:
    """Make the table at the end of a run, for a rich console.

    Raises:
        RecordError: a record names a point or an arm that the header does not have.
    """
    return renderable(report(run))


def renderable(item: RunReport) -> RenderableType:
    """Return a report for a rich console; its colours show on a terminal only."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(item.title, style="bold")]
    for block in item.blocks:
        parts += [Text(block.title, style="italic"), WrappedTable(block)]
    parts += [Text(note, style="red" if note.startswith(WARNINGS) else "") for note in item.notes]
    return Group(*parts)


class WrappedTable:
    """A table that continues below itself, whole columns at a time, where it is too wide.

    The leading columns, which name the rows, are repeated. Cells are folded only if one column
    beside the leading ones is wider than the console.
    """

    def __init__(self, block: Block) -> None:
        self._block = block

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        for columns in self._split(options.max_width):
            yield self._table(columns)

    def _split(self, room: int) -> Iterator[list[int]]:
        """Yield the numbers of the columns of each table."""
        from rich.cells import cell_len

        block = self._block
        rows = [block.columns, *(cells for group in block.groups for cells in group)]
        # Two blanks part the columns, and one is at the left edge.
        widths = [max(map(cell_len, cells)) + 2 for cells in zip(*rows, strict=True)]
        leading = list(range(block.leading))
        taken, columns = 1 + sum(widths[: block.leading]), list(leading)
        used = taken
        for number in range(block.leading, len(widths)):
            if used + widths[number] > room and len(columns) > len(leading):
                yield columns
                used, columns = taken, list(leading)
            columns.append(number)
            used += widths[number]
        yield columns

    def _table(self, columns: list[int]) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        block = self._block
        table = Table(
            box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0)
        )
        for number in columns:
            justify: JustifyMethod = "left" if number < block.leading else "right"
            table.add_column(block.columns[number], overflow="fold", justify=justify)
        for number, group in enumerate(block.groups):
            if number and len(group) > 1:
                table.add_section()
            for cells in group:
                style = "red" if "FAILED" in cells else "dim" if "SKIPPED" in cells else None
                table.add_row(*(Text(cells[column]) for column in columns), style=style)
        return table
