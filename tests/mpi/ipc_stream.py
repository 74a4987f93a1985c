"""Stream two microbatches into another process's GPU memory, for test_cuda_ipc.py with 2 ranks.

``ipc_stream.py SOURCE [--one-gpu] [--overtake]``: SOURCE is the rank of the source. Both ranks
share one GPU, or flags overtake the copies that they announce.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from mpi4py import MPI
from nccl_pair import make_streams, random_cache, select_device

from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.destinations.cuda_ipc import CudaIPCDestination, CudaIPCSinkEndpoint
from dejavubench.dejavulib.destinations.peers.puts import CudaPuts
from dejavubench.dejavulib.kv_cache import BOTH, KVCache, KVGeometry, KVLayout, Span
from dejavubench.dejavulib.levels import LEVELS, Level
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.packing import device_staging
from dejavubench.dejavulib.receiver import CacheReceiver, largest_chunk, receive_all
from dejavubench.dejavulib.schedule import DEVICE_SLOT_COUNT
from dejavubench.dejavulib.streamer import Streamer
from dejavubench.parallel.collectives import sleeping_barrier

INPUT_LEN, STEPS, UNUSED = 33, 4, 3
SLOTS = (1 << 16, 1 << 12)
"""Staging that holds layers whole, and that forces cuts along requests and positions."""

MICROBATCHES = 2
BUSY_CYCLES, LATE_CYCLES = 5_000_000, 500_000_000
"""Cycles that keep the model's stream busy, and by which copies come late with ``--overtake``."""


class LatePuts(CudaPuts):
    """Puts whose copies come long after the flags that announce them."""

    def put_prepared(self, prepared: Any, cuda_stream_handle: int) -> None:
        super().put_prepared(prepared, self._late_handle())

    def put(
        self, source_address: int, target_address: int, nbytes: int, cuda_stream_handle: int
    ) -> None:
        super().put(source_address, target_address, nbytes, self._late_handle())

    def _late_handle(self) -> int:
        stream = torch.cuda.Stream(self._device)
        with torch.cuda.stream(stream):
            torch.cuda._sleep(LATE_CYCLES)
        return stream.cuda_stream


def send(
    streamer: Streamer,
    level: Level,
    streams: Sequence[list[Stream]],
    truth: Sequence[KVCache],
    caches: Sequence[KVCache],
    comm: MPI.Intracomm,
) -> None:
    """Let a model write the truth into each cache, all of whose streams leave meanwhile."""
    managers = [
        CacheManager(cache, of_cache, level, streamer)
        for cache, of_cache in zip(caches, streams, strict=True)
    ]
    for slot in streamer.staging():
        slot.fill_(0x61)
    for cache, manager in zip(caches, managers, strict=True):
        cache.fill(0x51)
        manager.begin()
    sleeping_barrier(comm)
    for step in range(STEPS + 1):
        span = streams[0][0].schedule.positions(step)
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
    endpoint: CudaIPCSinkEndpoint,
    level: Level,
    streams: Sequence[tuple[KVCache, Stream]],
    slots: Sequence[Sequence[torch.Tensor]],
    comm: MPI.Intracomm,
) -> None:
    """Receive every stream into its cache; several may fill one."""
    receivers = [
        CacheReceiver(cache, stream, level, endpoint, own_slots)
        for (cache, stream), own_slots in zip(streams, slots, strict=True)
    ]
    for (cache, _), receiver in zip(streams, receivers, strict=True):
        cache.fill(0x31)
        for slot in receiver.slots:
            slot.fill_(0x41)
    for receiver in receivers:
        receiver.begin()
    sleeping_barrier(comm)
    receive_all(reversed(receivers))
    endpoint.finish()


def find_difference(cache: KVCache, truth: KVCache, level: Level) -> str | None:
    """Return where a cache differs from what was sent and from the fill behind it, or None."""
    geometry = cache.geometry
    expected = KVCache.allocate(geometry, torch.int16, cache.k.device)
    expected.fill(0x31)
    region = geometry.region(positions=Span(0, INPUT_LEN + STEPS))
    for kv in BOTH:
        expected.piece(kv, region).copy_(truth.piece(kv, region))
        wrong = torch.nonzero(cache.tensor(kv) != expected.tensor(kv))
        if len(wrong):
            return (
                f"{geometry.layout} level {level.name}: {kv} differs, first at {wrong[0].tolist()}"
            )
    return None


def connect_sink(
    comm: MPI.Intracomm, sources: Sequence[int], streams: Sequence[tuple[KVCache, Stream]]
) -> tuple[CudaIPCSinkEndpoint, list[list[torch.Tensor]]]:
    """Share the caches and slots of all streams; return the slots of each."""
    caches = {id(cache): cache for cache, _ in streams}.values()
    slots = [
        device_staging(largest_chunk(stream), DEVICE_SLOT_COUNT, cache.k.device)
        for cache, stream in streams
    ]
    memory = [part for cache in caches for part in (cache.k, cache.v)]
    memory += [part for of_stream in slots for part in of_stream]
    return CudaIPCSinkEndpoint.connect(comm, sources, memory, streams), slots


def main(source: int, one_gpu: bool, overtake: bool) -> None:
    world = MPI.COMM_WORLD
    comm = world.Dup()
    device = select_device(world, one_gpu)
    peer = 1 - world.rank
    layouts = [KVLayout.HND] if overtake else list(KVLayout)
    levels = [LEVELS["3"]] if overtake else list(LEVELS.values())
    count, difference = 0, None
    for number, layout in enumerate(layouts):
        geometry = KVGeometry(
            layers=3,
            requests=2,
            heads=4,
            positions=INPUT_LEN + STEPS + UNUSED,
            head_size=32,
            itemsize=2,
            layout=layout,
        )
        truth = [
            random_cache(geometry, device, 10 * number + microbatch)
            for microbatch in range(MICROBATCHES)
        ]
        for slot in SLOTS[:1] if overtake else SLOTS:
            group = make_streams(geometry, peer, INPUT_LEN, STEPS, slot, MICROBATCHES)
            caches = [KVCache.allocate(geometry, torch.int16, device) for _ in group]
            if world.rank == source:
                destination = CudaIPCDestination.connect(
                    comm, [peer], device, 30.0, LatePuts if overtake else CudaPuts
                )
                streamer = Streamer(destination, device_staging(max(SLOTS), 3, device))
                for level in levels:
                    send(streamer, level, [[stream] for stream in group], truth, caches, comm)
                streamer.close()
            else:
                streams = list(zip(caches, group, strict=True))
                endpoint, slots = connect_sink(comm, [peer], streams)
                for level in levels:
                    receive(endpoint, level, streams, slots, comm)
                    for cache, expected in zip(caches, truth, strict=True):
                        difference = difference or find_difference(cache, expected, level)
                endpoint.close()
            count += len(levels)
            sleeping_barrier(comm)
    differences = comm.allgather(difference)
    if world.rank == 0:
        print(next((text for text in differences if text), f"{count} streams, all well"))


if __name__ == "__main__":
    main(int(sys.argv[1]), "--one-gpu" in sys.argv, "--overtake" in sys.argv)
