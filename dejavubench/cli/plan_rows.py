"""The rows of ``dejavubench plan`` as programs read them, in csv and json.

Intervals are half-open, ``[start, stop)``, as in the library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dejavubench.dejavulib.exchange import RegionPair, Setup
from dejavubench.dejavulib.kv_cache import Region, Span
from dejavubench.planning.traffic import Flow, LinkSpec, Traffic, Volume

PlanRow = dict[str, Any]
"""One row, or the whole document, as JSON holds it."""

PHASES = ("prompt", "token", "total")
"""Phases that have columns of their own."""

COLUMNS = {
    "region_pair_count": "transfers",
    "prompt_nbytes": "prompt_nbytes",
    "token_nbytes": "token_nbytes",
    "total_nbytes": "total_nbytes",
    "prompt_extent_count": "prompt_runs",
    "token_extent_count": "token_runs",
}
"""Columns of csv and json by attribute of a volume. Their old names say transfers for region pairs,
and runs for extents."""

FLUSH_COLUMNS = {"flush_nbytes": "flush_nbytes", "flush_extent_count": "flush_runs"}
"""Further columns if several tokens move as one."""


@dataclass(frozen=True)
class PlanRows:
    """The rows of a plan over a link.

    Attributes:
        link: what the pairs go over; None: there are no times.
    """

    traffic: Traffic
    link: LinkSpec | None

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
                **_make_worker_columns(setup, worker),
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
        busiest_workers = {
            "busiest_source": traffic.busiest_source,
            "busiest_sink": traffic.busiest_sink,
        }
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
            "requests": traffic.request_count,
            "sources": _make_setup_columns(traffic.source),
            "sinks": _make_setup_columns(traffic.sink),
            "link": self.link and {"bytes_per_s": self.link.rate, "latency_s": self.link.latency_s},
            "pairs": [
                {**row, "regions": list(map(_make_region_pair_columns, flow.region_pairs()))}
                for row, flow in zip(self.pairs, traffic.flows, strict=True)
            ],
            "workers": self.workers,
            "total": {**self._make_amounts(traffic.total, self.least_times_s), **busiest_workers},
        }

    @cached_property
    def least_times_s(self) -> tuple[float, float, float] | None:
        """Least seconds of prompt, token and all over the link; None without a link."""
        return self.traffic.compute_least_s(self.link) if self.link else None

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
            for key, value in _make_worker_columns(traffic.source, exchange.source).items()
        }
        row |= {
            f"sink_{key}": value
            for key, value in _make_worker_columns(traffic.sink, exchange.target).items()
        }
        for key, span in spans.items():
            row |= {f"{key}_start": span.start, f"{key}_stop": span.stop}
        return row | self._make_amounts(flow.volume)

    def _make_amounts(
        self, volume: Volume, least_times_s: Sequence[float] | None = None
    ) -> PlanRow:
        """Return a volume and, with a link, its least times.

        Args:
            least_times_s: the times; None for those of the volume alone on the link.
        """
        columns = COLUMNS | (FLUSH_COLUMNS if self.traffic.point.flush_interval > 1 else {})
        row: PlanRow = {name: getattr(volume, field) for field, name in columns.items()}
        if self.link:
            times_s = least_times_s or volume.compute_least_s(self.link)
            row |= {
                f"{phase}_ms": 1e3 * phase_s for phase, phase_s in zip(PHASES, times_s, strict=True)
            }
        return row


def _make_worker_columns(setup: Setup, worker: int) -> PlanRow:
    stage, rank = divmod(worker, setup.tensor_parallel)
    return {"worker": worker, "stage": stage, "tensor_rank": rank}


def _make_setup_columns(setup: Setup) -> PlanRow:
    return {
        "workers": setup.workers,
        "pipeline_para_size": setup.stages,
        "tensor_para_size": setup.tensor_parallel,
        "ubatch_size": setup.microbatch_size,
        "layer_cuts": list(setup.layer_cuts),
    }


def _make_region_pair_columns(region_pair: RegionPair) -> PlanRow:
    """Return one region pair, in the local coordinates of each side."""
    return {
        "source_ubatch": region_pair.source_microbatch,
        "sink_ubatch": region_pair.target_microbatch,
        "source_region": _make_region_columns(region_pair.source_region),
        "sink_region": _make_region_columns(region_pair.target_region),
    }


def _make_region_columns(region: Region) -> PlanRow:
    return {axis: list(span) for axis, span in vars(region).items()}
