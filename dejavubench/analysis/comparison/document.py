"""A comparison as a table for people, as markdown for a pull request, as csv or json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

from dejavubench.analysis import markdown
from dejavubench.analysis.comparison import change_result, change_sentences
from dejavubench.analysis.comparison.build import Comparison
from dejavubench.analysis.comparison.change_rows import ComparisonRow
from dejavubench.analysis.comparison.gate import GateVerdict
from dejavubench.analysis.comparison.json_output import write_json
from dejavubench.analysis.comparison.pairing import Pairing
from dejavubench.analysis.number_texts import (
    format_ms,
    format_percent_with_interval,
    format_signed_percent,
)
from dejavubench.analysis.reports.formats import STYLES
from dejavubench.analysis.tables import text_tables
from dejavubench.analysis.tables.process_columns import make_frame
from dejavubench.analysis.tables.text_tables import Block, TextLine, wrap

if TYPE_CHECKING:
    from rich.console import Console


def format_result_line(comparison: Comparison) -> str:
    """Return the result and why it may not count, for stderr."""
    return "\n".join([change_result.describe_result(comparison), *comparison.complaints])


def make_comparison_block(comparison: Comparison, judged_format: str = "{}") -> Block:
    """Return the table; points are named where there are several.

    Args:
        judged_format: format of the heading of the change that is judged.
    """
    rows = comparison.rows
    is_sweep = change_result.has_several_points(comparison)
    with_overheads = any(row.overhead.overhead_change_pct is not None for row in rows)
    # Paired round by round, both changes are the same number.
    with_changes = with_overheads and comparison.pairing is not Pairing.ROUNDS
    by_overhead = any(row.gate.judged_by == "overhead" for row in rows)
    time_change, overhead_change = "time change %", "overhead change %"
    headings = [
        *(["point"] if is_sweep else []),
        "arm",
        "A ms",
        "B ms",
        time_change if by_overhead else judged_format.format(time_change),
        *(["A overhead %", "B overhead %"] if with_overheads else []),
        *(
            [judged_format.format(overhead_change) if by_overhead else overhead_change]
            * with_changes
        ),
        *([_make_verdict_heading(by_overhead, with_changes)] if comparison.is_gated else []),
    ]
    cells = [
        [
            *([row.point_b] if is_sweep else []),
            row.arm,
            format_ms(row.time.a_ms),
            format_ms(row.time.b_ms),
            _format_interval(
                row.time.time_change_pct,
                row.time.time_change_low_pct,
                row.time.time_change_high_pct,
            ),
            *(_format_overheads(row) if with_overheads else []),
            *([_format_overhead_change(row)] if with_changes else []),
            *([row.gate.verdict or "–"] if comparison.is_gated else []),
        ]
        for row in rows
    ]
    return Block("change from A to B", headings, 2 if is_sweep else 1, [cells])


def _make_verdict_heading(by_overhead: bool, with_changes: bool) -> str:
    """Return the heading of verdicts, with the change that they judge.

    Args:
        with_changes: whether overheads changed; without baselines nothing can be judged.
    """
    if not by_overhead:
        return "verdict on time"
    return "verdict on overhead" if with_changes else "verdict"


def _format_overheads(row: ComparisonRow) -> list[str]:
    change = row.overhead
    return [
        "–" if value is None else format_signed_percent(value)
        for value in (change.a_overhead_pct, change.b_overhead_pct)
    ]


def _format_overhead_change(row: ComparisonRow) -> str:
    change = row.overhead
    return _format_interval(
        change.overhead_change_pct,
        change.overhead_change_low_pct,
        change.overhead_change_high_pct,
    )


def _format_interval(value: float | None, low: float | None, high: float | None) -> str:
    return "–" if value is None else format_percent_with_interval(value, low, high)


def make_lines(comparison: Comparison, width: int) -> list[TextLine]:
    """Return the comparison as lines of at most ``width`` columns, unless a word is longer."""
    style = "red" if comparison.verdict is GateVerdict.REGRESSION and comparison.is_gated else ""
    text_lines = [
        TextLine(text, "bold") for text in wrap(change_sentences.make_title(comparison), width)
    ]
    text_lines += [
        TextLine(text, style)
        for text in wrap(change_result.describe_result(comparison), width, "  ")
    ]
    for operand in (comparison.a, comparison.b):
        text_lines += map(TextLine, wrap(change_sentences.describe_operand(operand), width, "  "))
    text_lines += [*text_tables.make_lines(make_comparison_block(comparison), width), TextLine("")]
    if comparison.differences:
        text_lines += [TextLine("A and B also differ in", "italic")]
        for difference in comparison.differences:
            text_lines += map(TextLine, wrap(f"  {difference}", width, "    "))
    for note in change_sentences.make_notes(comparison):
        texts = wrap(note.text, width, "  ")
        text_lines += [TextLine(text, STYLES[note.severity]) for text in texts]
    return text_lines


def show(comparison: Comparison, screen: Console) -> None:
    """Print a comparison on a rich console, within its width."""
    text_tables.show(make_lines(comparison, screen.width), screen)


def write(comparison: Comparison, style: str, out: IO[str]) -> None:
    """Write a comparison as ``csv``, ``json`` or ``markdown``; :func:`show` prints tables."""
    if style == "csv":
        out.write(make_frame(comparison.rows, ComparisonRow).to_csv(index=False))
    elif style == "json":
        write_json(comparison, out)
    else:
        out.write(_to_markdown(comparison))


def _to_markdown(comparison: Comparison) -> str:
    """Return the result, the table with the judged change in bold, warnings, and folded facts."""
    block = make_comparison_block(comparison, judged_format="**{}**")
    rows = [cells for group in block.groups for cells in group]
    notes = change_sentences.make_notes(comparison)
    facts = [note.text for note in notes if note.severity == "info"]
    texts = [
        f"## {change_sentences.make_title(comparison)}",
        "",
        f"**{change_result.describe_result(comparison)}**",
        "",
        *markdown.make_table(block.columns, rows, block.leading_column_count),
        "",
        *(
            f"- {change_sentences.describe_operand(operand)}"
            for operand in (comparison.a, comparison.b)
        ),
        *(f"- {note.text}" for note in notes if note.severity != "info"),
        "",
        *fold_lines("How to read this", [f"- {text}" for text in facts]),
    ]
    if comparison.differences:
        cells = [
            [difference.name, difference.a, difference.b] for difference in comparison.differences
        ]
        table = markdown.make_table(("", "A", "B"), cells, left_column_count=3)
        texts += ["", *fold_lines("What else differs between A and B", table)]
    return "\n".join(texts) + "\n"


def fold_lines(summary: str, texts: Sequence[str]) -> list[str]:
    """Return lines that a reader of a pull request can unfold."""
    # Markdown within the element needs empty lines around it.
    return ["<details>", f"<summary>{summary}</summary>", "", *texts, "", "</details>"]
