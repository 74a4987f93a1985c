"""Measure the nccl destination beside a bare loop, by hand with 2 ranks.

``nccl_bandwidth.py [--loopback] [SLOTS …]`` streams chunks of 16 MiB of a cache in ``hnd`` at level
3, without a model: gather, send, scatter, acknowledgement.
"""

from __future__ import annotations

import sys
import time
from statistics import median

import torch
from mpi4py import MPI
from nccl_pair import connect, one_device_each, streams

from dejavubench.dejavulib.destinations.nccl import NCCLDestination, NCCLSinkEndpoint
from dejavubench.dejavulib.kv_cache import KVCache, KVGeometry
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.packing import device_staging
from dejavubench.dejavulib.receiver import CacheReceiver, receive_all
from dejavubench.dejavulib.streamer import Streamer
from dejavubench.parallel.collectives import sleeping_barrier
from dejavubench.parallel.nccl_pairs import NCCLPair

CHUNK, CHUNKS, ROUNDS = 16 << 20, 256, 7
GEOMETRY = KVGeometry(CHUNKS, 8, 16, 512, 128, 1)
"""A layer is a chunk: 2 (K and V) · 8 requests · 16 heads · 512 positions · 128 elements."""


def raw(link: NCCLPair, sends: bool, slots: list[torch.Tensor], world: MPI.Intracomm) -> float:
    """Seconds of a bare loop over as many bytes."""
    world.Barrier()
    began = time.perf_counter()
    for number in range(CHUNKS):
        (link.send if sends else link.recv)(slots[number % len(slots)].data_ptr(), CHUNK)
    link.synchronize()
    return time.perf_counter() - began


def main(loopback: bool, channels: list[int]) -> None:
    world = MPI.COMM_WORLD
    device = one_device_each(world, loopback)
    for number in channels:
        measure(world, device, number, loopback)


def measure(world: MPI.Intracomm, device: torch.device, number: int, loopback: bool) -> None:
    comm = world.Dup()
    link, found = connect(world, device, 0, loopback)
    peer = 1 - world.rank
    (stream,) = streams(GEOMETRY, peer, 512, 0, CHUNK, 1)
    cache = KVCache.allocate(GEOMETRY, torch.uint8, device)
    slots = device_staging(CHUNK, number, device)
    bare, streamed = [], []
    if world.rank == 0:
        streamer = Streamer(NCCLDestination(comm, {peer: link}), slots)
        manager = CacheManager(cache, [stream], LEVELS["3"], streamer)
    else:
        endpoint = NCCLSinkEndpoint(comm, {peer: link})
        receiver = CacheReceiver(cache, stream, LEVELS["3"], endpoint, slots)
    used = 0.0
    for _ in range(ROUNDS):
        bare.append(raw(link, world.rank == 0, slots, world))
        if world.rank == 0:
            manager.begin()
            world.Barrier()
            began = time.perf_counter()
            for layer in range(CHUNKS):
                manager.layer_ready(layer)
            manager.drain()
            streamed.append(time.perf_counter() - began)
        else:
            receiver.begin()
            world.Barrier()
            used -= time.process_time()
            receive_all([receiver])
            endpoint.finish()
            used += time.process_time()
    sleeping_barrier(world)
    used = streamer.cpu_seconds() if world.rank == 0 else used
    microseconds = [1e6 * seconds / ROUNDS / CHUNKS for seconds in world.allgather(used)]
    if world.rank == 0:
        rates = [CHUNK * CHUNKS / median(times[1:]) / 1e9 for times in (bare, streamed)]
        print(
            f"{torch.cuda.get_device_name(device)}, "
            f"{f'loopback, {found.way}' if found else 'two GPUs'}: "
            f"bare loop {rates[0]:.1f} GB/s, nccl destination {rates[1]:.1f} GB/s "
            f"({rates[1] / rates[0]:.0%}); median of {ROUNDS - 1}, {CHUNKS} chunks of "
            f"{CHUNK >> 20} MiB, {number} slots per side; CPU per chunk: "
            f"source {microseconds[0]:.0f} µs, sink {microseconds[1]:.0f} µs"
        )
        streamer.close()
    else:
        endpoint.close()


if __name__ == "__main__":
    main("--loopback" in sys.argv, [int(word) for word in sys.argv[1:] if word.isdigit()] or [8])
