"""Restart: sources put back what a killed run has streamed to disk, and go on from there.

A step's record in the stream's file has the token ids that went into the step. So the last complete
step, whose new token was never written down, is computed again. What was put back is streamed anew,
into the file of this run: it can be restarted from in its turn, and is verified like any other.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from mpi4py import MPI

from dejavubench import records
from dejavubench.bench.engine.batch_maker import MarkPhase, tokens_of
from dejavubench.bench.engine.clock import MicrobatchClock
from dejavubench.bench.engine.microbatch_stream import MicrobatchStream
from dejavubench.bench.point.sink import Sink
from dejavubench.bench.point.source import Source
from dejavubench.bench.recording.microbatches import IterationId
from dejavubench.bench.scenarios.base import RecordedIteration
from dejavubench.bench.scenarios.streaming import StreamingSink, StreamingSource
from dejavubench.config.arms import Arm
from dejavubench.dejavulib.destinations.disk.saved_stream import RestoredStream, SavedStream
from dejavubench.dejavulib.kv_cache import KVCache
from dejavubench.parallel.collectives import sleeping_barrier


@dataclass
class RestoredCaches:
    """All that one source has put back of its microbatches.

    Attributes:
        ms: time of reading, checking and scattering.
    """

    restored: list[RestoredStream]
    nbytes: int
    ms: float

    @property
    def step_count(self) -> int:
        """Number of steps that all microbatches have."""
        return min(stream.steps for stream in self.restored)

    @property
    def wrong(self) -> list[str]:
        """Why files hold fewer good steps than they say, for each such file."""
        return [stream.fault for stream in self.restored if stream.fault is not None]

    def list_tokens(self, step_count: int) -> list[list[torch.Tensor]]:
        """Return for each microbatch the new tokens [B] of the first ``step_count`` steps.

        The new token of a step is what went into the step after it.
        """
        return [
            [
                torch.from_numpy(stream.tokens[step + 1][:, 0].astype(np.int64))
                for step in range(step_count)
            ]
            for stream in self.restored
        ]


def restore_caches(files: list[SavedStream], caches: list[KVCache], embeds: bool) -> RestoredCaches:
    """Put back all that is good; ``embeds``: this stage needs the token ids as well."""
    began_s = time.perf_counter()
    restored_streams = [file.restore(cache) for file, cache in zip(files, caches, strict=True)]
    if embeds:
        for file, stream in zip(files, restored_streams, strict=True):
            _drop_unknown_steps(stream, file)
    nbytes = sum(
        sum(map(file.schedule.step_nbytes, range(stream.steps)))
        for file, stream in zip(files, restored_streams, strict=True)
    )
    return RestoredCaches(restored_streams, nbytes, (time.perf_counter() - began_s) * 1e3)


def _drop_unknown_steps(restored_stream: RestoredStream, file: SavedStream) -> None:
    """Give up the steps from the first one on whose token ids are not in the file."""
    first_unknown = next(
        (step for step, ids in enumerate(restored_stream.tokens) if (ids < 0).any()), None
    )
    if first_unknown is not None:
        restored_stream.fault = (
            f"{file.path}: token ids of step {first_unknown} are not in it; "
            f"{first_unknown} steps are good"
        )
        del restored_stream.tokens[first_unknown:]


def _agree_on_first_step(world: MPI.Intracomm, step_count: int | None) -> int:
    """Return the first step that is computed again, on every rank. Collective.

    Args:
        step_count: number of steps that this source has; None on a sink.
    """
    # A stage cannot compute a step whose hidden states the stage before does not send again, so the
    # rank with the fewest steps decides for all.
    steps_of_ranks = world.allgather(step_count)
    # The new token of the last step is not known: that step is computed again.
    return max(min(step for step in steps_of_ranks if step is not None) - 1, 0)


class RestartSource(StreamingSource):
    """Puts a source's caches back from the files, streams them anew, and goes on."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._undisturbed_clocks: list[MicrobatchClock] = []
        self._clocks: list[MicrobatchClock] = []
        self._restored_caches = RestoredCaches([], 0, 0.0)
        self._first_step = 0
        self._again_ms = 0.0

    def expect(
        self, undisturbed_clocks: list[MicrobatchClock] | None, tokens: torch.Tensor
    ) -> None:
        """Keep the undisturbed clocks as well: they tell what a run anew would take."""
        super().expect(undisturbed_clocks, tokens)
        self._undisturbed_clocks = undisturbed_clocks or []

    def run(self, arm: Arm, mark: MarkPhase) -> None:
        """Put the caches back from disk, agree on the first step, and go on from there."""
        source = self.source
        context = self.rank_at_point.context
        mark("restore")
        self._restored_caches = restore_caches(
            context.saved_streams, source.caches, source.model.is_first_stage
        )
        sleeping_barrier(context.world, "restore")
        self._first_step = _agree_on_first_step(context.world, self._restored_caches.step_count)
        streams = self.streams(arm)
        self._again_ms = 0.0
        if self._first_step == 0:  # nothing to go on from: from the beginning
            self._clocks, _ = source.maker.run(streams, mark)
        else:
            self._clocks = self._decode(streams, mark)
        self.generated = tokens_of(self._clocks)

    def _decode(self, streams: list[MicrobatchStream], mark: MarkPhase) -> list[MicrobatchClock]:
        """Stream what was put back, then take every microbatch to its end."""
        source = self.source
        first_step = self._first_step
        clocks = source.maker.make_clocks()
        layers = source.worker_view.geometry.layers
        if source.model.is_first_stage:
            for clock, tokens in zip(
                clocks, self._restored_caches.list_tokens(first_step), strict=True
            ):
                clock.tokens = list(tokens)
        # The killed run's files are only read. This run's own files get the old steps as well, so
        # that they are whole without the old ones.
        mark("stream again")
        began_s = time.perf_counter()
        for stream, clock in zip(streams, clocks, strict=True):
            for layer in range(layers):
                stream.layer_ready(layer)
            for step in range(first_step):
                input_tokens = clock.tokens[step - 1].numpy() if step and clock.tokens else None
                stream.step_ready(step, input_tokens)
        self._again_ms = (time.perf_counter() - began_s) * 1e3
        mark("tokens")
        source.maker.decode(clocks, streams, first_step, source.maker.output_len)
        mark("drain")
        source.maker.drain(clocks, streams)
        return clocks

    def record(self, arm: Arm, iteration_id: IterationId) -> RecordedIteration:
        """Write the restart's record.

        Returns:
            No total, because the arm is no whole request.
        """
        rank_at_point = self.rank_at_point
        restored_caches = self._restored_caches
        clocks = self._clocks
        restart_request = rank_at_point.context.plan.restart_request
        assert restart_request is not None
        undisturbed_ms = (
            sum(clock.step_ms[: self._first_step]) for clock in self._undisturbed_clocks
        )
        rank_at_point.write(
            records.Restart(
                point=iteration_id["point"],
                arm=arm.name,
                of=restart_request.folder.name,
                run_id=restart_request.run_id,
                watermark=min(file.watermark for file in rank_at_point.context.saved_streams),
                first=self._first_step,
                nbytes=restored_caches.nbytes,
                restore_ms=restored_caches.ms,
                again_ms=self._again_ms,
                step_ms=np.max([clock.step_ms for clock in clocks], axis=0).tolist(),
                drain_ms=max(clock.drain_ms for clock in clocks),
                anew_ms=max(undisturbed_ms, default=None),
                wrong=restored_caches.wrong,
            )
        )
        # What was put back left before the clock of the first step began: those times are negative.
        self.record_chunks(arm, iteration_id, clocks)
        if not rank_at_point.experiment.verify:  # else the undisturbed tokens are recorded already
            self.source.write_tokens(self.generated)
        return RecordedIteration(note=f"restarted at new token {self._first_step}")


class RestartSink(StreamingSink):
    """Sink side of a restart, which only takes part in what all ranks agree on."""

    def __init__(self, sink: Sink) -> None:
        super().__init__(sink)
        self._first_step = 0

    def run(self, arm: Arm, mark: MarkPhase) -> None:
        """Wait for the sources to restore; then learn the first step for the progress line."""
        world = self.rank_at_point.context.world
        mark("restore")
        sleeping_barrier(world, "restore")
        self._first_step = _agree_on_first_step(world, None)

    def record(self, arm: Arm, iteration_id: IterationId) -> RecordedIteration:
        """Write nothing; return the first new token for the progress line."""
        return RecordedIteration(note=f"restarted at new token {self._first_step}")
