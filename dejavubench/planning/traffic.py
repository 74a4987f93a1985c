"""The traffic between two setups: bytes, extents, and the least time that a link takes for them.

Pure: sizes in, numbers out. Nothing is allocated, and neither torch nor MPI is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from math import lcm

from dejavubench.config.points import Point
from dejavubench.dejavulib.exchange import Exchange, RegionPair, Setup, exchanges
from dejavubench.dejavulib.kv_cache import BOTH, KVGeometry, Region, Span
from dejavubench.planning.setups import make_geometry
from dejavubench.units import format_count_of

MOST_REGION_PAIRS = 100_000
"""Most different region pairs that are computed one by one."""


@dataclass(frozen=True)
class LinkSpec:
    """A link of one worker's own, in each direction.

    Attributes:
        rate: bytes per second.
        latency_s: seconds until the first byte arrives.
    """

    rate: float
    latency_s: float = 0.0

    def compute_least_s(self, nbytes: int) -> float:
        """Return a lower bound: all bytes in one piece, at the full rate."""
        return nbytes / self.rate + self.latency_s if nbytes else 0.0


@dataclass(frozen=True)
class Volume:
    """Bytes, extents and region pairs that move.

    Attributes:
        region_pair_count: number of pairs of a source's region and the sink's region that it fills.
            Each step moves one position of every pair.
        prompt_nbytes, token_nbytes, total_nbytes: bytes of the prompt, of one position of all
            requests, and of all positions.
        prompt_extent_count, token_extent_count: pieces of the prompt, and of one position of all
            requests, that are contiguous in the caches of both sides; K and V of all layers.
        flush_nbytes, flush_extent_count: bytes and pieces of the tokens that move as one.
    """

    region_pair_count: int = 0
    prompt_nbytes: int = 0
    token_nbytes: int = 0
    total_nbytes: int = 0
    prompt_extent_count: int = 0
    token_extent_count: int = 0
    flush_nbytes: int = 0
    flush_extent_count: int = 0

    def __add__(self, other: Volume) -> Volume:
        return Volume(
            *(
                amount + other_amount
                for amount, other_amount in zip(astuple(self), astuple(other), strict=True)
            )
        )

    def repeat(self, count: int) -> Volume:
        """Return this volume repeated."""
        return Volume(*(count * amount for amount in astuple(self)))

    def compute_least_s(self, link: LinkSpec) -> tuple[float, float, float]:
        """Return the times of the prompt, of one token and of all, with the link to itself."""
        prompt_s, token_s, total_s = map(
            link.compute_least_s, (self.prompt_nbytes, self.token_nbytes, self.total_nbytes)
        )
        return prompt_s, token_s, total_s


@dataclass(frozen=True, kw_only=True)
class Flow:
    """The region pairs from one source to one sink, and their volume.

    Attributes:
        exchange: the region pairs of the first requests, up to the request at which microbatches of
            both sides begin together again.
        region: the part of all requests that moves, in the whole model's numbers.
        volume: bytes and extents of all requests.
        repeat_count: how many times the exchange makes the whole.
        microbatch_counts: microbatches of the source and of the sink in one exchange.
    """

    exchange: Exchange
    region: Region
    volume: Volume
    repeat_count: int
    microbatch_counts: tuple[int, int]

    def region_pairs(self) -> Iterator[RegionPair]:
        """Yield all region pairs, in the order of the source's microbatches."""
        source_microbatch_count, sink_microbatch_count = self.microbatch_counts
        for repeat in range(self.repeat_count):
            for pair in self.exchange.pairs:
                yield replace(
                    pair,
                    source_microbatch=pair.source_microbatch + repeat * source_microbatch_count,
                    target_microbatch=pair.target_microbatch + repeat * sink_microbatch_count,
                )


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """The flows between two setups.

    Attributes:
        point: the sizes of the sources' caches.
        request_count: number of requests of all microbatches in flight.
        flows: one per source and sink that share a part, sorted by source, then by sink.
    """

    point: Point
    source: Setup
    sink: Setup
    request_count: int
    flows: tuple[Flow, ...]

    @property
    def total(self) -> Volume:
        """Volume of all flows together."""
        return _sum_volumes(flow.volume for flow in self.flows)

    @cached_property
    def sent(self) -> dict[int, Volume]:
        """Volume that leaves each source."""
        return self._by_worker(lambda exchange: exchange.source)

    @cached_property
    def received(self) -> dict[int, Volume]:
        """Volume that reaches each sink."""
        return self._by_worker(lambda exchange: exchange.target)

    @cached_property
    def peers_of_sources(self) -> Counter[int]:
        """Number of sinks that each source sends to."""
        return Counter(flow.exchange.source for flow in self.flows)

    @cached_property
    def peers_of_sinks(self) -> Counter[int]:
        """Number of sources that each sink receives from."""
        return Counter(flow.exchange.target for flow in self.flows)

    @property
    def busiest_source(self) -> int:
        """The source that sends most; the first of several."""
        return max(self.sent, key=lambda worker_index: self.sent[worker_index].total_nbytes)

    @property
    def busiest_sink(self) -> int:
        """The sink that receives most; the first of several."""
        return max(self.received, key=lambda worker_index: self.received[worker_index].total_nbytes)

    def compute_least_s(self, link: LinkSpec) -> tuple[float, float, float]:
        """Return the times of the prompt, of one token and of all: those of the busiest worker."""
        busiest_volumes = (self.sent[self.busiest_source], self.received[self.busiest_sink])
        prompt_s, token_s, total_s = map(
            max, *(volume.compute_least_s(link) for volume in busiest_volumes)
        )
        return prompt_s, token_s, total_s

    def _by_worker(self, index_of: Callable[[Exchange], int]) -> dict[int, Volume]:
        volumes: dict[int, Volume] = {}
        for flow in self.flows:
            worker_index = index_of(flow.exchange)
            volumes[worker_index] = volumes.get(worker_index, Volume()) + flow.volume
        return dict(sorted(volumes.items()))


