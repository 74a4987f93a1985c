"""Hand-over: sources stop after their first tokens, and sinks go on from the cache that came.

A sink has a part of the model in its own setup. Beside the cache it needs each request's tokens so
far. One source, the *token sender*, sends them to the sinks of the first stage, which embed tokens.
The sinks' *first answerer* confirms when their first token is known. Each side's times are by its
own clock.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from mpi4py import MPI

from dejavubench import records
from dejavubench.bench.engine.batch_maker import BatchMaker, MarkPhase, tokens_of
from dejavubench.bench.engine.clock import MicrobatchClock
from dejavubench.bench.engine.microbatch_stream import MicrobatchStream, NoStreaming
from dejavubench.bench.engine.prompts import make_prompts
from dejavubench.bench.engine.steps import make_steps
from dejavubench.bench.point.sink import Sink
from dejavubench.bench.point.source import Source
from dejavubench.bench.profiling.nvtx import choose_ranged_maker
from dejavubench.bench.profiling.ranged_maker import RangedBatchMaker
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
from dejavubench.dejavulib.kv_cache import KVCache
from dejavubench.dejavulib.waiting import wait_asleep
from dejavubench.parallel.collectives import sleeping_bcast
from dejavubench.parallel.topology import Topology

_TOKENS_TAG = 1
_GOES_ON_TAG = 2


def find_token_sender(topology: Topology) -> int:
    """Return the rank of the source that knows new tokens first: the first of the last stage."""
    return topology.sources[-topology.tensor_size]


def find_token_receivers(topology: Topology) -> range:
    """Return the ranks of the sinks that embed tokens: the first stage."""
    return topology.sinks[: topology.sink_width]


def find_first_answerer(topology: Topology) -> int:
    """Return the rank of the sink that knows new tokens first."""
    return topology.sinks[-topology.sink_width]


class HandoverSource(StreamingSource):
    """Generates the first tokens on a source, and sends them to the sinks."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._newest_iteration = NO_ITERATION
        self._topology = source.worker_view.topology
        self._comm = self.rank_at_point.context.comms.handover
        self._sends_tokens = self._topology.rank == find_token_sender(self._topology)
        self._under_way: list[MPI.Request] = []
        self._handover_ms: float | None = None

    def expect(
        self, undisturbed_clocks: list[MicrobatchClock] | None, tokens: torch.Tensor
    ) -> None:
        """Keep the undisturbed tokens, and send them to the sinks. Collective."""
        super().expect(undisturbed_clocks, tokens)
        # Sinks have not run these requests, so they get the tokens to compare theirs with.
        sleeping_bcast(self.rank_at_point.context.world, tokens)

    def expected_part(self) -> torch.Tensor:
        """Return the first expected tokens: those before the hand-over."""
        return self.expected[..., : self.generated.shape[-1]]

    def run(self, arm: Arm, mark: MarkPhase) -> None:
        """Run the source's share of the tokens; then wait for the answer of the first sink."""
        generated_count = self.rank_at_point.point.generated_token_count
        self._newest_iteration = measure_iteration(
            lambda: self.source.maker.run(
                self.streams(arm), mark, generated_count, self._send_tokens
            ),
            self.helper_seconds(arm),
        )
        self.generated = tokens_of(self._newest_iteration.clocks)
        mark("hand-over")
        self._handover_ms = self._wait_for_answer() if self._sends_tokens else None

    def record(self, arm: Arm, iteration_id: IterationId) -> RecordedIteration:
        """Write the hand-over's milliseconds, on the source that sends, and the microbatches."""
        if self._handover_ms is not None:
            self.rank_at_point.write(records.Handover(**iteration_id, ms=self._handover_ms))
        recorded_iteration = record_iteration(
            self.rank_at_point, iteration_id, self._newest_iteration, self.streams(arm)
        )
        self.record_chunks(arm, iteration_id, self._newest_iteration.clocks)
        return recorded_iteration

    def _send_tokens(self, clocks: list[MicrobatchClock]) -> None:
        """Send all tokens so far of all requests, as soon as they are known."""
        if not self._sends_tokens:
            return
        tokens = torch.cat([torch.stack(clock.tokens, dim=1) for clock in clocks])
        # Kept alive by its requests until the sinks have answered.
        message = np.ascontiguousarray(tokens.numpy())  # [requests, tokens]
        self._under_way = [
            self._comm.Isend(message, rank, _TOKENS_TAG)
            for rank in find_token_receivers(self._topology)
        ]

    def _wait_for_answer(self) -> float:
        """Return milliseconds from the last computation here to the sinks' first token."""
        # A device computes on when the step has been launched: it ends with the token.
        ended_s = max(
            clock.returned_s if clock.event_ms else clock.compute_ended_s
            for clock in self._newest_iteration.clocks
        )
        answer = self._comm.Irecv(bytearray(1), find_first_answerer(self._topology), _GOES_ON_TAG)
        wait_asleep(answer.Test, "the sinks' first token")
        answer_ms = (time.perf_counter() - ended_s) * 1e3
        MPI.Request.Waitall(self._under_way)  # at once: whoever answered has the tokens
        return answer_ms


@dataclass(frozen=True)
class SinkModelTimes:
    """One iteration on one sink, in milliseconds by its own clock.

    Attributes:
        waited_ms: time from the start until the cache was whole and the tokens were known.
        first_ms: time from then until every microbatch has its first token on this stage.
        later_step_ms: time of each later step, over all microbatches.
        tokens: new tokens [requests, T − k]; empty on stages that do not see them.
    """

    waited_ms: float = 0.0
    first_ms: float = 0.0
    later_step_ms: list[float] = field(default_factory=list)
    tokens: torch.Tensor = field(default_factory=lambda: torch.empty(0))


