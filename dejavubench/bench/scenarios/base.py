"""The protocol of a scenario: it prepares, runs, records and verifies an iteration of an arm.

A scenario has two parts, one for sources and one for sinks. A rank makes its part once per point
and calls it for every arm that goes through the scenario. All ranks call the same methods in the
same order, so a method may be collective.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

import torch

from dejavubench import records
from dejavubench.bench.engine.batch_maker import MarkPhase
from dejavubench.bench.engine.clock import MicrobatchClock
from dejavubench.bench.point.sink import Sink
from dejavubench.bench.point.source import Source
from dejavubench.bench.recording.microbatches import IterationId
from dejavubench.config.arms import Arm


@dataclass(frozen=True)
class RecordedIteration:
    """The outcome of an iteration on this rank, once its records are written.

    Attributes:
        total_ms: this source's part of the figure that overheads are made of; None on sinks, and
            in scenarios that are no whole request.
        microbatches: records of the microbatches, for the text logs.
        note: text for the progress line, if there is more to say than the round.
    """

    total_ms: float | None = None
    microbatches: list[records.Microbatch] = field(default_factory=list)
    note: str | None = None


class StreamingArms(Protocol):
    """The arms that a source streams in. Where the device of one fails, the others go on."""

    def find_failure(self, arm: Arm) -> str | None:
        """Return why the arm streams no more, if its device has failed."""

    def close_failed(self, arm: Arm) -> None:
        """Close what an arm that has failed holds, ignoring the error that ended it."""


class ScenarioPart(ABC):
    """One rank's part in a scenario at one point.

    Args:
        streaming_arms: the arms that this rank streams in; None on a sink.

    Attributes:
        held: closes what the part holds beside its source or sink.
        expected: tokens that nothing disturbed, where they are known.
        generated: tokens of the newest iteration, where they are known.
    """

    def __init__(self, streaming_arms: StreamingArms | None = None) -> None:
        self._streaming_arms = streaming_arms
        self.held = ExitStack()
        self.expected = torch.empty(0)
        self.generated = torch.empty(0)

    def expect(
        self, undisturbed_clocks: list[MicrobatchClock] | None, tokens: torch.Tensor
    ) -> None:
        """Keep what verification needs of the iteration that nothing disturbed.

        Args:
            undisturbed_clocks: its clocks, while its caches are still in place; None on a sink.
            tokens: the new tokens [U, B, T] where they are known.
        """
        self.expected = tokens

    @abstractmethod
    def prepare(self, arm: Arm, pattern: int) -> None:
        """Fill everything that the arm writes to with a pattern, outside the clock."""

    @abstractmethod
    def run(self, arm: Arm, mark: MarkPhase) -> None:
        """Take the requests through the scenario: this is what is timed."""

    @abstractmethod
    def record(self, arm: Arm, iteration_id: IterationId) -> RecordedIteration:
        """Write this rank's records of the iteration that was just run."""

    @abstractmethod
    def verify(self, arm: Arm) -> str | None:
        """Compare every byte that arrived; return where the first difference is, if there is one.

        Raises:
            StorageError: what was streamed cannot be read back.
        """

    def expected_part(self) -> torch.Tensor:
        """Return those of the expected tokens that this rank generates: the last ones."""
        # A sink that takes over has the last tokens only; all others generate every token.
        return self.expected[..., -self.generated.shape[-1] :]

    def find_failure(self, arm: Arm) -> str | None:
        """Return why the arm streams no more, if its device has failed."""
        return None if self._streaming_arms is None else self._streaming_arms.find_failure(arm)

    def close_failed(self, arm: Arm) -> None:
        """Close what an arm that has failed holds, if this rank streams."""
        if self._streaming_arms is not None:
            self._streaming_arms.close_failed(arm)

    def close(self) -> None:
        """Give back what the scenario holds beside its source or sink."""
        self.held.close()


@dataclass(frozen=True)
class ScenarioKind:
    """A scenario, as the registry lists it.

    Attributes:
        make_source: makes the part of a source at one point.
        make_sink: makes the part of a sink at one point.
        is_single_pass: the run goes through its arms once. There are no rounds and no ceilings.
        sinks_compute: sinks have a part of the model.
        measured_without_compute: the destinations of its arms are also measured on their own.
    """

    make_source: Callable[[Source], ScenarioPart]
    make_sink: Callable[[Sink], ScenarioPart]
    is_single_pass: bool = False
    sinks_compute: bool = False
    measured_without_compute: bool = True

    def make_part(self, worker: Source | Sink) -> ScenarioPart:
        """Make the part of this worker, which is one side's at one point."""
        return self.make_source(worker) if isinstance(worker, Source) else self.make_sink(worker)
