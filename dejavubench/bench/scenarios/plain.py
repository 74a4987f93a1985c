"""Plain: sources run every request to its end while its cache streams away, or stays (``none``)."""

from __future__ import annotations

import time
from dataclasses import dataclass

from dejavubench import records
from dejavubench.bench.batchmaker import Mark, Streamed, tokens_of
from dejavubench.bench.checks.arrived import check_sink_caches
from dejavubench.bench.checks.held import check_destination
from dejavubench.bench.checks.pieces import serve_pieces
from dejavubench.bench.clock import MicrobatchClock
from dejavubench.bench.point.sink import Received, Sink
from dejavubench.bench.point.source import Source
from dejavubench.bench.recording.microbatches import When, microbatch_record
from dejavubench.bench.scenarios.base import Recorded, ScenarioPart
from dejavubench.config.arms import Arm
from dejavubench.dejavulib.kvcache import Span


@dataclass(frozen=True)
class Ran:
    """One iteration on one source.

    Attributes:
        makespan_ms: from the first submission to the last drain.
        cpu_s, helper_cpu_s: CPU seconds per microbatch of the model, and of the helper threads.
    """

    clocks: list[MicrobatchClock]
    makespan_ms: float
    cpu_s: float
    helper_cpu_s: float


class PlainSource(ScenarioPart):
    """The part of a source."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source
        self.outgoing = source.outgoing
        self._pattern = 0
        self._ran = Ran([], 0.0, 0.0, 0.0)

    @property
    def clocks(self) -> list[MicrobatchClock]:
        """The clocks of the newest iteration."""
        return self._ran.clocks

    def prepare(self, arm: Arm, pattern: int) -> None:
        self._pattern = pattern
        self.source.prepare(arm, arm.level, pattern)

    def run(self, arm: Arm, mark: Mark) -> None:
        cpu, helper = time.process_time(), self.helper_cpu_s(arm)
        clocks, makespan_ms = self.iterate(self.streams(arm), arm, mark)
        helper = self.helper_cpu_s(arm) - helper
        cpu = time.process_time() - cpu - helper  # of the whole process, helper threads included
        self._ran = Ran(clocks, makespan_ms, cpu / len(clocks), helper / len(clocks))
        self.generated = tokens_of(clocks)

    def iterate(
        self, streams: list[Streamed], arm: Arm, mark: Mark
    ) -> tuple[list[MicrobatchClock], float]:
        """Run the microbatches; return their clocks and the makespan in ms."""
        return self.source.maker.run(streams, mark)

    def streams(self, arm: Arm) -> list[Streamed]:
        """Return the streaming of each microbatch in flight."""
        return self.source.streams(arm, arm.level)

    def helper_cpu_s(self, arm: Arm) -> float:
        """Return the CPU seconds so far of the threads that stream."""
        return self.outgoing.cpu_seconds(arm)

    def record(self, arm: Arm, when: When) -> Recorded:
        ran, write = self._ran, self.source.ends.context.workspace.recorder.write
        ubatches = [
            microbatch_record(when, number, clock, stream, ran.cpu_s, ran.helper_cpu_s)
            for number, (clock, stream) in enumerate(
                zip(ran.clocks, self.streams(arm), strict=True)
            )
        ]
        for each in ubatches:
            write(each)
        # Several microbatches overlap, so the sum of one's phases is no measure of the iteration.
        total = ran.clocks[0].total_ms if len(ran.clocks) == 1 else ran.makespan_ms
        return Recorded(total, ubatches)

    def verify(self, arm: Arm) -> str | None:
        if arm.level is None:
            return None
        managers = self.outgoing.managers(arm, arm.level)
        if arm.remote:  # the sinks compare, and this side sends what it has
            held = [(manager.cache, stream) for manager in managers for stream in manager.streams]
            serve_pieces(self.source.ends.context.comms.verification, held)
            return None
        session, outgoing = self.source.ends.session(arm), self.outgoing
        destination, buffer = outgoing.streamer(arm).destination, outgoing.fetch_buffer()
        for ubatch, manager in enumerate(managers):
            found = check_destination(
                session, destination, manager, buffer, self._pattern, self.source.side, ubatch
            )
            if found:
                return found
        return None

    def failure(self, arm: Arm) -> str | None:
        return self.outgoing.failure(arm)

    def close_failed(self, arm: Arm) -> None:
        self.outgoing.close_failed(arm)


class PlainSink(ScenarioPart):
    """The part of a sink; in arms that do not stream to other ranks it has nothing to do."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self.sink = sink
        self._received = Received()

    def prepare(self, arm: Arm, pattern: int) -> None:
        if arm.remote and arm.level is not None:
            self.sink.prepare(arm.mode, arm.level, pattern)

    def run(self, arm: Arm, mark: Mark) -> None:
        mark("receive" if arm.remote else "idle")
        self.receive(arm)

    def receive(self, arm: Arm) -> None:
        """Receive one iteration of an arm that streams to other ranks."""
        self._received = Received()
        if arm.remote and arm.level is not None:
            self._received = self.sink.receive(arm.mode, arm.level)

    def record(self, arm: Arm, when: When) -> Recorded:
        self.sink.ends.context.workspace.recorder.write(
            records.SinkActivity(
                **when,
                nbytes=self._received.nbytes,
                messages=self._received.messages,
                cpu_s=self._received.cpu_s,
            )
        )
        return Recorded()

    def verify(self, arm: Arm) -> str | None:
        if not arm.remote:
            return None
        comm = self.sink.ends.context.comms.verification
        caches = self.sink.caches(arm.mode)
        return check_sink_caches(caches, self.sink.side, comm, self.sink.pattern, self.own())

    def own(self) -> Span:
        """Return the positions that this sink has written itself."""
        streamed = self.sink.side.point.streamed
        return Span(streamed, streamed)
