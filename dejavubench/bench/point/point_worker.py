"""The work of one rank at one point, as far as a source and a sink have it in common."""

from __future__ import annotations

from typing import Protocol

import torch

from dejavubench.bench.engine.batch_maker import MarkPhase
from dejavubench.bench.engine.clock import MicrobatchClock
from dejavubench.config.arms import Arm


class PointWorker(Protocol):
    """A source or a sink at one point. All ranks call the same methods in the same order."""

    @property
    def copy_ways(self) -> dict[str, str]:
        """The way that chunks leave the device, by kind of chunk: ``prompt`` and ``token``.

        Empty where no chunk leaves a device.
        """

    def run_undisturbed(self, mark: MarkPhase) -> list[MicrobatchClock] | None:
        """Run one iteration without streaming; None on a sink, which has none to run."""

    def write_tokens(self, generated_tokens: torch.Tensor) -> None:
        """Record, on rank 0, each request's prompt and its new tokens."""

    def prepare(self, arm: Arm, level_name: str | None, pattern: int) -> None:
        """Fill everything that the arm writes to with a pattern, outside the clock."""

    def stream_alone(self, arm: Arm, level_name: str) -> float | None:
        """Send or receive the arm's chunks with no compute beside them.

        Returns:
            Milliseconds until the last chunk is complete; None on a sink, whose time is not its
            own.
        """

    def close(self) -> None:
        """Give back what the worker holds."""
