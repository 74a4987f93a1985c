"""``stream_out`` / ``stream_in``: which parts of the cache go to, or come from, which worker.

Pure: intervals in, intervals out; no tensors and no communication. The two sides may differ in
pipeline depth, tensor-parallel degree and microbatch size. Two workers exchange the intersection of
what one holds with what the other needs. So each element goes to exactly one place, and regions are
as few and as large as the cuts of the two sides allow.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from .regions import Region, Span


@dataclass(frozen=True)
class Setup:
    """The setup of one side, for one model: pipeline, tensor parallelism and microbatch size.

    Attributes:
        layer_cuts: boundaries of the pipeline stages from 0 on; ``(0, 7, 13)`` is two stages.
        heads: KV heads of the whole model.
        tensor_parallel: workers that share the heads of one stage.
        microbatch_size: requests of one microbatch. Request r is number ``r % microbatch_size`` of
            microbatch ``r // microbatch_size``.

    Raises:
        ValueError: cuts do not rise from 0, the workers cannot share the heads evenly, or the
            microbatch is empty.
    """

    layer_cuts: tuple[int, ...]
    heads: int
    tensor_parallel: int = 1
    microbatch_size: int = 1

    def __post_init__(self) -> None:
        cuts = self.layer_cuts
        if len(cuts) < 2 or cuts[0] != 0 or any(a >= b for a, b in pairwise(cuts)):
            raise ValueError(f"layer cuts must rise from 0: {cuts}")
        if self.tensor_parallel < 1 or self.heads % self.tensor_parallel:
            raise ValueError(
                f"{self.heads} KV heads cannot be shared evenly by {self.tensor_parallel} workers"
            )
        if self.microbatch_size < 1:
            raise ValueError(f"a microbatch needs at least one request, not {self.microbatch_size}")

    @property
    def stages(self) -> int:
        """Pipeline depth."""
        return len(self.layer_cuts) - 1

    @property
    def workers(self) -> int:
        """Number of workers; worker ``stage · tensor_parallel + rank`` has a share of a stage."""
        return self.stages * self.tensor_parallel

    def layers(self, worker: int) -> Span:
        """Return the layers of the whole model that a worker holds."""
        stage = worker // self.tensor_parallel
        return Span(self.layer_cuts[stage], self.layer_cuts[stage + 1])

    def heads_of(self, worker: int) -> Span:
        """Return the KV heads of the whole model that a worker holds."""
        share = self.heads // self.tensor_parallel
        start = worker % self.tensor_parallel * share
        return Span(start, start + share)

    def partners(self, other_setup: Setup, worker: int) -> list[int]:
        """Return this side's workers that share layers and heads with one of ``other_setup``."""
        layers = other_setup.layers(worker)
        heads = other_setup.heads_of(worker)
        head_count = self.heads // self.tensor_parallel
        # Found by bisection, so that plans of thousands of workers take no time.
        stages = range(
            bisect_right(self.layer_cuts, layers.start) - 1,
            bisect_left(self.layer_cuts, layers.stop),
        )
        ranks = range(heads.start // head_count, (heads.stop - 1) // head_count + 1)
        return [
            stage * self.tensor_parallel + rank
            for stage, rank in product(stages, ranks)
            if stage < self.stages and rank < self.tensor_parallel
        ]

    def microbatches(self, requests: Span) -> range:
        """Return the numbers of the microbatches that hold some of ``requests``."""
        if not requests.size:
            return range(0)
        return range(
            requests.start // self.microbatch_size, (requests.stop - 1) // self.microbatch_size + 1
        )

    def part_of_region(self, worker: int, region: Region) -> Region:
        """Return a worker's part of ``region``, in coordinates of the whole model."""
        return (
            Region(self.layers(worker), region.requests, self.heads_of(worker), region.positions)
            & region
        )

    def part_of_microbatch(self, worker: int, microbatch: int, positions: Span) -> Region:
        """Return a worker's part of one microbatch, in coordinates of the whole model."""
        start = microbatch * self.microbatch_size
        return Region(
            self.layers(worker),
            Span(start, start + self.microbatch_size),
            self.heads_of(worker),
            positions,
        )


@dataclass(frozen=True)
class RegionPair:
    """The same part of the cache on two workers: it moves from ``source`` to ``target``.

    Each side's region is in that worker's own coordinates, for one microbatch of that side.
    """

    source: int
    source_microbatch: int
    source_region: Region
    target: int
    target_microbatch: int
    target_region: Region


@dataclass(frozen=True)
class Exchange:
    """Everything that one worker sends to one other.

    Attributes:
        region: the part that both hold, in coordinates of the whole model and all requests.
        pairs: pieces of the region, one per pair of microbatches that have requests in common.
    """

    source: int
    target: int
    region: Region
    pairs: tuple[RegionPair, ...]


def stream_out(source: Setup, target: Setup, worker: int, region: Region) -> list[RegionPair]:
    """Return the regions that ``worker`` of the source side sends, with their targets.

    Args:
        region: layers and heads of the whole model, requests over all microbatches.

    Raises:
        ValueError: the two sides do not have the same layers and heads.
    """
    return _find_pairs(source, target, region, [worker], range(target.workers))


def stream_in(source: Setup, target: Setup, worker: int, region: Region) -> list[RegionPair]:
    """Return the regions that ``worker`` of the target side receives, with their sources."""
    return _find_pairs(source, target, region, range(source.workers), [worker])


def exchanges(source: Setup, target: Setup, region: Region) -> list[Exchange]:
    """Return all exchanges between two sides, sources outermost, without empty ones.

    Raises:
        ValueError: the two sides do not have the same layers and heads.
    """
    by_workers: dict[tuple[int, int], list[RegionPair]] = {}
    for sender in range(source.workers):
        for region_pair in _find_pairs(
            source, target, region, [sender], target.partners(source, sender)
        ):
            by_workers.setdefault((region_pair.source, region_pair.target), []).append(region_pair)
    return [
        Exchange(
            sender,
            receiver,
            source.part_of_region(sender, region) & target.part_of_region(receiver, region),
            tuple(pairs),
        )
        for (sender, receiver), pairs in by_workers.items()
    ]


def _find_pairs(
    source: Setup, target: Setup, region: Region, senders: Sequence[int], receivers: Sequence[int]
) -> list[RegionPair]:
    """Return the pairs between these workers, by sender, receiver and microbatches of both."""
    if source.layer_cuts[-1] != target.layer_cuts[-1] or source.heads != target.heads:
        raise ValueError(
            f"the two sides hold different models: {source.layer_cuts[-1]} layers × "
            f"{source.heads} heads and {target.layer_cuts[-1]} × {target.heads}"
        )
    source_parts = {worker: source.part_of_region(worker, region) for worker in senders}
    target_parts = {worker: target.part_of_region(worker, region) for worker in receivers}
    pairs: list[RegionPair] = []
    for (sender, source_part), (receiver, target_part) in product(
        source_parts.items(), target_parts.items()
    ):
        common_region = source_part & target_part
        if common_region.tokens_heads:
            pairs += _cut_pieces(source, target, sender, receiver, common_region)
    return pairs


def _cut_pieces(
    source: Setup, target: Setup, sender: int, receiver: int, common_region: Region
) -> Iterator[RegionPair]:
    """Yield the regions that two workers share, cut by the microbatches of both."""
    # The sides may cut the requests into microbatches of different sizes: each piece lies in one
    # microbatch of both.
    for out_microbatch in source.microbatches(common_region.requests):
        source_part = source.part_of_microbatch(sender, out_microbatch, common_region.positions)
        for in_microbatch in target.microbatches(common_region.requests & source_part.requests):
            target_part = target.part_of_microbatch(
                receiver, in_microbatch, common_region.positions
            )
            shared_region = common_region & source_part & target_part
            yield RegionPair(
                source=sender,
                source_microbatch=out_microbatch,
                source_region=_to_local(shared_region, source_part),
                target=receiver,
                target_microbatch=in_microbatch,
                target_region=_to_local(shared_region, target_part),
            )


def _to_local(region: Region, worker_region: Region) -> Region:
    """Return ``region`` counted from where ``worker_region`` begins; positions stay as they are."""
    # Workers share out layers, heads and requests, never positions.
    return Region(
        region.layers.shift(-worker_region.layers.start),
        region.requests.shift(-worker_region.requests.start),
        region.heads.shift(-worker_region.heads.start),
        region.positions,
    )
