"""Stream between one whole cache and its two halves, for test_cuda_ipc.py with 3 ranks.

``ipc_halves.py to-halves|to-whole requests|heads``: rank 0 has the whole cache; ranks 1 and 2 have
half of its requests, or of its heads, each. Ranks share GPUs if there are fewer than 3.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from ipc_stream import INPUT_LEN, STEPS, UNUSED, connect_sink, find_difference, receive, send
from mpi4py import MPI
from nccl_pair import random_cache

from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.destinations.cuda_ipc import CudaIPCDestination
from dejavubench.dejavulib.kv_cache import BOTH, KVCache, KVGeometry, KVLayout, Region, Span
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.packing import device_staging
from dejavubench.dejavulib.schedule import StreamSchedule
from dejavubench.dejavulib.streamer import Streamer
from dejavubench.parallel.collectives import sleeping_barrier

WHOLE_RANK, HALF_RANKS = 0, (1, 2)
SLOTS = (1 << 18, 1 << 13)
"""Staging that holds layers whole, and that forces cuts along requests and positions."""


class Halves:
    """A cache that is cut in two, along requests or heads.

    Attributes:
        whole, half: the geometries.
    """

    def __init__(self, layout: KVLayout, cut: str) -> None:
        self._cut = cut
        self.whole = KVGeometry(
            layers=3,
            requests=4,
            heads=4,
            positions=INPUT_LEN + STEPS + UNUSED,
            head_size=64,
            itemsize=2,
            layout=layout,
        )
        self.half = replace(self.whole, **{cut: getattr(self.whole, cut) // 2})

    def region(self, index: int) -> Region:
        """Return the place of one half in the whole."""
        size = getattr(self.half, self._cut)
        return self.whole.region(**{self._cut: Span(index * size, (index + 1) * size)})

    def take_half(self, cache: KVCache, index: int) -> KVCache:
        """Return a copy of one half of a whole cache."""
        half = KVCache.allocate(self.half, torch.int16, cache.k.device)
        for kv in BOTH:
            half.piece(kv, self.half.whole).copy_(cache.piece(kv, self.region(index)))
        return half

    def streams(self, rank: int, slot: int) -> list[Stream]:
        """Return the streams of one rank, in the coordinates of its own cache."""

        def schedule(own: KVGeometry, region: Region, other: KVGeometry) -> StreamSchedule:
            return StreamSchedule(own, region, INPUT_LEN, STEPS, slot, other)

        if rank != WHOLE_RANK:
            return [Stream(0, schedule(self.half, self.half.whole, self.whole), WHOLE_RANK)]
        return [
            Stream(0, schedule(self.whole, self.region(index), self.half), half_rank)
            for index, half_rank in enumerate(HALF_RANKS)
        ]


def main(direction: str, cut: str) -> None:
    world = MPI.COMM_WORLD
    comm = world.Dup()
    device = torch.device("cuda", world.rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    is_whole = world.rank == WHOLE_RANK
    is_source = is_whole == (direction == "to-halves")
    count, difference = 0, None
    for seed, layout in enumerate(KVLayout):
        halves = Halves(layout, cut)
        truth = random_cache(halves.whole, device, seed)
        if not is_whole:
            truth = halves.take_half(truth, HALF_RANKS.index(world.rank))
        cache = KVCache.allocate(truth.geometry, torch.int16, device)
        for slot in SLOTS:
            streams = halves.streams(world.rank, slot)
            peers = [stream.peer_rank for stream in streams]
            if is_source:
                destination = CudaIPCDestination.connect(comm, peers, device, 30.0)
                streamer = Streamer(destination, device_staging(slot, 3, device))
                for level in LEVELS.values():
                    send(streamer, level, [streams], [truth], [cache], comm)
                streamer.close()
            else:
                arriving = [(cache, stream) for stream in streams]
                endpoint, slots = connect_sink(comm, peers, arriving)
                for level in LEVELS.values():
                    receive(endpoint, level, arriving, slots, comm)
                    difference = difference or find_difference(cache, truth, level)
                endpoint.close()
            count += len(LEVELS)
            sleeping_barrier(comm)
    differences = comm.allgather(difference)
    if world.rank == 0:
        print(next((text for text in differences if text), f"{count} streams, all well"))


if __name__ == "__main__":
    main(*sys.argv[1:])
