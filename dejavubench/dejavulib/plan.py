"""``stream_out`` / ``stream_in``: which parts of the cache go to, or come from, which worker.

Pure: intervals in, intervals out; no tensors and no communication. The two sides may differ in pipeline
depth, tensor-parallel degree and microbatch size. A transfer is the intersection of what one worker holds
with what another one needs, so each element goes to exactly one place and transfers are as large as the
cuts of the two sides allow.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from dejavubench.kvcache import Region, Span


@dataclass(frozen=True)
class Setup:
    """Pipeline depth, tensor-parallel degree and microbatch size of one side.

    Attributes:
        layer_cuts: boundaries of the pipeline stages, beginning with 0: ``(0, 7, 13)`` is two stages.
        heads: KV heads of the whole model.
        tensor_parallel: workers that share the heads of one stage.
        ubatch_size: requests of one microbatch; request r is the ``r % ubatch_size``-th of
            microbatch ``r // ubatch_size``.

    Raises:
        ValueError: cuts that do not rise from 0, or heads that the workers cannot share evenly.
    """

    layer_cuts: tuple[int, ...]
    heads: int
    tensor_parallel: int = 1
    ubatch_size: int = 1

    def __post_init__(self) -> None:
        cuts = self.layer_cuts
        if len(cuts) < 2 or cuts[0] != 0 or any(a >= b for a, b in pairwise(cuts)):
            raise ValueError(f"layer cuts must rise from 0: {cuts}")
        if self.tensor_parallel < 1 or self.heads % self.tensor_parallel:
            raise ValueError(f"{self.heads} KV heads cannot be shared evenly by {self.tensor_parallel} workers")
        if self.ubatch_size < 1:
            raise ValueError(f"a microbatch needs at least one request, not {self.ubatch_size}")

    @property
    def stages(self) -> int:
        return len(self.layer_cuts) - 1

    @property
    def workers(self) -> int:
        """Worker ``stage · tensor_parallel + tensor_rank`` holds one stage's share of the heads."""
        return self.stages * self.tensor_parallel

    def layers(self, worker: int) -> Span:
        stage = worker // self.tensor_parallel
        return Span(self.layer_cuts[stage], self.layer_cuts[stage + 1])

    def heads_of(self, worker: int) -> Span:
        share = self.heads // self.tensor_parallel
        first = worker % self.tensor_parallel * share
        return Span(first, first + share)

    def ubatches(self, requests: Span) -> range:
        """Numbers of the microbatches that hold some of ``requests``."""
        if not requests.size:
            return range(0)
        return range(requests.start // self.ubatch_size, (requests.stop - 1) // self.ubatch_size + 1)

    def part(self, worker: int, ubatch: int, positions: Span) -> Region:
        """What a worker holds of one microbatch, in the coordinates of the whole model and all requests."""
        first = ubatch * self.ubatch_size
        return Region(self.layers(worker), Span(first, first + self.ubatch_size), self.heads_of(worker), positions)


@dataclass(frozen=True)
class Transfer:
    """A region that moves between two workers; each side's region is in its own local coordinates."""

    source: int
    source_ubatch: int
    source_region: Region
    target: int
    target_ubatch: int
    target_region: Region


def stream_out(source: Setup, target: Setup, worker: int, region: Region) -> list[Transfer]:
    """What ``worker`` of the source side sends, to whom, for a region of the whole model's cache.

    Args:
        region: in global coordinates: layers and heads of the model, requests over all microbatches.

    Raises:
        ValueError: the two sides do not have the same layers and heads.
    """
    return [t for t in _transfers(source, target, region) if t.source == worker]


def stream_in(source: Setup, target: Setup, worker: int, region: Region) -> list[Transfer]:
    """What ``worker`` of the target side receives, from whom: the mirror image of :func:`stream_out`."""
    return [t for t in _transfers(source, target, region) if t.target == worker]


def _transfers(source: Setup, target: Setup, region: Region) -> list[Transfer]:
    if source.layer_cuts[-1] != target.layer_cuts[-1] or source.heads != target.heads:
        raise ValueError(
            f"the two sides hold different models: {source.layer_cuts[-1]} layers × {source.heads} heads and "
            f"{target.layer_cuts[-1]} × {target.heads}"
        )
    transfers = []
    for sender in range(source.workers):
        for receiver in range(target.workers):
            for out_ubatch in source.ubatches(region.requests):
                held = source.part(sender, out_ubatch, region.positions) & region
                for in_ubatch in target.ubatches(held.requests):
                    needed = target.part(receiver, in_ubatch, region.positions)
                    common = held & needed
                    if common.tokens_heads:
                        transfers.append(
                            Transfer(
                                sender,
                                out_ubatch,
                                _local(common, source.part(sender, out_ubatch, region.positions)),
                                receiver,
                                in_ubatch,
                                _local(common, needed),
                            )
                        )
    return transfers


def _local(region: Region, part: Region) -> Region:
    """``region`` counted from where ``part`` begins (positions stay as they are)."""
    return Region(
        region.layers.shifted(-part.layers.start),
        region.requests.shifted(-part.requests.start),
        region.heads.shifted(-part.heads.start),
        region.positions,
    )