class HandoverSink(StreamingSink):
    """Receives the cache on a sink, and generates the other tokens."""

    def __init__(self, sink: Sink) -> None:
        super().__init__(sink, generates=True)
        self._sink_model: SinkModel | None = None
        self._sink_times = SinkModelTimes()

    def expect(
        self, undisturbed_clocks: list[MicrobatchClock] | None, tokens: torch.Tensor
    ) -> None:
        """Receive the sources' undisturbed tokens and keep them. Collective."""
        expected_tokens: torch.Tensor = sleeping_bcast(self.rank_at_point.context.world, None)
        # This side has microbatches of its own.
        super().expect(undisturbed_clocks, expected_tokens.flatten(0, 1))

    def prepare(self, arm: Arm, pattern: int) -> None:
        """Prepare the sink's steps, the first time; then fill all with the pattern."""
        # On a GPU this captures the decode steps, which writes to the caches: so before the fill.
        if self._sink_model is None:
            self._sink_model = SinkModel(self.sink, self.sink.caches(arm.mode))
        super().prepare(arm, pattern)

    def run(self, arm: Arm, mark: MarkPhase) -> None:
        """Receive the cache, then generate the remaining tokens from it."""
        mark("receive")
        began_s = time.perf_counter()
        self.receive(arm)
        assert self._sink_model is not None
        mark("take over")
        self._sink_times = self._sink_model.run(began_s)
        self.generated = self._sink_times.tokens

    def record(self, arm: Arm, iteration_id: IterationId) -> RecordedIteration:
        """Write what was received, and the times from the last byte to the last token."""
        recorded_iteration = self.record_received(arm, iteration_id)
        times = self._sink_times
        self.rank_at_point.write(
            records.HandoverAtSink(
                **iteration_id,
                waited_ms=times.waited_ms,
                first_ms=times.first_ms,
                token_ms=times.later_step_ms,
            )
        )
        return recorded_iteration


class SinkModel:
    """A sink's model, which goes on over the caches that its receivers have filled.

    Args:
        caches: those that the sources' keys and values arrive in, one per microbatch.
    """

    def __init__(self, sink: Sink, caches: list[KVCache]) -> None:
        worker_view, model = sink.worker_view, sink.model
        context = sink.rank_at_point.context
        plan, collectives = context.plan, context.collectives
        assert model is not None
        assert collectives is not None
        # Prompts are cut into this side's microbatches, which may be larger than the sources'.
        sink_point = replace(worker_view.point, ubatch_size=worker_view.sizes.ubatch_size)
        self._prompts = make_prompts(
            sink_point, worker_view.microbatch_count, plan.experiment.seed, plan.prompts
        )
        steps = make_steps(model, caches, self._prompts, plan.sampling)
        prompts = [prompt.tokens for prompt in self._prompts]
        self._maker = choose_ranged_maker(plan.experiment, BatchMaker, RangedBatchMaker)(
            model=model,
            steps=steps,
            collectives=collectives,
            prompts=prompts,
            output_len=worker_view.point.output_len,
        )
        self._worker_view = worker_view
        self._point = worker_view.point
        self._comm = context.comms.handover
        self._silent_streams: list[MicrobatchStream] = [NoStreaming() for _ in caches]

    def run(self, began_s: float) -> SinkModelTimes:
        """Generate the other tokens, once this sink's cache is whole.

        Args:
            began_s: the beginning of the iteration, by ``perf_counter``.
        """
        topology = self._worker_view.topology
        point = self._point
        clocks = self._maker.make_clocks()
        if topology.rank in find_token_receivers(topology):
            self._receive_tokens(clocks)
        ready_s = time.perf_counter()
        # Decode step k consumes token k − 1. So step `generated` consumes the sources' last token,
        # and gives the sinks' first one. It is step_ms[0] below, hence the [1:].
        self._maker.decode(
            clocks,
            self._silent_streams,
            point.generated_token_count,
            point.generated_token_count + 1,
        )
        first_token_s = time.perf_counter()
        if topology.rank == find_first_answerer(topology):
            self._comm.Send(bytearray(1), find_token_sender(topology), _GOES_ON_TAG)
        self._maker.decode(
            clocks, self._silent_streams, point.generated_token_count + 1, point.output_len
        )
        later_step_ms = np.sum([clock.step_ms[1:] for clock in clocks], axis=0).tolist()
        return SinkModelTimes(
            (ready_s - began_s) * 1e3,
            (first_token_s - ready_s) * 1e3,
            later_step_ms,
            self._list_new_tokens(clocks),
        )

    def _receive_tokens(self, clocks: list[MicrobatchClock]) -> None:
        """Put the sources' tokens where this stage would have put its own."""
        point = self._point
        source_tokens = torch.empty(
            point.request_count, point.generated_token_count, dtype=torch.long
        )
        message = self._comm.Irecv(
            source_tokens.numpy(), find_token_sender(self._worker_view.topology), _TOKENS_TAG
        )
        wait_asleep(message.Test, "the sources' tokens")
        for clock, prompts in zip(clocks, self._prompts, strict=True):
            # By the requests' numbers: this side may cut them into other microbatches.
            clock.tokens = list(source_tokens[prompts.request_numbers].unbind(1))

    def _list_new_tokens(self, clocks: list[MicrobatchClock]) -> torch.Tensor:
        new_count = self._point.output_len - self._point.generated_token_count
        if len(clocks[0].tokens) < new_count:
            return torch.empty(0)
        return torch.cat([torch.stack(clock.tokens[-new_count:], dim=1) for clock in clocks])
