"""The report of ``dejavubench plan --from``: the answer in words, then tables; or rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import IO, Any

from dejavubench.analysis import markdown
from dejavubench.analysis.number_texts import signed_percent
from dejavubench.analysis.prediction import sentences
from dejavubench.analysis.prediction.request import LEVELS
from dejavubench.analysis.prediction.table import Forecast, ForecastRow
from dejavubench.analysis.tables import text_tables
from dejavubench.analysis.tables.text_tables import Block, TextLine, wrap

_COLUMNS = {
    "mode": "streaming",
    "level": "level",
    "rate": "link_bytes_per_s",
    "input_len": "input_len",
    "none_ms": "none_ms",
    "predicted_ms": "predicted_ms",
    "overhead_pct": "overhead_pct",
    "low_pct": "overhead_low_pct",
    "high_pct": "overhead_high_pct",
    "compute": "compute",
    "arm": "costs_of",
    "is_held": "held_against_measurement",
}
"""Fields of a row, and their csv and json columns."""


def write(forecast: Forecast, style: str, out: IO[str]) -> None:
    """Write a forecast as ``table``, ``markdown``, ``csv`` or ``json``."""
    if style == "csv":
        rows = csv.DictWriter(out, fieldnames=list(_COLUMNS.values()), lineterminator="\n")
        rows.writeheader()
        rows.writerows(_rows([*forecast.over_rates, *forecast.over_lengths]))
    elif style == "json":
        utf = str(getattr(out, "encoding", None) or "utf-8").lower().startswith("utf")
        json.dump(_document(forecast), out, indent=2, ensure_ascii=not utf)
        out.write("\n")
    elif style == "markdown":
        out.write(_markdown(forecast))
    else:
        _print(forecast, out)


def _rows(rows: Sequence[ForecastRow]) -> list[dict[str, Any]]:
    unique = dict.fromkeys(rows)  # the target's own row stands in both tables
    return [
        {_COLUMNS[row_field.name]: asdict(row)[row_field.name] for row_field in fields(row)}
        for row in unique
    ]


def _document(forecast: Forecast) -> dict[str, Any]:
    """Return the forecast as one JSON object; keys are kept for programs that read them."""
    levels = [(row.mode, row.level) for row in forecast.answers]
    return {
        "from": forecast.run.name,
        "link_bytes_per_s": forecast.rate,
        "answers": sentences.answers(forecast),
        "remarks": sentences.remarks(forecast),
        "costs_nothing": {
            "limit_pct": forecast.limit_pct,
            "from_bytes_per_s": {
                f"{mode}@{level}": forecast.costs_nothing_from(mode, level)
                for mode, level in levels
            },
        },
        "layerwise_pays_from_input_len": {
            mode: forecast.layerwise_pays_from(mode) for mode in forecast.modes
        },
        "over_rates": _rows(forecast.over_rates),
        "over_lengths": _rows(forecast.over_lengths),
    }


def _tables(forecast: Forecast) -> list[Block]:
    title = _sizes(forecast)
    return [
        _table(f"overhead % over rates: {title}", "link", forecast.over_rates, _rate_key),
        _table(
            f"overhead % over prompt lengths, at {sentences.rate_text(forecast.rate)}",
            "prompt",
            forecast.over_lengths,
            lambda row: f"{row.input_len:,}",
        ),
    ]


def _rate_key(row: ForecastRow) -> str:
    return sentences.rate_text(row.rate)


def _table(title: str, key: str, rows: Sequence[ForecastRow], key_of: Any) -> Block:
    """Return a table of overheads: a row for each mode and key, a column for each level."""
    levels = [level for level in LEVELS if any(row.level == level for row in rows)]
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        half = (row.high_pct - row.low_pct) / 2
        cells.setdefault((row.mode, key_of(row)), {})[row.level] = (
            f"{signed_percent(row.overhead_pct)} ±{half:.2g}"
            if half < 10
            else f"{signed_percent(row.overhead_pct)} ±{half:,.0f}"
        )
    return Block(
        title,
        ["to", key, *(f"level {level}" for level in levels)],
        2,
        [
            [
                [*labels, *(cells_by_level.get(level, "–") for level in levels)]
                for labels, cells_by_level in cells.items()
            ]
        ],
    )


def _sizes(forecast: Forecast) -> str:
    point = forecast.target.point
    return (
        f"{point.model}, {point.data_type}, batch {point.ubatch_size}, prompt {point.input_len:,}, "
        f"new tokens {point.output_len:,}, tensor parallel {point.tensor_para_size}, pipeline "
        f"depth {point.pipeline_para_size}"
    )


def _print(forecast: Forecast, out: IO[str]) -> None:
    """Print the answer before the tables, and the remarks after them."""
    from dejavubench.cli.console import console

    screen = console(file=out)
    shown = [TextLine("ANSWER", "bold")]
    for sentence in sentences.answers(forecast):
        shown += map(TextLine, wrap(sentence, screen.width, indent="  "))
    for table in _tables(forecast):
        shown += [TextLine(""), *text_tables.lines(table, screen.width)]
    shown.append(TextLine(""))
    for remark in sentences.remarks(forecast):
        shown += map(TextLine, wrap(remark, screen.width, indent="  "))
    text_tables.show(shown, screen)


def _markdown(forecast: Forecast) -> str:
    lines = ["## ANSWER", "", *(f"- {sentence}" for sentence in sentences.answers(forecast))]
    for block in _tables(forecast):
        rows = [cells for group in block.groups for cells in group]
        lines += ["", f"### {block.title}", ""]
        lines += markdown.table(block.columns, rows, block.leading)
    return (
        "\n".join([*lines, "", *(f"- {remark}" for remark in sentences.remarks(forecast))]) + "\n"
    )
