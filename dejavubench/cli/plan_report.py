"""The report of ``dejavubench plan``: tables for people, json and csv for programs.

Intervals in json and csv are half-open, ``[start, stop)``, as in the library. Tables show them
inclusive: ``0–19``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any

from dejavubench.analysis import markdown
from dejavubench.analysis.number_texts import format_count, ms_text, nbytes_text
from dejavubench.analysis.tables import text_tables
from dejavubench.analysis.tables.text_tables import Block, TextLine, wrap
from dejavubench.dejavulib.exchange import RegionPair, Setup
from dejavubench.dejavulib.kv_cache import Region, Span
from dejavubench.planning.traffic import Flow, LinkSpec, Traffic, Volume
from dejavubench.units import count_text

PlanRow = dict[str, Any]
"""One row, or the whole document, as JSON holds it."""

PLACE_HEADING = "(stage,\ntensor)"
"""End of a heading over workers: their stage and tensor rank."""

PHASES = ("prompt", "token", "total")
"""Phases that have columns of their own."""

COLUMNS = {
    "region_pairs": "transfers",
    "prompt_nbytes": "prompt_nbytes",
    "token_nbytes": "token_nbytes",
    "total_nbytes": "total_nbytes",
    "prompt_extents": "prompt_runs",
    "token_extents": "token_runs",
}
"""Columns of csv and json by attribute of a volume. Their old names say transfers for region pairs,
and runs for extents."""

FLUSH_COLUMNS = {"flush_nbytes": "flush_nbytes", "flush_extents": "flush_runs"}
"""Further columns if several tokens move as one."""


@dataclass(frozen=True)
class PlanReport:
    """A plan and the link that it goes over, ready to be shown."""

    traffic: Traffic
    link: LinkSpec | None

    # ---- for programs ----

    @cached_property
    def pairs(self) -> list[PlanRow]:
        """A flat row for each source and sink that have a part of the cache in common."""
        return [self._make_pair(flow) for flow in self.traffic.flows]

    @cached_property
    def workers(self) -> list[PlanRow]:
        """A row for each source, then each sink."""
        traffic = self.traffic
        sides = (
            ("source", traffic.source, traffic.sent, traffic.peers_of_sources),
            ("sink", traffic.sink, traffic.received, traffic.peers_of_sinks),
        )
        return [
            {
                "role": role,
                **_worker_columns(setup, worker),
                "peers": peers[worker],
                **self._make_amounts(volume),
            }
            for role, setup, volumes, peers in sides
            for worker, volume in volumes.items()
        ]

    @property
    def document(self) -> PlanRow:
        """The whole report as one JSON object, with every pair of regions."""
        traffic, point = self.traffic, self.traffic.point
        busiest = {"busiest_source": traffic.busiest_source, "busiest_sink": traffic.busiest_sink}
        return {
            "model": point.spec.name,
            "layer_num": point.spec.layer_num,
            "kv_head_num": point.spec.kv_heads,
            "size_per_head": point.spec.size_per_head,
            "data_type": point.data_type,
            "kv_layout": point.kv_layout,
            "input_len": point.input_len,
            "output_len": point.output_len,
            "flush_interval": point.flush_interval,
            "requests": traffic.requests,
            "sources": _setup_columns(traffic.source),
            "sinks": _setup_columns(traffic.sink),
            "link": self.link and {"bytes_per_s": self.link.rate, "latency_s": self.link.latency},
            "pairs": [
                {**row, "regions": list(map(_region_pair_columns, flow.region_pairs()))}
                for row, flow in zip(self.pairs, traffic.flows, strict=True)
            ],
            "workers": self.workers,
            "total": {**self._make_amounts(traffic.total, self._bounds), **busiest},
        }

    @cached_property
    def _bounds(self) -> tuple[float, float, float] | None:
        return self.traffic.least_seconds(self.link) if self.link else None

    def _make_pair(self, flow: Flow) -> PlanRow:
        """Return the flat row of a source and a sink: both workers, what they share, amounts."""
        traffic, exchange = self.traffic, flow.exchange
        spans: dict[str, Span | range] = {
            "layer": flow.region.layers,
            "head": flow.region.heads,
            "request": flow.region.requests,
            "source_ubatch": traffic.source.microbatches(flow.region.requests),
            "sink_ubatch": traffic.sink.microbatches(flow.region.requests),
        }
        row = {
            f"source_{key}": value
            for key, value in _worker_columns(traffic.source, exchange.source).items()
        }
        row |= {
            f"sink_{key}": value
            for key, value in _worker_columns(traffic.sink, exchange.target).items()
        }
        for key, span in spans.items():
            row |= {f"{key}_start": span.start, f"{key}_stop": span.stop}
        return row | self._make_amounts(flow.volume)

    def _make_amounts(self, volume: Volume, least: Sequence[float] | None = None) -> PlanRow:
        """Return a volume and, with a link, its least times.

        Args:
            least: the times; None for those of the volume alone on the link.
        """
        columns = COLUMNS | (FLUSH_COLUMNS if self.traffic.point.flush_interval > 1 else {})
        row: PlanRow = {name: getattr(volume, field) for field, name in columns.items()}
        if self.link:
            seconds = least or volume.least_seconds(self.link)
            row |= {
                f"{phase}_ms": 1e3 * phase_s for phase, phase_s in zip(PHASES, seconds, strict=True)
            }
        return row

    # ---- for people ----

    @property
    def heading(self) -> list[str]:
        """Lines above the tables: model, setups, flush interval and link."""
        traffic, point = self.traffic, self.traffic.point
        spec = point.spec
        lines = [
            f"{spec.name}, {point.data_type}, {point.kv_layout}: {spec.layer_num} layers × "
            f"{spec.kv_heads} KV heads of {spec.size_per_head}; "
            f"{count_text(traffic.requests, 'request')} of "
            f"{count_text(point.input_len, 'prompt token')} and "
            f"{count_text(point.output_len, 'new token')}",
            f"sources: {_setup_text(traffic.source)}",
            f"sinks: {_setup_text(traffic.sink)}",
        ]
        if point.flush_interval > 1:
            sent = traffic.sent[traffic.busiest_source]
            lines.append(
                f"flush: every {point.flush_interval} tokens; the busiest source then sends "
                f"{nbytes_text(sent.flush_nbytes)} in {format_count(sent.flush_extents)} extents"
            )
        if self.link:
            lines.append(
                f"link: {self.link.rate / 1e9:.4g} GB/s in each direction of every worker, "
                f"latency {self.link.latency * 1e6:.4g} µs; times are lower bounds"
            )
        return lines

    @property
    def summary(self) -> str:
        """The line below the tables: totals, busiest workers, and lower bounds with a link."""
        traffic, total = self.traffic, self.traffic.total
        sender, receiver = traffic.busiest_source, traffic.busiest_sink
        text = (
            f"total: {nbytes_text(total.total_nbytes)} in "
            f"{count_text(total.region_pairs, 'region pair')}; "
            f"busiest: source {sender} sends {nbytes_text(traffic.sent[sender].total_nbytes)}, "
            f"sink {receiver} receives {nbytes_text(traffic.received[receiver].total_nbytes)}"
        )
        if self._bounds is None:
            return text
        prompt, token, request = (ms_text(1e3 * seconds) for seconds in self._bounds)
        return f"{text}; lower bounds: prompt {prompt} ms, token {token} ms, all {request} ms"

    def tables(self) -> list[Block]:
        """Return the table of pairs, then that of workers."""
        place_headings = [f"source\n{PLACE_HEADING}", f"sink\n{PLACE_HEADING}"]
        shares = ["layers", "heads", "requests", "microbatches", "region\npairs"]
        pairs = [
            [_place_text(row, "source_"), _place_text(row, "sink_"), *_share_cells(row)]
            for row in self.pairs
        ]
        worker, counts = f"worker\n{PLACE_HEADING}", ["peers", "region\npairs"]
        workers = [
            [f"{row['role']} {_place_text(row)}", str(row["peers"]), format_count(row["transfers"])]
            for row in self.workers
        ]
        return [
            self._make_table([*place_headings, *shares], 2, pairs, self.pairs),
            self._make_table([worker, *counts], 1, workers, self.workers),
        ]

    def _make_table(
        self, headings: list[str], leading: int, cells: list[list[str]], rows: Sequence[PlanRow]
    ) -> Block:
        """Put amounts and, with a link, least times beside what names a row."""
        amounts = len(headings), len(headings) + len(_AMOUNTS)
        headings = [*headings, *_AMOUNTS, *(_TIMES if self.link else ())]
        return Block("", headings, leading, [self._make_cells(cells, rows)], breaks=amounts)

    def _make_cells(
        self, row_names: Sequence[list[str]], rows: Sequence[PlanRow]
    ) -> list[list[str]]:
        time_cells = _time_cells if self.link else lambda row: []
        return [
            [*name, *_amount_cells(row), *time_cells(row)]
            for name, row in zip(row_names, rows, strict=True)
        ]


def _worker_columns(setup: Setup, worker: int) -> PlanRow:
    stage, rank = divmod(worker, setup.tensor_parallel)
    return {"worker": worker, "stage": stage, "tensor_rank": rank}


def _setup_columns(setup: Setup) -> PlanRow:
    return {
        "workers": setup.workers,
        "pipeline_para_size": setup.stages,
        "tensor_para_size": setup.tensor_parallel,
        "ubatch_size": setup.microbatch_size,
        "layer_cuts": list(setup.layer_cuts),
    }


def _region_pair_columns(pair: RegionPair) -> PlanRow:
    """Return one region pair, in the local coordinates of each side."""
    return {
        "source_ubatch": pair.source_microbatch,
        "sink_ubatch": pair.target_microbatch,
        "source_region": _region_columns(pair.source_region),
        "sink_region": _region_columns(pair.target_region),
    }


def _region_columns(region: Region) -> PlanRow:
    return {axis: list(span) for axis, span in vars(region).items()}


def _setup_text(setup: Setup) -> str:
    stages = ", ".join(
        _span_text(setup.layers(stage * setup.tensor_parallel)) for stage in range(setup.stages)
    )
    return (
        f"{count_text(setup.workers, 'worker')} = {count_text(setup.stages, 'stage')} "
        f"(layers {stages}) × "
        f"{count_text(setup.tensor_parallel, 'tensor rank')}, "
        f"microbatches of {setup.microbatch_size}"
    )


def _place_text(row: PlanRow, side: str = "") -> str:
    return f"{row[f'{side}worker']} ({row[f'{side}stage']}, {row[f'{side}tensor_rank']})"


def _share_cells(row: PlanRow) -> list[str]:
    """Return which part of the cache a pair has in common, and in how many region pairs."""

    def inclusive(key: str) -> str:
        return _span_text(Span(row[f"{key}_start"], row[f"{key}_stop"]))

    microbatches = f"{inclusive('source_ubatch')} → {inclusive('sink_ubatch')}"
    return [
        *map(inclusive, ("layer", "head", "request")),
        microbatches,
        format_count(row["transfers"]),
    ]


_AMOUNTS = ["prompt\nbytes", "token\nbytes", "all\nbytes", "prompt\nextents", "token\nextents"]
_TIMES = ["prompt\nms", "token\nms", "all\nms"]


def _amount_cells(row: PlanRow) -> list[str]:
    """Return bytes and extents of a row."""
    sizes = [nbytes_text(row[f"{phase}_nbytes"]) for phase in PHASES]
    return [*sizes, format_count(row["prompt_runs"]), format_count(row["token_runs"])]


def _time_cells(row: PlanRow) -> list[str]:
    """Return the least times of a row over a link."""
    return [ms_text(row[f"{phase}_ms"]) for phase in PHASES]


def _span_text(span: Span) -> str:
    return str(span.start) if span.size == 1 else f"{span.start}–{span.stop - 1}"


# ---- the formats ----


def write(report: PlanReport, style: str, file: IO[str]) -> None:
    """Write a plan as ``table``, ``markdown``, ``csv`` or ``json``."""
    if style == "csv":
        rows = csv.DictWriter(file, fieldnames=list(report.pairs[0]), lineterminator="\n")
        rows.writeheader()
        rows.writerows(report.pairs)
    elif style == "json":
        # Without UTF, programs read escapes instead of replacement characters.
        utf = str(getattr(file, "encoding", None) or "utf-8").lower().startswith("utf")
        json.dump(report.document, file, indent=2, ensure_ascii=not utf)
        file.write("\n")
    elif style == "markdown":
        file.write(_format_markdown(report))
    else:
        _print(report, file)


def _print(report: PlanReport, file: IO[str]) -> None:
    from dejavubench.cli.console import console

    screen = console(file=file)
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
        lines += ["", *markdown.table(block.columns, rows, block.leading_columns)]
    return "\n".join([*lines, "", report.summary]) + "\n"
