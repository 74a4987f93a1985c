"""The target of a prediction: sizes of a request, and the setups of both sides."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from dejavubench.records import PointInfo

CandidateT = TypeVar("CandidateT")


@dataclass(frozen=True)
class Target:
    """The request to predict, beside the link's rate.

    Attributes:
        point: sizes of the request, on sources of the setup that it names.
        flush_interval: steps that move as one.
        latency_ms: added to each message, one way, beyond that of the measured link.
        burst_nbytes: bytes that the link passes at once after a pause; 0 of a real link.
        sinks_per_source: sinks that each chunk is parted among.
        sources_per_sink: sources whose bytes share the link of one sink; below 1 counts as 1.
    """

    point: PointInfo
    flush_interval: int = 1
    latency_ms: float = 0.0
    burst_nbytes: float = 0.0
    sinks_per_source: int = 1
    sources_per_sink: float = 1.0

    @property
    def step_count(self) -> int:
        """Decode steps of the sources."""
        return (self.point.handed_over or self.point.output_len) - 1

    @property
    def worker_count(self) -> int:
        """Sources that share the model."""
        return self.point.tensor_para_size * self.point.pipeline_para_size

    @property
    def position_nbytes(self) -> float:
        """Bytes of one position of one microbatch, over all workers."""
        return self.point.streamed_nbytes / (self.point.input_len + self.step_count)

    @property
    def is_held(self) -> bool:
        """Whether predictions of such setups were held against measurement."""
        return self.worker_count == 1 and self.sinks_per_source == 1 and self.sources_per_sink <= 1

    def with_length(self, length: int) -> Target:
        """Return the target with another prompt length."""
        changed_fields = {
            "input_len": length,
            "streamed_nbytes": round(self.position_nbytes * (length + self.step_count)),
        }
        return replace(self, point=self.point.model_copy(update=changed_fields))


def compute_distance(measured: PointInfo, target: PointInfo) -> tuple[int, float]:
    """Return how far apart two points are: other models and layouts first, then other lengths."""
    unequal_size_count = sum(
        getattr(measured, key) != getattr(target, key)
        for key in ("model", "data_type", "kv_layout", "ubatch_size")
    )
    return unequal_size_count, abs(math.log(measured.input_len / target.input_len))


def keep_nearest(
    candidates: Sequence[CandidateT], measure: Callable[[CandidateT], Any]
) -> list[CandidateT]:
    """Return the candidates of the least distance, in their order.

    Args:
        measure: gives the distance of one; any values that can be ordered.
    """
    distances = list(map(measure, candidates))
    least = min(distances, default=None)
    return [
        candidate
        for candidate, distance in zip(candidates, distances, strict=True)
        if distance == least
    ]
