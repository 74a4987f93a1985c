"""A worker that runs the model at one point: model, caches, prompts and outgoing streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from dejavubench.bench.engine.batch_maker import BatchMaker, MarkPhase
from dejavubench.bench.engine.clock import MicrobatchClock
from dejavubench.bench.engine.microbatch_stream import MicrobatchStream, NoStreaming
from dejavubench.bench.engine.prompts import make_prompts
from dejavubench.bench.engine.steps import make_steps
from dejavubench.bench.point.rank import RankAtPoint
from dejavubench.bench.point.source_destinations import SourceDestinations
from dejavubench.bench.point.source_staging import SourceStaging
from dejavubench.bench.profiling.nvtx import choose_ranged_maker
from dejavubench.bench.profiling.ranged_maker import RangedBatchMaker
from dejavubench.config.arms import Arm
from dejavubench.dejavulib.kv_cache import KVCache
from dejavubench.models.gpt import GPT


class Source:
    """One worker that runs the model.

    Args:
        model: this worker's part, loaded.

    Attributes:
        caches: one per microbatch in flight.
        maker: the batch maker over these caches.
    """

    def __init__(self, rank_at_point: RankAtPoint, model: GPT) -> None:
        plan = rank_at_point.context.plan
        worker_view = rank_at_point.worker_view
        self.rank_at_point = rank_at_point
        self.worker_view = worker_view
        self.model = model
        self.caches = [
            KVCache.allocate(worker_view.geometry, model.dtype, model.device)
            for _ in range(worker_view.microbatch_count)
        ]
        self.prompts = make_prompts(
            worker_view.point, worker_view.microbatch_count, plan.experiment.seed, plan.prompts
        )
        self.maker = self.make_maker(self.caches)
        self.staging = SourceStaging(rank_at_point, self.caches[0])
        self.destinations = SourceDestinations(rank_at_point, self.caches, self.staging)
        self._silent_streams = [NoStreaming() for _ in self.caches]

    def make_maker(
        self,
        caches: Sequence[KVCache],
        before_step: Callable[[int, int], None] | None = None,
        rotating_caches: Sequence[KVCache] = (),
    ) -> BatchMaker:
        """Return a batch maker whose microbatches use ``caches``; see :class:`BatchMaker`.

        Args:
            rotating_caches: those that every microbatch takes in turn; empty if each keeps its own.
        """
        context = self.rank_at_point.context
        plan, collectives = context.plan, context.collectives
        assert collectives is not None
        steps = make_steps(self.model, caches, self.prompts, plan.sampling, rotating_caches)
        prompt_tokens = [prompt.tokens for prompt in self.prompts]
        return choose_ranged_maker(self.rank_at_point.experiment, BatchMaker, RangedBatchMaker)(
            self.model,
            steps,
            collectives,
            prompt_tokens,
            output_len=self.rank_at_point.point.output_len,
            before_step=before_step,
        )

    def run_undisturbed(self, mark: MarkPhase) -> list[MicrobatchClock]:
        """Run one iteration without streaming; its tokens are what every arm must give."""
        # The checks of every step are kept, which takes time, but nothing is measured yet.
        steps = self.maker.steps
        steps.keeps_all_checks = True
        clocks, _ = self.maker.run(self.make_silent_streams(), mark)
        steps.keeps_all_checks = False
        return clocks

    def microbatch_streams(self, arm: Arm, level_name: str | None) -> list[MicrobatchStream]:
        """Return the streaming of each microbatch in flight, to the arm's destination."""
        if level_name is None:
            return self.make_silent_streams()
        return list[MicrobatchStream](self.destinations.open_managers(arm, level_name))

    def make_silent_streams(self) -> list[MicrobatchStream]:
        """Return streams that stream nothing."""
        return list[MicrobatchStream](self._silent_streams)

    def prepare(self, arm: Arm, level_name: str | None, pattern: int) -> None:
        """Fill everything that the arm writes to with a pattern, outside the clock."""
        streams = self.microbatch_streams(arm, level_name)
        for cache in self.caches:
            cache.fill(pattern)
        # The streams begin before the fill: a destination has its buffers from then on.
        self.begin(streams)
        if level_name is not None:
            self.destinations.fill(arm, pattern)

    def begin(self, streams: Sequence[MicrobatchStream]) -> None:
        """Begin a microbatch on each stream, with its prompt where this stage embeds it."""
        for stream, prompt in zip(streams, self.prompts, strict=True):
            prompt_ids = prompt.tokens.numpy() if self.model.is_first_stage else None
            stream.begin(prompt_ids)

    @property
    def copy_ways(self) -> dict[str, str]:
        """The way that chunks left the device, by kind of chunk; empty on a CPU."""
        return self.destinations.ways

    def stream_alone(self, arm: Arm, level_name: str) -> float:
        """Send the arm's chunks with nothing computed; return the milliseconds until complete."""
        return self.destinations.stream_alone(arm, level_name)

    def write_tokens(self, generated_tokens: torch.Tensor) -> None:
        """Record, on rank 0, each request's prompt and its new tokens."""
        if self.worker_view.topology.rank == 0:
            prompt_ids = [prompt.without_padding() for prompt in self.prompts]
            self.rank_at_point.context.recorder.write_generated(
                self.rank_at_point.point.id, prompt_ids, generated_tokens
            )

    def close(self) -> None:
        """Close all destinations."""
        self.destinations.close()