def plan_traffic(point: Point, source: Setup, sink: Setup, request_count: int) -> Traffic:
    """Return the traffic of all positions of ``request_count`` requests.

    Microbatches of the two sides begin together after every lcm of their sizes: the requests up to
    there are looked at, and repeat.

    Raises:
        ValueError: the two sides hold different models, the layout cannot hold the heads, or there
            are too many different region pairs to compute.
    """
    least_period = lcm(source.microbatch_size, sink.microbatch_size)
    # Sizes 2 and 3 repeat every 6 requests: 600 requests cost no more work than 6. Requests that
    # are no multiple end in a partial period, so they are computed whole.
    repeat_count = 1 if request_count % least_period else request_count // least_period
    period = request_count // repeat_count
    span_count = count_common_requests(source.microbatch_size, sink.microbatch_size, period)
    worker_pair_count = sum(len(sink.partners(source, worker)) for worker in range(source.workers))
    if span_count * worker_pair_count > MOST_REGION_PAIRS:
        raise ValueError(
            f"microbatches of {source.microbatch_size} and {sink.microbatch_size} requests and "
            f"{format_count_of(worker_pair_count, 'pair')} of workers make "
            f"{span_count * worker_pair_count:,} different region pairs; at most "
            f"{MOST_REGION_PAIRS:,} are planned"
        )
    whole_region = Region(
        Span(0, source.layer_cuts[-1]),
        Span(0, period),
        Span(0, source.heads),
        Span(0, point.written_position_count),
    )
    microbatch_counts = period // source.microbatch_size, period // sink.microbatch_size
    flows = tuple(
        Flow(
            exchange=exchange,
            region=replace(exchange.region, requests=Span(0, request_count)),
            volume=_sum_volumes(
                _make_volume(point, source, sink, pair) for pair in exchange.pairs
            ).repeat(repeat_count),
            repeat_count=repeat_count,
            microbatch_counts=microbatch_counts,
        )
        for exchange in exchanges(source, sink, whole_region)
    )
    return Traffic(point=point, source=source, sink=sink, request_count=request_count, flows=flows)


def count_common_requests(source_size: int, sink_size: int, request_count: int) -> int:
    """Return how many spans of ``request_count`` lie within one microbatch of each side.

    Args:
        source_size, sink_size: requests per microbatch of the two sides.
    """
    # Spans end where a microbatch of either side ends: ⌈n/source⌉ + ⌈n/sink⌉, less common ends.
    return (
        -(-request_count // source_size)
        - (-request_count // sink_size)
        + (-request_count // lcm(source_size, sink_size))
    )


def _make_volume(point: Point, source: Setup, sink: Setup, pair: RegionPair) -> Volume:
    """Return the volume of one region pair, all positions that are written."""
    source_cache = make_geometry(point, source, pair.source)
    sink_cache = make_geometry(point, sink, pair.target)

    def count_extents(positions: Span) -> int:
        return count_common_extents(
            source_cache, _narrow_to_positions(pair.source_region, positions), sink_cache
        )

    flushed_count = point.most_flushed_token_count
    # Equal at every position, so the first one stands for all.
    token_nbytes = source_cache.region_nbytes(_narrow_to_positions(pair.source_region, Span(0, 1)))
    return Volume(
        region_pair_count=1,
        prompt_nbytes=point.input_len * token_nbytes,
        token_nbytes=token_nbytes,
        total_nbytes=point.written_position_count * token_nbytes,
        prompt_extent_count=count_extents(Span(0, point.input_len)),
        token_extent_count=count_extents(Span(0, 1)),
        flush_nbytes=flushed_count * token_nbytes,
        flush_extent_count=count_extents(Span(0, flushed_count)) if flushed_count else 0,
    )


def count_common_extents(source: KVGeometry, region: Region, target: KVGeometry) -> int:
    """Return the pieces of a region of ``source`` that are contiguous in both caches, K and V."""
    # K and V have equal bytes but, in ft, other strides: so extents are counted for each.
    tensor_nbytes = source.region_nbytes(region) // len(BOTH)
    return sum(tensor_nbytes // source.rows(kv, region, target).nbytes for kv in BOTH)


def _narrow_to_positions(region: Region, positions: Span) -> Region:
    return Region(region.layers, region.requests, region.heads, positions)


def _sum_volumes(volumes: Iterable[Volume]) -> Volume:
    return sum(volumes, Volume())
