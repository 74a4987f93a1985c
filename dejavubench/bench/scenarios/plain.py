"""Plain: sources run every request to its end while its cache streams away, or stays (``none``)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from dejavubench import records
from dejavubench.bench.checks.cache_transfer import serve_pieces
from dejavubench.bench.checks.destination import check_destination
from dejavubench.bench.checks.sink_caches import check_sink_caches
from dejavubench.bench.engine.batch_maker import MarkPhase, tokens_of
from dejavubench.bench.engine.clock import MicrobatchClock
from dejavubench.bench.engine.microbatch_stream import MicrobatchStream
from dejavubench.bench.point.sink import ReceivedIteration, Sink
from dejavubench.bench.point.source import Source
from dejavubench.bench.recording.microbatches import IterationId, microbatch_record
from dejavubench.bench.scenarios.base import RecordedIteration, ScenarioPart
from dejavubench.config.arms import Arm
from dejavubench.dejavulib.kv_cache import Span
from dejavubench.dejavulib.manager import CacheManager


@dataclass(frozen=True)
class SourceIteration:
    """One iteration on one source.

    Attributes:
        makespan_ms: time from the first submission to the last drain.
        cpu_s: CPU seconds of the model, per microbatch.
        helper_cpu_s: CPU seconds of the helper threads, per microbatch.
    """

    clocks: list[MicrobatchClock]
    makespan_ms: float
    cpu_s: float
    helper_cpu_s: float


class PlainSource(ScenarioPart):
    """Runs the batch maker over a source's caches, whose chunks stream away meanwhile."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source
        self.rank_at_point = source.rank_at_point
        self.destinations = source.destinations
        self._pattern = 0
        self._newest_iteration = SourceIteration([], 0.0, 0.0, 0.0)

    @property
    def clocks(self) -> list[MicrobatchClock]:
        """The clocks of the newest iteration."""
        return self._newest_iteration.clocks

    def prepare(self, arm: Arm, pattern: int) -> None:
        """Fill caches, slots and destination with the pattern; begin all streams."""
        self._pattern = pattern
        self.source.prepare(arm, arm.level, pattern)

    def run(self, arm: Arm, mark: MarkPhase) -> None:
        """Run all microbatches, and take the CPU time of the model and of the helpers."""
        # Read at both ends of the iteration: the helper's thread goes on from one to the next.
        began_s = time.process_time()
        helper_began_s = self.helper_cpu_s(arm)
        clocks, makespan_ms = self.iterate(self.streams(arm), arm, mark)
        helper_s = self.helper_cpu_s(arm) - helper_began_s
        # process_time counts every thread, so the helpers' share comes off.
        model_s = time.process_time() - began_s - helper_s
        microbatches = len(clocks)
        self._newest_iteration = SourceIteration(
            clocks, makespan_ms, model_s / microbatches, helper_s / microbatches
        )
        self.generated = tokens_of(clocks)

    def iterate(
        self, streams: list[MicrobatchStream], arm: Arm, mark: MarkPhase
    ) -> tuple[list[MicrobatchClock], float]:
        """Run the microbatches; return their clocks and the makespan in ms."""
        return self.source.maker.run(streams, mark)

    def streams(self, arm: Arm) -> list[MicrobatchStream]:
        """Return the streaming of each microbatch in flight."""
        return self.source.streams(arm, arm.level)

    def managers(self, arm: Arm) -> Sequence[CacheManager]:
        """Return the manager of each microbatch that has the times of its chunks."""
        return [] if arm.level is None else self.destinations.managers(arm, arm.level)

    def record_chunks(
        self, arm: Arm, iteration_id: IterationId, clocks: Sequence[MicrobatchClock]
    ) -> None:
        """Write the times of the chunks of an iteration with these clocks, if the arm has any."""
        if managers := self.managers(arm):
            self.rank_at_point.context.chunk_file.write(arm, iteration_id, clocks, managers)

    def helper_cpu_s(self, arm: Arm) -> float:
        """Return the CPU seconds so far of the threads that stream."""
        return self.destinations.cpu_seconds(arm)

    def record(self, arm: Arm, iteration_id: IterationId) -> RecordedIteration:
        """Write one record per microbatch, and the times of its chunks.

        Returns:
            TOTAL of a single microbatch; with several of them, the makespan.
        """
        newest_iteration = self._newest_iteration
        write = self.rank_at_point.write
        microbatches = [
            microbatch_record(
                iteration_id,
                microbatch_index,
                clock,
                stream,
                newest_iteration.cpu_s,
                newest_iteration.helper_cpu_s,
            )
            for microbatch_index, (clock, stream) in enumerate(
                zip(newest_iteration.clocks, self.streams(arm), strict=True)
            )
        ]
        for record in microbatches:
            write(record)
        self.record_chunks(arm, iteration_id, newest_iteration.clocks)
        # Several microbatches overlap, so the sum of one's phases is no measure of the iteration.
        only_clock = newest_iteration.clocks[0] if len(newest_iteration.clocks) == 1 else None
        total_ms = newest_iteration.makespan_ms if only_clock is None else only_clock.total_ms
        return RecordedIteration(total_ms, microbatches)

    def verify(self, arm: Arm) -> str | None:
        """Compare a local destination with the caches; for a remote one, send them to the sinks."""
        if arm.level is None:
            return None
        managers = self.destinations.managers(arm, arm.level)
        if arm.remote:  # the sinks compare, and this side sends what it has
            cache_and_stream = [
                (manager.cache, stream) for manager in managers for stream in manager.streams
            ]
            serve_pieces(self.rank_at_point.context.comms.verification, cache_and_stream)
            return None
        connector = self.rank_at_point.connector(arm)
        destinations = self.destinations
        destination = destinations.streamer(arm).destination
        buffer = destinations.fetch_buffer()
        for microbatch, manager in enumerate(managers):
            difference = check_destination(
                connector, destination, manager, buffer, self._pattern, self.source.view, microbatch
            )
            if difference:
                return difference
        return None

    def failure(self, arm: Arm) -> str | None:
        """Return the helper's storage error, once it has one."""
        return self.destinations.failure(arm)

    def close_failed(self, arm: Arm) -> None:
        """Close the arm's destination, ignoring the storage error that ended it."""
        self.destinations.close_failed(arm)


