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
from nccl_pair import connect, make_streams, select_device

from dejavubench.dejavulib.destinations.nccl import NCCLDestination, NCCLSinkEndpoint
from dejavubench.dejavulib.kv_cache import KVCache, KVGeometry
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.packing import device_staging
from dejavubench.dejavulib.receiver import CacheReceiver, receive_all
from dejavubench.dejavulib.streamer import Streamer
from dejavubench.parallel.collectives import sleeping_barrier
from dejavubench.parallel.nccl_pairs import NCCLPair

CHUNK = 16 << 20
"""Bytes of a chunk."""

CHUNKS = 256
"""Chunks of a round."""

ROUNDS = 7
"""Rounds, of which the first only warms up."""

GEOMETRY = KVGeometry(layers=CHUNKS, requests=8, heads=16, positions=512, head_size=128, itemsize=1)
"""A layer is a chunk: 2 (K and V) · 8 requests · 16 heads · 512 positions · 128 elements."""


def bare_loop_s(
    link: NCCLPair, sends: bool, slots: list[torch.Tensor], world: MPI.Intracomm
) -> float:
    """Return the seconds of a bare loop over as many bytes as a round streams."""
    world.Barrier()
    began = time.perf_counter()
    for number in range(CHUNKS):
        (link.send if sends else link.recv)(slots[number % len(slots)].data_ptr(), CHUNK)
    link.synchronize()
    return time.perf_counter() - began


def main(loopback: bool, slot_counts: list[int]) -> None:
    world = MPI.COMM_WORLD
    device = select_device(world, loopback)
    for number in slot_counts:
        measure(world, device, number, loopback)


def measure(world: MPI.Intracomm, device: torch.device, slot_count: int, loopback: bool) -> None:
    """Run the bare loop and the stream in turns, and print both rates on rank 0."""
    comm = world.Dup()
    link, loopback_facts = connect(world, device, 0, loopback)
    peer = 1 - world.rank
    (stream,) = make_streams(GEOMETRY, peer, input_len=512, steps=0, slot=CHUNK, count=1)
    cache = KVCache.allocate(GEOMETRY, torch.uint8, device)
    slots = device_staging(CHUNK, slot_count, device)
    bare_s: list[float] = []
    streamed_s: list[float] = []
    if world.rank == 0:
        streamer = Streamer(NCCLDestination(comm, {peer: link}), slots)
        manager = CacheManager(cache, [stream], LEVELS["3"], streamer)
    else:
        endpoint = NCCLSinkEndpoint(comm, {peer: link})
        receiver = CacheReceiver(cache, stream, LEVELS["3"], endpoint, slots)
    sink_cpu_s = 0.0
    for _ in range(ROUNDS):
        bare_s.append(bare_loop_s(link, world.rank == 0, slots, world))
        if world.rank == 0:
            streamed_s.append(send_round_s(manager, world))
        else:
            sink_cpu_s += receive_round_cpu_s(receiver, endpoint, world)
    sleeping_barrier(world)
    cpu_s = streamer.cpu_seconds() if world.rank == 0 else sink_cpu_s
    chunk_us = [1e6 * seconds / ROUNDS / CHUNKS for seconds in world.allgather(cpu_s)]
    if world.rank == 0:
        way = f"loopback, {loopback_facts.loopback_kind}" if loopback_facts else "two GPUs"
        print(f"{torch.cuda.get_device_name(device)}, {way}: {rates_text(bare_s, streamed_s)}")
        print(
            f"  {slot_count} slots per side; CPU per chunk: "
            f"source {chunk_us[0]:.0f} µs, sink {chunk_us[1]:.0f} µs"
        )
        streamer.close()
    else:
        endpoint.close()


def send_round_s(manager: CacheManager, world: MPI.Intracomm) -> float:
    """Return the seconds in which all chunks are sent and acknowledged."""
    manager.begin()
    world.Barrier()
    began = time.perf_counter()
    for layer in range(CHUNKS):
        manager.layer_ready(layer)
    manager.drain()
    return time.perf_counter() - began


def receive_round_cpu_s(
    receiver: CacheReceiver, endpoint: NCCLSinkEndpoint, world: MPI.Intracomm
) -> float:
    """Return the CPU seconds in which all chunks are received."""
    receiver.begin()
    world.Barrier()
    cpu_s_before = time.process_time()
    receive_all([receiver])
    endpoint.finish()
    return time.process_time() - cpu_s_before


def rates_text(bare_s: list[float], streamed_s: list[float]) -> str:
    bare, streamed = (
        CHUNK * CHUNKS / median(seconds[1:]) / 1e9 for seconds in (bare_s, streamed_s)
    )
    return (
        f"bare loop {bare:.1f} GB/s, nccl destination {streamed:.1f} GB/s "
        f"({streamed / bare:.0%}); median of {ROUNDS - 1}, {CHUNKS} chunks of {CHUNK >> 20} MiB"
    )


if __name__ == "__main__":
    main("--loopback" in sys.argv, [int(word) for word in sys.argv[1:] if word.isdigit()] or [8])
