"""Stream from GPU to GPU in every layout and level, for test_nccl.py with 2 ranks.

``nccl_stream.py SOURCE AHEAD [--loopback | --refused]``: SOURCE is the rank of the source; the sink
issues AHEAD receives before announcements, of one microbatch, or of two if AHEAD is 0. The options
put both ranks on one GPU.
"""

from __future__ import annotations

import sys

import torch
from mpi4py import MPI
from nccl_pair import connect, make_streams, random_cache, select_device

from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.destinations.nccl import NCCLDestination, NCCLSinkEndpoint
from dejavubench.dejavulib.kv_cache import BOTH, KVCache, KVGeometry, KVLayout, Span
from dejavubench.dejavulib.levels import LEVELS, Level
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.packing import device_staging
from dejavubench.dejavulib.receiver import CacheReceiver, receive_all
from dejavubench.dejavulib.streamer import Streamer
from dejavubench.parallel.collectives import sleeping_barrier
from dejavubench.parallel.shared_gpus import SharedGpuError

INPUT_LEN, STEPS, UNUSED = 33, 4, 3
SLOTS = (1 << 16, 1 << 12)
"""Staging that holds layers whole, and that forces cuts along requests and positions."""

BUSY_CYCLES = 5_000_000
"""Cycles that keep the model's stream busy, so that chunks are announced long before they exist."""


def send(
    streamer: Streamer, level: Level, group: list[Stream], truth: list[KVCache], comm: MPI.Intracomm
) -> None:
    caches = [KVCache.allocate(cache.geometry, torch.int16, cache.k.device) for cache in truth]
    managers = [
        CacheManager(cache, [stream], level, streamer)
        for cache, stream in zip(caches, group, strict=True)
    ]
    for slot in streamer.staging():
        slot.fill_(0x61)
    for cache, manager in zip(caches, managers, strict=True):
        cache.fill(0x51)
        manager.begin()
    sleeping_barrier(comm)
    for step in range(STEPS + 1):
        span = group[0].schedule.positions(step)
        for expected, manager in zip(truth, managers, strict=True):
            for layer in range(expected.geometry.layers):
                torch.cuda._sleep(BUSY_CYCLES)
                k, v = (
                    part(layer, span.stop)[:, :, span.slice]
                    for part in (expected.keys, expected.values)
                )
                manager.cache.store(layer, span.start, k, v)
                if step == 0:
                    manager.layer_ready(layer)
            manager.step_ready(step)
    for manager in managers:
        manager.drain()


def receive(
    endpoint: NCCLSinkEndpoint,
    level: Level,
    group: list[Stream],
    truth: list[KVCache],
    comm: MPI.Intracomm,
) -> None:
    caches = [KVCache.allocate(cache.geometry, torch.int16, cache.k.device) for cache in truth]
    receivers = [
        CacheReceiver(cache, stream, level, endpoint)
        for cache, stream in zip(caches, group, strict=True)
    ]
    for cache, receiver in zip(caches, receivers, strict=True):
        cache.fill(0x31)
        for slot in receiver.slots:
            slot.fill_(0x41)
        receiver.begin()
    sleeping_barrier(comm)
    receive_all(reversed(receivers))
    endpoint.finish()
    written = Span(0, INPUT_LEN + STEPS)
    for cache, truth_of_cache in zip(caches, truth, strict=True):
        expected = KVCache.allocate(cache.geometry, torch.int16, cache.k.device)
        expected.fill(0x31)
        region = cache.geometry.region(positions=written)
        for kv in BOTH:
            expected.piece(kv, region).copy_(truth_of_cache.piece(kv, region))
            differing = torch.nonzero(cache.tensor(kv) != expected.tensor(kv))
            assert not len(differing), (
                f"{cache.geometry.layout} level {level.name}: {kv} differs, first at {differing[0]}"
            )


def main(source: int, ahead: int, one_gpu: bool, loopback: bool) -> None:
    microbatch_count = 1 if ahead else 2
    world = MPI.COMM_WORLD
    comm = world.Dup()
    device = select_device(world, one_gpu)
    try:
        link, loopback_facts = connect(world, device, source, loopback)
    except SharedGpuError as error:
        if world.rank == 0:
            print(error)
        return
    assert (loopback_facts is not None) == one_gpu
    peer = 1 - world.rank
    count = 0
    if world.rank == source:
        streamer = Streamer(
            NCCLDestination(comm, {peer: link}, 30.0), device_staging(max(SLOTS), 3, device)
        )
    else:
        endpoint = NCCLSinkEndpoint(comm, {peer: link}, 30.0, {peer: ahead})
    for number, layout in enumerate(KVLayout):
        geometry = KVGeometry(
            layers=3,
            requests=2,
            heads=4,
            positions=INPUT_LEN + STEPS + UNUSED,
            head_size=32,
            itemsize=2,
            layout=layout,
        )
        for slot in SLOTS:
            for level in LEVELS.values():
                group = make_streams(geometry, peer, INPUT_LEN, STEPS, slot, microbatch_count)
                truth = [
                    random_cache(geometry, device, 10 * number + microbatch)
                    for microbatch in range(microbatch_count)
                ]
                if world.rank == source:
                    send(streamer, level, group, truth, comm)
                else:
                    receive(endpoint, level, group, truth, comm)
                count += 1
    sleeping_barrier(comm)
    if world.rank == source:
        streamer.close()
    else:
        endpoint.close()
    sleeping_barrier(comm)
    if world.rank == 0:
        print(f"{count} streams, all well")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), len(sys.argv) > 3, "--loopback" in sys.argv)
