"""The report of ``dejavubench plan --from``: the answer in words, then tables; or rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from typing import IO, Any

from dejavubench.analysis import markdown
from dejavubench.analysis.prediction import sentences
from dejavubench.analysis.prediction.request import PREDICTED_LEVELS
from dejavubench.analysis.prediction.table import FREE_PCT, Forecast, ForecastRow
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
    "busy_arms": "contention_of_busy_link",
}
"""Fields of a row, and their csv and json columns."""


def write(forecast: Forecast, style: str, file: IO[str]) -> None:
    """Write a forecast as ``table``, ``markdown``, ``csv`` or ``json``."""
    if style == "csv":
        rows = csv.DictWriter(file, fieldnames=list(_COLUMNS.values()), lineterminator="\n")
        rows.writeheader()
        rows.writerows(_make_rows([*forecast.over_rates, *forecast.over_lengths]))
    elif style == "json":
        is_utf = str(getattr(file, "encoding", None) or "utf-8").lower().startswith("utf")
        json.dump(_make_document(forecast), file, indent=2, ensure_ascii=not is_utf)
        file.write("\n")
    elif style == "markdown":
        file.write(_format_markdown(forecast))
    else:
        _print(forecast, file)


def _make_rows(rows: Sequence[ForecastRow]) -> list[dict[str, Any]]:
    unique_rows = dict.fromkeys(rows)  # the target's own row stands in both tables
    return [
        {
            column: " and ".join(row.busy_arms) if field == "busy_arms" else getattr(row, field)
            for field, column in _COLUMNS.items()
        }
        for row in unique_rows
    ]


def _make_document(forecast: Forecast) -> dict[str, Any]:
    """Return a forecast as JSON holds it."""
    levels = [(row.mode, row.level) for row in forecast.answers]
    return {
        "from": forecast.run.name,
        "link_bytes_per_s": forecast.rate,
        "answers": sentences.write_answers(forecast),
        "remarks": sentences.write_remarks(forecast),
        "costs_nothing": {
            "limit_pct": FREE_PCT,
            "from_bytes_per_s": {
                f"{mode}@{level}": forecast.costs_nothing_from(mode, level)
                for mode, level in levels
            },
        },
        "layerwise_pays_from_input_len": {
            mode: forecast.layerwise_pays_from(mode) for mode in forecast.modes
        },
        "over_rates": _make_rows(forecast.over_rates),
        "over_lengths": _make_rows(forecast.over_lengths),
        "other_measured_points": [
            {
                "model": target.point.model,
                "ubatch_size": target.point.ubatch_size,
                "input_len": target.point.input_len,
                "output_len": target.point.output_len,
                "rows": _make_rows(forecast.rows_of(target)),
            }
            for target in forecast.other_targets
        ],
    }


def _make_tables(forecast: Forecast) -> list[Block]:
    title = _describe_sizes(forecast)
    return [
        _make_table(
            f"overhead % over rates: {title}", "link", forecast.over_rates, _format_rate_key
        ),
        _make_table(
            f"overhead % over prompt lengths, at {sentences.format_bytes_per_s(forecast.rate)}",
            "prompt",
            forecast.over_lengths,
            lambda row: f"{row.input_len:,}",
        ),
    ]


def _format_rate_key(row: ForecastRow) -> str:
    return sentences.format_bytes_per_s(row.rate)


def _make_table(title: str, key: str, rows: Sequence[ForecastRow], key_of: Any) -> Block:
    # The highest level first, as in the answer: a narrow terminal shows the last ones further down.
    levels = [
        level for level in reversed(PREDICTED_LEVELS) if any(row.level == level for row in rows)
    ]
    by_key: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        by_key.setdefault((row.mode, key_of(row)), {})[row.level] = sentences.format_overhead(row)
    cells = [
        [*key_texts, *(texts.get(level, "–") for level in levels)]
        for key_texts, texts in by_key.items()
    ]
    return Block(title, ["to", key, *(f"level {level}" for level in levels)], 2, [cells])


def _describe_sizes(forecast: Forecast) -> str:
    point = forecast.target.point
    return (
        f"{point.model}, {point.data_type}, batch {point.ubatch_size}, prompt {point.input_len:,}, "
        f"new tokens {point.output_len:,}, tensor parallel {point.tensor_para_size}, pipeline "
        f"depth {point.pipeline_para_size}"
    )


def _print(forecast: Forecast, file: IO[str]) -> None:
    """Print the answer, the tables and the remarks."""
    from dejavubench.cli.console import make_console

    screen = make_console(file=file)
    text_lines = [TextLine("ANSWER", "bold")]
    for sentence in sentences.write_answers(forecast):
        text_lines += map(TextLine, wrap(sentence, screen.width, indent="  "))
    for table in _make_tables(forecast):
        text_lines += [TextLine(""), *text_tables.make_lines(table, screen.width)]
    text_lines.append(TextLine(""))
    for remark in sentences.write_remarks(forecast):
        text_lines += map(TextLine, wrap(remark, screen.width, indent="  "))
    text_tables.show(text_lines, screen)


def _format_markdown(forecast: Forecast) -> str:
    lines = ["## ANSWER", "", *(f"- {sentence}" for sentence in sentences.write_answers(forecast))]
    for block in _make_tables(forecast):
        rows = [cells for group in block.groups for cells in group]
        lines += ["", f"### {block.title}", ""]
        lines += markdown.make_table(block.columns, rows, block.leading_column_count)
    return (
        "\n".join([*lines, "", *(f"- {remark}" for remark in sentences.write_remarks(forecast))])
        + "\n"
    )
