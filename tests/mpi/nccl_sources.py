"""Two sources stream to one sink by nccl's protocol, for test_nccl.py with 3 ranks.

``nccl_sources.py AHEAD``: the sink issues AHEAD receives before announcements. MPI's messages stand
in for NCCL's, so no GPU is needed: they, too, are matched by the order in which they are issued.
"""

from __future__ import annotations

import ctypes
import sys
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from mpi4py import MPI
from nccl_pair import make_streams, random_cache

from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.destinations.nccl import NCCLDestination, NCCLSinkEndpoint
from dejavubench.dejavulib.kv_cache import BOTH, KVCache, KVGeometry, KVLayout, Span
from dejavubench.dejavulib.levels import LEVELS, Level
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.packing import staging
from dejavubench.dejavulib.receiver import CacheReceiver, receive_all
from dejavubench.dejavulib.streamer import Streamer
from dejavubench.parallel.collectives import sleeping_barrier

SINK = 2
INPUT_LEN, STEPS, UNUSED = 9, 6, 2
SLOTS = (1 << 14, 1 << 9)
"""Staging that holds layers whole, and that forces cuts along requests and positions."""

MICROBATCHES = 3
"""One after another through the same streams, so that nothing may be left of the one before."""

CPU = torch.device("cpu")


class Mark:
    """A point in a link's work; what lies before it is done once ``query`` returns True."""

    def __init__(self, query: Callable[[], bool]) -> None:
        self.query = query


class MPILink:
    """One side of a link between two ranks. Its operations are done in order, as a stream's are."""

    def __init__(self, comm: MPI.Intracomm, peer: int) -> None:
        self._comm = comm
        self._peer = peer
        self._under_way: deque[Callable[[], bool]] = deque()
        self._issued_count = 0

    def send(self, address: int, nbytes: int) -> None:
        self._issue(self._comm.Isend([_memory(address, nbytes), MPI.BYTE], self._peer).Test)

    def recv(self, address: int, nbytes: int) -> None:
        self._issue(self._comm.Irecv([_memory(address, nbytes), MPI.BYTE], self._peer).Test)

    def follow(self, act: Callable[[], None]) -> None:
        """Call ``act`` behind everything issued so far."""

        def act_now() -> bool:
            act()
            return True

        self._issue(act_now)

    def group(self) -> AbstractContextManager[object]:
        return nullcontext()

    def mark_filled(self) -> Mark:
        return self.mark()

    def wait_for_mark(self, mark: Any) -> None:
        assert isinstance(mark, Mark)

    def side_cuda_stream(self) -> AbstractContextManager[object]:
        return nullcontext()

    def mark(self) -> Mark:
        return Mark(partial(self._is_done, self._issued_count))

    def synchronize(self) -> None:
        while not self.mark().query():
            pass

    def check(self) -> None:
        pass

    def abort(self) -> None:
        raise AssertionError("nothing fails in this job")

    def close(self) -> None:
        assert not self._under_way

    def _issue(self, is_done: Callable[[], bool]) -> None:
        self._under_way.append(is_done)
        self._issued_count += 1

    def _is_done(self, count: int) -> bool:
        while self._under_way and self._under_way[0]():
            self._under_way.popleft()
        return self._issued_count - len(self._under_way) >= count


class MPILinkEndpoint(NCCLSinkEndpoint):
    """The sink's side whose scatters come behind their receives, as a device's streams have it."""

    def __init__(self, comm: MPI.Intracomm, links: dict[int, MPILink], ahead: int) -> None:
        super().__init__(comm, links, 30.0, dict.fromkeys(links, ahead))
        self._links_by_peer = links

    def receive(
        self, stream: Stream, packed: torch.Tensor, scatter: Callable[[torch.Tensor], None]
    ) -> Any:
        link = self._links_by_peer[stream.peer_rank]
        return super().receive(stream, packed, lambda packed: link.follow(partial(scatter, packed)))


def _memory(address: int, nbytes: int) -> Any:
    return (ctypes.c_char * nbytes).from_address(address)


def send(
    streamer: Streamer, level: Level, stream: Stream, truth: list[KVCache], comm: MPI.Intracomm
) -> None:
    cache = KVCache.allocate(truth[0].geometry, torch.int16)
    manager = CacheManager(cache, [stream], level, streamer)
    for whole in truth:
        cache.fill(0x51)
        manager.begin()
        sleeping_barrier(comm)
        for step in range(STEPS + 1):
            span = stream.schedule.positions(step)
            for layer in range(whole.geometry.layers):
                k, v = (
                    part(layer, span.stop)[:, :, span.slice] for part in (whole.keys, whole.values)
                )
                cache.store(layer, span.start, k, v)
                if step == 0:
                    manager.layer_ready(layer)
            manager.step_ready(step)
        manager.drain()


def receive(
    endpoint: NCCLSinkEndpoint,
    level: Level,
    streams: list[Stream],
    truths: list[list[KVCache]],
    comm: MPI.Intracomm,
) -> None:
    """Receive each source's microbatches into a cache of its own, and compare every byte."""
    caches = [KVCache.allocate(truth[0].geometry, torch.int16) for truth in truths]
    receivers = [
        CacheReceiver(cache, stream, level, endpoint)
        for cache, stream in zip(caches, streams, strict=True)
    ]
    for microbatch in range(MICROBATCHES):
        for cache, receiver in zip(caches, receivers, strict=True):
            cache.fill(0x31)
            receiver.begin()
        sleeping_barrier(comm)
        receive_all(receivers)
        endpoint.finish()
        for cache, truth in zip(caches, truths, strict=True):
            expected = KVCache.allocate(cache.geometry, torch.int16)
            expected.fill(0x31)
            region = cache.geometry.region(positions=Span(0, INPUT_LEN + STEPS))
            for kv in BOTH:
                expected.piece(kv, region).copy_(truth[microbatch].piece(kv, region))
                assert torch.equal(cache.tensor(kv), expected.tensor(kv)), (level.name, kv)


def main(ahead: int) -> None:
    world = MPI.COMM_WORLD
    comm = world.Dup()  # for notifications
    geometry = KVGeometry(
        layers=3,
        requests=2,
        heads=2,
        positions=INPUT_LEN + STEPS + UNUSED,
        head_size=8,
        itemsize=2,
        layout=KVLayout.HND,
    )
    truths = [
        [
            random_cache(geometry, CPU, MICROBATCHES * source + number)
            for number in range(MICROBATCHES)
        ]
        for source in range(SINK)
    ]
    peers = range(SINK) if world.rank == SINK else [SINK]
    links = {peer: MPILink(world, peer) for peer in peers}
    if world.rank == SINK:
        endpoint = MPILinkEndpoint(comm, links, ahead)
    else:
        streamer = Streamer(NCCLDestination(comm, links, 30.0), staging(max(SLOTS), 3))
    for slot in SLOTS:
        for level in LEVELS.values():
            streams = [
                stream
                for peer in peers
                for stream in make_streams(geometry, peer, INPUT_LEN, STEPS, slot, count=1)
            ]
            if world.rank == SINK:
                receive(endpoint, level, streams, truths, world)
            else:
                send(streamer, level, streams[0], truths[world.rank], world)
    sleeping_barrier(world)
    if world.rank == SINK:
        endpoint.close()
        print("all well")
    else:
        streamer.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
