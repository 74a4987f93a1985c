"""A comparison as a table for people, as markdown for a pull request, as csv or json."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import IO, TYPE_CHECKING

from dejavubench.analysis import markdown
from dejavubench.analysis.columns import values_by_column
from dejavubench.analysis.comparison import change_sentences
from dejavubench.analysis.comparison.build import Comparison
from dejavubench.analysis.comparison.change_rows import ComparisonRow
from dejavubench.analysis.comparison.gate import STATUSES, GateVerdict
from dejavubench.analysis.number_texts import ms, signed_percent, with_interval
from dejavubench.analysis.tables import text_tables
from dejavubench.analysis.tables.formats import STYLES
from dejavubench.analysis.tables.rows import frame
from dejavubench.analysis.tables.text_tables import Block, TextLine, wrap
from dejavubench.errors import ExitStatus

if TYPE_CHECKING:
    from rich.console import Console

COMPARISON_SCHEMA = 1
"""Version of the json, which rises when a key changes its meaning or goes away."""


def status_of(comparison: Comparison) -> ExitStatus:
    """Return the exit status; a failed job or arm wins over every verdict."""
    if comparison.complaints:
        return ExitStatus.FAILED
    return STATUSES[comparison.verdict] if comparison.gated else ExitStatus.OK


def result_line(comparison: Comparison) -> str:
    """Return the result and why it may not count, for stderr."""
    return "\n".join([change_sentences.result(comparison), *comparison.complaints])


def block_of(comparison: Comparison) -> Block:
    """Return the table; points are named where there are several."""
    rows = comparison.rows
    several = change_sentences.several_points(comparison)
    with_overheads = any(row.overhead.overhead_change_pct is not None for row in rows)
    headings = [
        *(["point"] if several else []),
        "arm",
        "A ms",
        "B ms",
        "time change % [ ]",
        *(["A overhead %", "B overhead %", "overhead change % [ ]"] if with_overheads else []),
        *(["verdict"] if comparison.gated else []),
    ]
    cells = [
        [
            *([row.point_b] if several else []),
            row.arm,
            ms(row.time.a_ms),
            ms(row.time.b_ms),
            _interval(
                row.time.time_change_pct,
                row.time.time_change_low_pct,
                row.time.time_change_high_pct,
            ),
            *(_overheads(row) if with_overheads else []),
            *([row.gate.verdict or "–"] if comparison.gated else []),
        ]
        for row in rows
    ]
    return Block("change from A to B", headings, 2 if several else 1, [cells])


def _overheads(row: ComparisonRow) -> list[str]:
    change = row.overhead
    return [
        *(
            "–" if value is None else signed_percent(value)
            for value in (change.a_overhead_pct, change.b_overhead_pct)
        ),
        _interval(
            change.overhead_change_pct,
            change.overhead_change_low_pct,
            change.overhead_change_high_pct,
        ),
    ]


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    return "–" if value is None else with_interval(value, low, high)


def lines(comparison: Comparison, width: int) -> list[TextLine]:
    """Return the comparison as lines of at most ``width`` columns, unless a word is longer."""
    style = "red" if comparison.verdict is GateVerdict.REGRESSION and comparison.gated else ""
    shown = [TextLine(text, "bold") for text in wrap(change_sentences.title(comparison), width)]
    shown += [
        TextLine(text, style) for text in wrap(change_sentences.result(comparison), width, "  ")
    ]
    for operand in (comparison.a, comparison.b):
        shown += map(TextLine, wrap(change_sentences.operand_line(operand), width, "  "))
    shown += [*text_tables.lines(block_of(comparison), width), TextLine("")]
    if comparison.differences:
        shown += [TextLine("A and B also differ in", "italic")]
        for each in comparison.differences:
            shown += map(TextLine, wrap(f"  {each}", width, "    "))
    for note in change_sentences.notes(comparison):
        texts = wrap(note.text, width, "  ")
        shown += [TextLine(text, STYLES[note.severity]) for text in texts]
    return shown


def show(comparison: Comparison, screen: Console) -> None:
    """Print a comparison on a rich console, within its width."""
    text_tables.show(lines(comparison, screen.width), screen)


def write(comparison: Comparison, style: str, out: IO[str]) -> None:
    """Write a comparison as ``csv``, ``json`` or ``markdown``; :func:`show` prints tables."""
    if style == "csv":
        out.write(frame(comparison.rows, ComparisonRow).to_csv(index=False))
    elif style == "json":
        json.dump(_document(comparison), out, indent=2, allow_nan=False, ensure_ascii=False)
        out.write("\n")
    else:
        out.write(_markdown(comparison))


def _document(comparison: Comparison) -> dict[str, object]:
    what = comparison.compared
    return {
        "schema_version": COMPARISON_SCHEMA,
        "a": [str(run.path) for run in comparison.a.runs],
        "b": [str(run.path) for run in comparison.b.runs],
        "metric": comparison.metric,
        "pairing": comparison.pairing,
        "compared": None if what is None else vars(what),
        "differences": [vars(each) for each in comparison.differences],
        "only": comparison.only,
        "limit_pct": 100 * comparison.limit if comparison.gated else None,
        "verdict": comparison.verdict if comparison.gated else None,
        "exit_status": int(status_of(comparison)),
        "result": change_sentences.result(comparison),
        "notes": [asdict(note) for note in change_sentences.notes(comparison)],
        "rows": [values_by_column(row) for row in comparison.rows],
    }


def _markdown(comparison: Comparison) -> str:
    block = block_of(comparison)
    rows = [cells for group in block.groups for cells in group]
    texts = [
        f"## {change_sentences.title(comparison)}",
        "",
        f"**{change_sentences.result(comparison)}**",
        "",
        *markdown.table(block.columns, rows, block.leading),
        "",
        *(
            f"- {change_sentences.operand_line(operand)}"
            for operand in (comparison.a, comparison.b)
        ),
        *(f"- {note.text}" for note in change_sentences.notes(comparison)),
    ]
    if comparison.differences:
        differing = [[each.name, each.a, each.b] for each in comparison.differences]
        texts += ["", "A and B also differ in:", ""]
        texts += markdown.table(("", "A", "B"), differing, left=3)
    return "\n".join(texts) + "\n"
