"""A worker that runs the model at one point: model, caches, prompts and outgoing streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from dejavubench.bench.batchmaker import BatchMaker, Mark, NoStreaming, Streamed
from dejavubench.bench.clock import MicrobatchClock
from dejavubench.bench.point.ends import Ends
from dejavubench.bench.point.outgoing import Outgoing, SourceStaging
from dejavubench.bench.point.prompts import make_prompts
from dejavubench.bench.point.steps import steps_of
from dejavubench.config.arms import Arm
from dejavubench.dejavulib.kvcache import KVCache
from dejavubench.models.gpt import GPT


class Source:
    """One worker that runs the model.

    Args:
        model: this worker's part, loaded.

    Attributes:
        caches: one per microbatch in flight.
        maker: the batch maker over these caches.
    """

    def __init__(self, ends: Ends, model: GPT) -> None:
        plan, side = ends.context.plan, ends.side
        self.ends = ends
        self.side = side
        self.model = model
        self.caches = [
            KVCache.allocate(side.geometry, model.dtype, model.device) for _ in range(side.ubatches)
        ]
        self.prompts = make_prompts(side.point, side.ubatches, plan.experiment.seed, plan.prompts)
        self.maker = self.maker_over(self.caches)
        self.staging = SourceStaging(ends, self.caches[0])
        self.outgoing = Outgoing(ends, self.caches, self.staging)
        self._silent = [NoStreaming() for _ in self.caches]

    def maker_over(
        self,
        caches: Sequence[KVCache],
        before_step: Callable[[int, int], None] | None = None,
    ) -> BatchMaker:
        """Return a batch maker whose microbatches use ``caches``; see :class:`BatchMaker`."""
        plan, workers = self.ends.context.plan, self.ends.context.workers
        assert workers is not None
        steps = steps_of(self.model, caches, self.prompts, plan.sampling)
        asked = [each.tokens for each in self.prompts]
        output_len = self.side.point.output_len
        return BatchMaker(self.model, steps, workers, asked, output_len, before_step)

    def undisturbed(self, mark: Mark) -> list[MicrobatchClock]:
        """Run one iteration without streaming; its tokens are what every arm must give."""
        self.maker.steps.thorough = True  # nothing is measured yet
        clocks, _ = self.maker.run(self.silent(), mark)
        self.maker.steps.thorough = False
        return clocks

    def streams(self, arm: Arm, level: str | None) -> list[Streamed]:
        """Return the streaming of each microbatch in flight, to the arm's destination."""
        if level is None:
            return self.silent()
        return list[Streamed](self.outgoing.managers(arm, level))

    def silent(self) -> list[Streamed]:
        """Return streams that stream nothing."""
        return list[Streamed](self._silent)

    def prepare(self, arm: Arm, level: str | None, pattern: int) -> None:
        """Fill everything that the arm writes to with a pattern, outside the clock."""
        streams = self.streams(arm, level)
        for cache in self.caches:
            cache.fill(pattern)
        self.begin(streams)
        if level is not None:
            self.outgoing.fill(arm, pattern)

    def begin(self, streams: Sequence[Streamed]) -> None:
        """Begin a microbatch on each stream, with its prompt where this stage embeds it."""
        for stream, prompt in zip(streams, self.prompts, strict=True):
            known = prompt.tokens.numpy() if self.model.shard.first else None
            stream.begin(known)

    def write_tokens(self, generated: torch.Tensor) -> None:
        """Record, on rank 0, each request's prompt and its new tokens."""
        if self.side.topology.rank == 0:
            asked = [each.unpadded() for each in self.prompts]
            self.ends.context.workspace.recorder.generated(self.side.point.id, asked, generated)

    def close(self) -> None:
        self.outgoing.close()
