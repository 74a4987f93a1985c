"""The report of ``dejavubench plan``: tables for people, and the rows of programs in a file.

Tables show intervals inclusive: ``0–19``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from dejavubench.analysis import markdown
from dejavubench.analysis.number_texts import format_count, format_ms, format_nbytes
from dejavubench.analysis.tables import text_tables
from dejavubench.analysis.tables.text_tables import Block, TextLine, wrap
from dejavubench.cli.plan_rows import PHASES, PlanRow, PlanRows
from dejavubench.dejavulib.exchange import Setup
from dejavubench.dejavulib.kv_cache import Span
from dejavubench.units import format_count_of

PLACE_HEADING = "(stage,\ntensor)"
"""End of a heading over workers: their stage and tensor rank."""


@dataclass(frozen=True)
class PlanReport:
    """The heading, tables and summary of a plan."""

    rows: PlanRows

    @property
    def heading(self) -> list[str]:
        """Lines above the tables: model, setups, flush interval and link."""
        traffic = self.rows.traffic
        link = self.rows.link
        point = traffic.point
        spec = point.spec
        lines = [
            f"{spec.name}, {point.data_type}, {point.kv_layout}: {spec.layer_num} layers × "
            f"{spec.kv_heads} KV heads of {spec.size_per_head}; "
            f"{format_count_of(traffic.request_count, 'request')} of "
            f"{format_count_of(point.input_len, 'prompt token')} and "
            f"{format_count_of(point.output_len, 'new token')}",
            f"sources: {_describe_setup(traffic.source)}",
            f"sinks: {_describe_setup(traffic.sink)}",
        ]
        if point.flush_interval > 1:
            sent_volume = traffic.sent[traffic.busiest_source]
            lines.append(
                f"flush: every {point.flush_interval} tokens; the busiest source then sends "
                f"{format_nbytes(sent_volume.flush_nbytes)} in "
                f"{format_count(sent_volume.flush_extent_count)} extents"
            )
        if link is not None:
            lines.append(
                f"link: {link.rate / 1e9:.4g} GB/s in each direction of every worker, "
                f"latency {link.latency_s * 1e6:.4g} µs; times are lower bounds"
            )
        return lines

    @property
    def summary(self) -> str:
        """The line below the tables: totals, busiest workers, and lower bounds with a link."""
        traffic = self.rows.traffic
        total = traffic.total
        least_times_s = self.rows.least_times_s
        sender, receiver = traffic.busiest_source, traffic.busiest_sink
        text = (
            f"total: {format_nbytes(total.total_nbytes)} in "
            f"{format_count_of(total.region_pair_count, 'region pair')}; "
            f"busiest: source {sender} sends {format_nbytes(traffic.sent[sender].total_nbytes)}, "
            f"sink {receiver} receives {format_nbytes(traffic.received[receiver].total_nbytes)}"
        )
        if least_times_s is None:
            return text
        prompt, token, request = (format_ms(1e3 * seconds) for seconds in least_times_s)
        return f"{text}; lower bounds: prompt {prompt} ms, token {token} ms, all {request} ms"

    def tables(self) -> list[Block]:
        """Return the table of pairs, then that of workers."""
        place_headings = [f"source\n{PLACE_HEADING}", f"sink\n{PLACE_HEADING}"]
        shares = ["layers", "heads", "requests", "microbatches", "region\npairs"]
        pairs = [
            [_format_place(row, "source_"), _format_place(row, "sink_"), *_make_share_cells(row)]
            for row in self.rows.pairs
        ]
        worker = f"worker\n{PLACE_HEADING}"
        counts = ["peers", "region\npairs"]
        workers = [
            [
                f"{row['role']} {_format_place(row)}",
                str(row["peers"]),
                format_count(row["transfers"]),
            ]
            for row in self.rows.workers
        ]
        return [
            self._make_table([*place_headings, *shares], 2, pairs, self.rows.pairs),
            self._make_table([worker, *counts], 1, workers, self.rows.workers),
        ]

    def _make_table(
        self,
        headings: list[str],
        name_column_count: int,
        cells: list[list[str]],
        rows: Sequence[PlanRow],
    ) -> Block:
        """Put amounts and, with a link, least times beside what names a row."""
        amounts = len(headings), len(headings) + len(_AMOUNTS)
        headings = [*headings, *_AMOUNTS, *(_TIMES if self.rows.link else ())]
        return Block(
            "", headings, name_column_count, [self._make_cells(cells, rows)], breaks=amounts
        )

    def _make_cells(
        self, row_names: Sequence[list[str]], rows: Sequence[PlanRow]
    ) -> list[list[str]]:
        time_cells = _make_time_cells if self.rows.link else lambda row: []
        return [
            [*name, *_make_amount_cells(row), *time_cells(row)]
            for name, row in zip(row_names, rows, strict=True)
        ]


def _describe_setup(setup: Setup) -> str:
    stages = ", ".join(
        _format_span(setup.layers(stage * setup.tensor_parallel)) for stage in range(setup.stages)
    )
    return (
        f"{format_count_of(setup.workers, 'worker')} = {format_count_of(setup.stages, 'stage')} "
        f"(layers {stages}) × "
        f"{format_count_of(setup.tensor_parallel, 'tensor rank')}, "
        f"microbatches of {setup.microbatch_size}"
    )


def _format_place(row: PlanRow, side: str = "") -> str:
    return f"{row[f'{side}worker']} ({row[f'{side}stage']}, {row[f'{side}tensor_rank']})"


def _make_share_cells(row: PlanRow) -> list[str]:
    """Return which part of the cache a pair has in common, and in how many region pairs."""

    def format_inclusive(key: str) -> str:
        return _format_span(Span(row[f"{key}_start"], row[f"{key}_stop"]))

    microbatches = f"{format_inclusive('source_ubatch')} → {format_inclusive('sink_ubatch')}"
    return [
        *map(format_inclusive, ("layer", "head", "request")),
        microbatches,
        format_count(row["transfers"]),
    ]


_AMOUNTS = ["prompt\nbytes", "token\nbytes", "all\nbytes", "prompt\nextents", "token\nextents"]
_TIMES = ["prompt\nms", "token\nms", "all\nms"]


def _make_amount_cells(row: PlanRow) -> list[str]:
    """Return bytes and extents of a row."""
    sizes = [format_nbytes(row[f"{phase}_nbytes"]) for phase in PHASES]
    return [*sizes, format_count(row["prompt_runs"]), format_count(row["token_runs"])]


def _make_time_cells(row: PlanRow) -> list[str]:
    """Return the least times of a row over a link."""
    return [format_ms(row[f"{phase}_ms"]) for phase in PHASES]


def _format_span(span: Span) -> str:
    return str(span.start) if span.size == 1 else f"{span.start}–{span.stop - 1}"


# ---- the formats ----


def write(report: PlanReport, style: str, file: IO[str]) -> None:
    """Write a plan as ``table``, ``markdown``, ``csv`` or ``json``."""
    if style == "csv":
        pairs = report.rows.pairs
        writer = csv.DictWriter(file, fieldnames=list(pairs[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(pairs)
    elif style == "json":
        # Without UTF, programs read escapes instead of replacement characters.
        is_utf = str(getattr(file, "encoding", None) or "utf-8").lower().startswith("utf")
        json.dump(report.rows.document, file, indent=2, ensure_ascii=not is_utf)
        file.write("\n")
    elif style == "markdown":
        file.write(_format_markdown(report))
    else:
        _print(report, file)


def _print(report: PlanReport, file: IO[str]) -> None:
    from dejavubench.cli.console import make_console

    screen = make_console(file=file)
    text = [
        line_text for line in report.heading for line_text in wrap(line, screen.width, indent="  ")
    ]
    text_lines = [*map(TextLine, text), TextLine("")]
    for table in report.tables():
        text_lines += [*text_tables.make_lines(table, screen.width), TextLine("")]
    text_lines += map(TextLine, wrap(report.summary, screen.width, indent="  "))
    text_tables.show(text_lines, screen)


def _format_markdown(report: PlanReport) -> str:
    lines = [f"## {report.heading[0]}", "", *(f"- {line}" for line in report.heading[1:])]
    for block in report.tables():
        rows = [cells for group in block.groups for cells in group]
        lines += ["", *markdown.make_table(block.columns, rows, block.leading_column_count)]
    return "\n".join([*lines, "", report.summary]) + "\n"
