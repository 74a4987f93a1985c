"""Plain: sources run every request to its end while its cache streams away, or stays (``none``)."""

from __future__ import annotations

from dejavubench.bench.engine.batch_maker import MarkPhase, tokens_of
from dejavubench.bench.point.source import Source
from dejavubench.bench.recording.microbatches import IterationId
from dejavubench.bench.scenarios.base import RecordedIteration
from dejavubench.bench.scenarios.streaming import (
    NO_ITERATION,
    StreamingSink,
    StreamingSource,
    measure_iteration,
    record_iteration,
)
from dejavubench.config.arms import Arm


class PlainSource(StreamingSource):
    """Runs the batch maker over a source's caches, whose chunks stream away meanwhile."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._newest_iteration = NO_ITERATION

    def run(self, arm: Arm, mark: MarkPhase) -> None:
        """Run all microbatches to their end."""
        self._newest_iteration = measure_iteration(
            lambda: self.source.maker.run(self.streams(arm), mark), self.helper_seconds(arm)
        )
        self.generated = tokens_of(self._newest_iteration.clocks)

    def record(self, arm: Arm, iteration_id: IterationId) -> RecordedIteration:
        """Write one record per microbatch, and the times of its chunks."""
        recorded_iteration = record_iteration(
            self.rank_at_point, iteration_id, self._newest_iteration, self.streams(arm)
        )
        self.record_chunks(arm, iteration_id, self._newest_iteration.clocks)
        return recorded_iteration


class PlainSink(StreamingSink):
    """Receives what the sources stream; idle in arms that do not stream to other ranks."""

    def run(self, arm: Arm, mark: MarkPhase) -> None:
        """Receive every chunk; return at once in an arm that streams to no sink."""
        mark("receive" if arm.is_remote else "idle")
        self.receive(arm)

    def record(self, arm: Arm, iteration_id: IterationId) -> RecordedIteration:
        """Write what was received, and when."""
        return self.record_received(arm, iteration_id)
