"""Parts that scenarios share: caches that stream, and how an iteration is timed and recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dejavubench import records
from dejavubench.bench.checks.cache_transfer import serve_pieces
from dejavubench.bench.checks.destination import check_destination
from dejavubench.bench.checks.sink_caches import check_sink_caches
from dejavubench.bench.engine.clock import MicrobatchClock
from dejavubench.bench.engine.microbatch_stream import MicrobatchStream
from dejavubench.bench.point.rank import RankAtPoint
from dejavubench.bench.point.sink import ReceivedIteration, Sink
from dejavubench.bench.point.source import Source
from dejavubench.bench.recording.microbatches import IterationId, make_microbatch_record
from dejavubench.bench.scenarios.base import RecordedIteration, ScenarioPart
from dejavubench.config.arms import Arm
from dejavubench.dejavulib.kv_cache import Span
from dejavubench.dejavulib.manager import CacheManager


@dataclass(frozen=True)
class SourceIteration:
    """One iteration on one source.

    Attributes:
        makespan_ms: time from the first submission to the last drain.
        model_cpu_s: CPU seconds of the model, per microbatch.
        helper_cpu_s: CPU seconds of the helper threads, per microbatch.
    """

    clocks: list[MicrobatchClock]
    makespan_ms: float
    model_cpu_s: float
    helper_cpu_s: float


NO_ITERATION = SourceIteration([], 0.0, 0.0, 0.0)
"""Stands for the newest iteration until there is one."""


def measure_iteration(
    run_microbatches: Callable[[], tuple[list[MicrobatchClock], float]],
    helper_seconds: Callable[[], float],
) -> SourceIteration:
    """Run all microbatches, and take the CPU time of the model and of the helpers.

    Args:
        run_microbatches: runs them; returns their clocks and the makespan in ms.
        helper_seconds: returns the CPU seconds so far of the threads that stream.
    """
    # Read at both ends of the iteration: the helper's thread goes on from one to the next.
    began_s = time.process_time()
    helper_began_s = helper_seconds()
    clocks, makespan_ms = run_microbatches()
    helper_s = helper_seconds() - helper_began_s
    # process_time counts every thread, so the helpers' share comes off.
    model_s = time.process_time() - began_s - helper_s
    return SourceIteration(clocks, makespan_ms, model_s / len(clocks), helper_s / len(clocks))


def record_iteration(
    rank_at_point: RankAtPoint,
    iteration_id: IterationId,
    source_iteration: SourceIteration,
    streams: Sequence[MicrobatchStream],
) -> RecordedIteration:
    """Write one record per microbatch.

    Args:
        streams: the streaming of each microbatch.

    Returns:
        TOTAL of a single microbatch; with several of them, the makespan.
    """
    clocks = source_iteration.clocks
    microbatches = [
        make_microbatch_record(
            iteration_id,
            microbatch_index,
            clock,
            stream,
            source_iteration.model_cpu_s,
            source_iteration.helper_cpu_s,
        )
        for microbatch_index, (clock, stream) in enumerate(zip(clocks, streams, strict=True))
    ]
    for record in microbatches:
        rank_at_point.write(record)
    # Several microbatches overlap, so the sum of one's phases is no measure of the iteration.
    total_ms = clocks[0].total_ms if len(clocks) == 1 else source_iteration.makespan_ms
    return RecordedIteration(total_ms, microbatches)


class StreamingSource(ScenarioPart):
    """A source whose caches stream to the arm's destination, or stay (``none``).

    A scenario says how it runs its microbatches, and what it records of them.
    """

    def __init__(self, source: Source) -> None:
        super().__init__(source.destinations)
        self.source = source
        self.rank_at_point = source.rank_at_point
        self._pattern = 0

    def prepare(self, arm: Arm, pattern: int) -> None:
        """Fill caches, slots and destination with the pattern; begin all streams."""
        self._pattern = pattern
        self.source.prepare(arm, arm.level, pattern)

    def streams(self, arm: Arm) -> list[MicrobatchStream]:
        """Return the streaming of each microbatch in flight."""
        return self.source.microbatch_streams(arm, arm.level)

    def helper_seconds(self, arm: Arm) -> Callable[[], float]:
        """Return a clock of the CPU seconds of the thread that streams."""
        return lambda: self.source.destinations.cpu_seconds(arm)

    def record_chunks(
        self, arm: Arm, iteration_id: IterationId, clocks: Sequence[MicrobatchClock]
    ) -> None:
        """Write the times of the chunks of an iteration with these clocks, if the arm has any."""
        if arm.level is not None:
            managers = self.source.destinations.open_managers(arm, arm.level)
            self.rank_at_point.context.chunk_file.write(arm, iteration_id, clocks, managers)

    def verify(self, arm: Arm) -> str | None:
        """Compare a local destination with the caches; for a remote one, send them to the sinks."""
        if arm.level is None:
            return None
        managers = self.source.destinations.open_managers(arm, arm.level)
        if arm.is_remote:  # the sinks compare, and this side sends what it has
            cache_and_stream = [
                (manager.cache, stream) for manager in managers for stream in manager.streams
            ]
            serve_pieces(self.rank_at_point.context.comms.verification, cache_and_stream)
            return None
        return self._compare_destination(arm, managers)

    def _compare_destination(self, arm: Arm, managers: Sequence[CacheManager]) -> str | None:
        """Return the first difference between a local destination and the caches."""
        connector = self.rank_at_point.connector(arm)
        destinations = self.source.destinations
        destination = destinations.open_streamer(arm).destination
        buffer = destinations.fetch_buffer()
        for microbatch, manager in enumerate(managers):
            difference = check_destination(
                connector,
                destination,
                manager,
                buffer,
                self._pattern,
                self.source.worker_view,
                microbatch,
            )
            if difference:
                return difference
        return None


class StreamingSink(ScenarioPart):
    """A sink that receives the caches of arms that stream to other ranks.

    A scenario says when it receives, and what it records of that.

    Args:
        generates: the sink goes on from the cache, so it writes the positions behind it itself.
    """

    def __init__(self, sink: Sink, *, generates: bool = False) -> None:
        super().__init__()
        self.sink = sink
        self.rank_at_point = sink.rank_at_point
        self._generates = generates
        self._received_iteration = ReceivedIteration()

    def prepare(self, arm: Arm, pattern: int) -> None:
        """Fill this sink's caches and slots, and post the first receives."""
        self.sink.prepare(arm, arm.level, pattern)

    def receive(self, arm: Arm) -> None:
        """Receive one iteration of an arm, if it streams to other ranks."""
        self._received_iteration = self.sink.receive(arm, arm.level)

    def record_received(self, arm: Arm, iteration_id: IterationId) -> RecordedIteration:
        """Write the bytes, messages and CPU seconds of receiving, and the arrival times."""
        self.rank_at_point.write(
            records.SinkActivity(
                **iteration_id,
                nbytes=self._received_iteration.nbytes,
                messages=self._received_iteration.message_count,
                cpu_s=self._received_iteration.cpu_s,
            )
        )
        self.sink.record_times(arm, iteration_id, self._received_iteration)
        return RecordedIteration()

    def verify(self, arm: Arm) -> str | None:
        """Compare this sink's caches with what the sources send; outside, with the pattern."""
        if not arm.is_remote:
            return None
        point = self.rank_at_point.point
        streamed_end = point.streamed_position_count
        generated_end = point.written_position_count if self._generates else streamed_end
        return check_sink_caches(
            self.sink.caches(arm.mode),
            self.sink.worker_view,
            self.rank_at_point.context.comms.verification,
            self.sink.pattern,
            Span(streamed_end, generated_end),
        )