class PlainSink(ScenarioPart):
    """Receives what the sources stream; idle in arms that do not stream to other ranks."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self.sink = sink
        self.rank_at_point = sink.rank_at_point
        self._received_iteration = ReceivedIteration()

    def prepare(self, arm: Arm, pattern: int) -> None:
        """Fill this sink's caches and slots, and post the first receives."""
        self.sink.prepare(arm, arm.level, pattern)

    def run(self, arm: Arm, mark: MarkPhase) -> None:
        """Receive every chunk; return at once in an arm that streams to no sink."""
        mark("receive" if arm.remote else "idle")
        self.receive(arm)

    def receive(self, arm: Arm) -> None:
        """Receive one iteration of an arm, if it streams to other ranks."""
        self._received_iteration = self.sink.receive(arm, arm.level)

    def record(self, arm: Arm, iteration_id: IterationId) -> RecordedIteration:
        """Write the bytes, messages and CPU seconds of receiving, and the arrival times."""
        self.rank_at_point.write(
            records.SinkActivity(
                **iteration_id,
                nbytes=self._received_iteration.nbytes,
                messages=self._received_iteration.messages,
                cpu_s=self._received_iteration.cpu_s,
            )
        )
        self.sink.record_times(arm, iteration_id, self._received_iteration)
        return RecordedIteration()

    def verify(self, arm: Arm) -> str | None:
        """Compare this sink's caches with what the sources send; outside, with the pattern."""
        if not arm.remote:
            return None
        return check_sink_caches(
            self.sink.caches(arm.mode),
            self.sink.view,
            self.rank_at_point.context.comms.verification,
            self.sink.pattern,
            self.self_written_positions(),
        )

    def self_written_positions(self) -> Span:
        """Return the positions that this sink has written itself."""
        streamed_positions = self.rank_at_point.point.streamed_positions
        return Span(streamed_positions, streamed_positions)
