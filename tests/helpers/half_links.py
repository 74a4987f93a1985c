"""Two sources of half of the heads each, and one sink of cuda-ipc, over memory alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.destinations.cuda_ipc import CudaIPCDestination, CudaIPCSinkEndpoint
from dejavubench.dejavulib.destinations.peers.pairs import PairedSource
from dejavubench.dejavulib.kv_cache import KVCache, KVGeometry, Region, Span
from dejavubench.dejavulib.levels import Level
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.packing import staging
from dejavubench.dejavulib.receiver import CacheReceiver, receive_all
from dejavubench.dejavulib.schedule import StreamSchedule
from dejavubench.dejavulib.streamer import Streamer
from helpers.caches import INTEGERS
from helpers.fake_destination import INPUT_LEN, PATIENCE, STEPS, WHOLE_LAYERS
from helpers.fake_puts import FakePuts, connect_ends


class HalfLink(NamedTuple):
    """A source that holds half of the heads, and what its sink has of it.

    Attributes:
        heads: its heads, in the sink's cache.
        cache, stream, manager: of the source.
        sink_stream, slots, source_end: of the sink.
    """

    heads: Span
    cache: KVCache
    stream: Stream
    manager: CacheManager
    sink_stream: Stream
    slots: list[torch.Tensor]
    source_end: PairedSource


def connect_half(
    rank: int,
    half: KVGeometry,
    target: KVCache,
    level: Level,
    start_streamer: Callable[[CudaIPCDestination, int, int], Streamer],
) -> HalfLink:
    """Connect a source of half of the heads to the sink of a whole cache, and begin."""
    whole, heads = target.geometry, Span(rank * half.heads, (rank + 1) * half.heads)
    sink_stream = Stream(0, half_schedule(whole, whole.region(heads=heads), half), peer=rank)
    slots = staging(WHOLE_LAYERS, 2)
    ends = connect_ends([(target, sink_stream)], slots, (rank, 2))
    streamer = start_streamer(CudaIPCDestination(FakePuts(), {2: ends.sink}), WHOLE_LAYERS, 2)
    stream = Stream(0, half_schedule(half, half.whole, whole), peer=2)
    cache = KVCache.allocate(half, INTEGERS[2])
    manager = CacheManager(cache, [stream], level, streamer, PATIENCE)
    manager.begin()
    return HalfLink(heads, cache, stream, manager, sink_stream, slots, ends.source)


@contextmanager
def receiving_halves(links: list[HalfLink], target: KVCache, level: Level) -> Iterator[None]:
    """Receive in a thread what sources send inside the context; hold that all of it has come."""
    endpoint = CudaIPCSinkEndpoint(
        {rank: link.source_end for rank, link in enumerate(links)}, torch.device("cpu")
    )
    receivers = [
        CacheReceiver(target, link.sink_stream, level, endpoint, link.slots) for link in links
    ]
    for receiver in receivers:
        receiver.begin()
    sink = threading.Thread(target=receive_all, args=(receivers,), daemon=True)
    sink.start()
    yield
    sink.join(PATIENCE)
    assert not sink.is_alive()


def half_schedule(geometry: KVGeometry, region: Region, other: KVGeometry) -> StreamSchedule:
    """Return one side's schedule of a stream between caches of other sizes."""
    return StreamSchedule(geometry, region, INPUT_LEN, STEPS, WHOLE_LAYERS, other)
