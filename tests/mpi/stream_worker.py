"""The mpi destination and its sink in all layouts and levels, for test_streaming_mpi.py.

``stream_worker.py SOURCES,SPLIT,SOURCE_UBATCH,SINK_UBATCH …`` runs its cases one after another. The
first ranks are sources, the others sinks. The ranks of one side share the ``layers`` (pipeline
stages) or the ``heads`` (tensor parallel). The microbatch sizes of the two sides may differ. Every
rank knows the right cache of the whole model, so each sink checks every byte.
"""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import torch
from mpi4py import MPI

from dejavubench.dejavulib.destinations.base import Stream, StreamingError
from dejavubench.dejavulib.destinations.mpi import MPIDestination, MPISinkEndpoint
from dejavubench.dejavulib.exchange import Setup, stream_in, stream_out
from dejavubench.dejavulib.kv_cache import BOTH, KVCache, KVGeometry, KVLayout, Region, Span
from dejavubench.dejavulib.levels import LEVELS, Level
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.packing import staging
from dejavubench.dejavulib.receiver import CacheReceiver, receive_all
from dejavubench.dejavulib.schedule import StreamSchedule
from dejavubench.dejavulib.streamer import Streamer
from dejavubench.parallel.collectives import sleeping_barrier

LAYERS, HEADS, REQUESTS, HEAD_SIZE = 3, 2, 6, 8
INPUT_LEN, STEPS, UNUSED = 5, 3, 2
WRITTEN = INPUT_LEN + STEPS
WHOLE_LAYERS, CUT_LAYERS = 1 << 16, 200
"""Staging slots that hold layers whole, and those that force cuts along requests and positions."""


def geometry_of(setup: Setup, worker: int, layout: KVLayout) -> KVGeometry:
    layers, heads = setup.layers(worker).size, setup.heads_of(worker).size
    return KVGeometry(
        layers=layers,
        requests=setup.microbatch_size,
        heads=heads,
        positions=WRITTEN + UNUSED,
        head_size=HEAD_SIZE,
        itemsize=2,
        layout=layout,
    )


class Worker:
    """One rank's part in moving the whole model's cache for one layout, level and slot size."""

    def __init__(
        self,
        sides: tuple[Setup, Setup],
        comm: MPI.Intracomm,
        layout: KVLayout,
        level: Level,
        slot: int,
        flush_interval: int = 1,
    ):
        self.comm = comm
        self.level = level
        self.slot = slot
        source, target = sides
        self.is_source = comm.rank < source.workers
        self.setup = source if self.is_source else target
        self.worker = comm.rank if self.is_source else comm.rank - source.workers
        self.layers, self.heads = self.setup.layers(self.worker), self.setup.heads_of(self.worker)
        self.geometry = geometry_of(self.setup, self.worker, layout)
        microbatches = REQUESTS // self.setup.microbatch_size
        self.caches = [KVCache.allocate(self.geometry, torch.int16) for _ in range(microbatches)]
        self.streams: list[list[Stream]] = [[] for _ in range(microbatches)]
        between: Counter[int] = Counter()
        everything = Region(Span(0, LAYERS), Span(0, REQUESTS), Span(0, HEADS), Span(0, WRITTEN))
        pairs_of = stream_out if self.is_source else stream_in
        for pair in pairs_of(source, target, self.worker, everything):
            if self.is_source:
                peer = source.workers + pair.target
                microbatch, region = pair.source_microbatch, pair.source_region
                other_geometry = geometry_of(target, pair.target, layout)
            else:
                peer = pair.source
                microbatch, region = pair.target_microbatch, pair.target_region
                other_geometry = geometry_of(source, pair.source, layout)
            schedule = StreamSchedule(
                self.geometry, region, INPUT_LEN, STEPS, slot, other_geometry, flush_interval
            )
            self.streams[microbatch].append(Stream(between[peer], schedule, peer))
            between[peer] += 1

    def own_part(self, truth: np.ndarray, microbatch: int) -> torch.Tensor:
        """Return this worker's part of the truth [L, N, H, S, D], for one microbatch."""
        first_request = microbatch * self.setup.microbatch_size
        return torch.from_numpy(
            truth[
                self.layers.slice,
                first_request : first_request + self.setup.microbatch_size,
                self.heads.slice,
            ]
        )

    def send(self, truth: list[np.ndarray]) -> int:
        """Act as the model of every microbatch in turn; return the number of messages sent."""
        streamer = Streamer(MPIDestination(self.comm), staging(self.slot, 2))
        managers = [
            CacheManager(cache, streams, self.level, streamer, 60.0)
            for cache, streams in zip(self.caches, self.streams, strict=True)
        ]
        for cache, manager in zip(self.caches, managers, strict=True):
            cache.fill(0x77)
            manager.begin()
        sleeping_barrier(self.comm)
        for step in range(STEPS + 1):
            span = Span(0, INPUT_LEN) if step == 0 else Span(INPUT_LEN + step - 1, INPUT_LEN + step)
            for microbatch, (cache, manager) in enumerate(zip(self.caches, managers, strict=True)):
                k, v = (self.own_part(part, microbatch)[..., span.slice, :] for part in truth)
                for layer in range(self.layers.size):
                    cache.store(layer, span.start, k[layer], v[layer])
                    if step == 0:
                        manager.layer_ready(layer)
                manager.step_ready(step)
        for manager in managers:
            manager.drain()
            assert manager.lag_nbytes == 0
            nbytes = sum(stream.schedule.nbytes for stream in manager.streams)
            assert manager.prompt.nbytes + manager.tokens.nbytes == nbytes
        streamer.close()
        return sum(manager.prompt.copies + manager.tokens.copies for manager in managers)

    def receive(self, truth: list[np.ndarray], pattern: int) -> int:
        """Receive every microbatch and check it; return the number of messages received."""
        for cache in self.caches:
            cache.fill(pattern)
        endpoint = MPISinkEndpoint(self.comm)
        receivers = [
            CacheReceiver(cache, stream, self.level, endpoint)
            for cache, streams in zip(self.caches, self.streams, strict=True)
            for stream in streams
        ]
        for receiver in receivers:
            receiver.begin()
            assert not receiver.done
            assert receiver.expected.startswith(
                f"chunk 0 of {receiver.stream.schedule.count(self.level)} "
            )
        sleeping_barrier(self.comm)
        receive_all(receivers)
        endpoint.finish()
        for receiver in receivers:
            assert receiver.nbytes == receiver.stream.schedule.nbytes
        self.check(truth, pattern)
        return sum(receiver.messages for receiver in receivers)

    def check(self, truth: list[np.ndarray], pattern: int) -> None:
        unused = self.geometry.region(positions=Span(WRITTEN, WRITTEN + UNUSED))
        for microbatch, cache in enumerate(self.caches):
            k, v = (self.own_part(part, microbatch) for part in truth)
            for layer in range(self.layers.size):
                for kind, read, written in (("K", cache.keys, k), ("V", cache.values, v)):
                    places = torch.nonzero(read(layer, WRITTEN) != written[layer])
                    assert not len(places), (
                        f"{kind} of layer {layer} of microbatch {microbatch}: first at {places[0]}"
                    )
            for kv in BOTH:
                unused_bytes = cache.piece(kv, unused).contiguous().view(torch.uint8)
                assert (unused_bytes == pattern).all(), (
                    f"{kv} of microbatch {microbatch}: unused positions were written"
                )


def setup_of(workers: int, split: str, ubatch_size: int) -> Setup:
    if split == "heads":
        return Setup((0, LAYERS), HEADS, workers, ubatch_size)
    return Setup(
        {1: (0, LAYERS), 2: (0, 2, LAYERS)}[workers],
        heads=HEADS,
        tensor_parallel=1,
        microbatch_size=ubatch_size,
    )


def stream_all(sides: tuple[Setup, Setup], comm: MPI.Intracomm) -> int:
    """Stream every layout, level and slot size; return the number of messages.

    Two ranks also stream twice with other data, and then two steps at a time.
    """
    total = 0
    slots = [(WHOLE_LAYERS, 1, 1), (CUT_LAYERS, 2 if comm.size == 2 else 1, 1)]
    slots += [(WHOLE_LAYERS, 1, 2), (CUT_LAYERS, 1, 2)] if comm.size == 2 else []
    for number, layout in enumerate(KVLayout):
        for level in LEVELS.values():
            for slot, rounds, interval in slots:
                worker = Worker(sides, comm, layout, level, slot, interval)
                for repeat in range(rounds):
                    random = np.random.default_rng([number, repeat, slot])
                    shape = (LAYERS, REQUESTS, HEADS, WRITTEN, HEAD_SIZE)
                    truth = [random.integers(-(2**15), 2**15, shape, dtype=np.int16) for _ in BOTH]
                    sent_messages = worker.send(truth) if worker.is_source else 0
                    received = 0 if worker.is_source else worker.receive(truth, 0x20 + repeat)
                    counts = np.array(comm.allgather((sent_messages, received)))
                    assert counts[:, 0].sum() == counts[:, 1].sum() > 0, (
                        f"messages sent and received: {counts}"
                    )
                    total += int(counts[:, 0].sum())
    return total


def check_silent_sink(sides: tuple[Setup, Setup], comm: MPI.Intracomm) -> None:
    """Check that a chunk that has merely left is not complete, and that the drain says so."""
    worker = Worker(sides, comm, KVLayout.HND, LEVELS["3"], WHOLE_LAYERS)
    if worker.is_source:
        destination = MPIDestination(comm)
        streamer = Streamer(destination, staging(WHOLE_LAYERS, 64))
        manager = CacheManager(worker.caches[0], worker.streams[0], LEVELS["3"], streamer, 0.2)
        manager.begin()
        for layer in range(worker.layers.size):
            manager.layer_ready(layer)
        for step in range(STEPS + 1):
            manager.step_ready(step)
        try:
            manager.drain()
        except StreamingError as error:
            assert "the first missing is chunk 0 (step 0) of stream 0" in str(error), error  # noqa: PT017
        else:
            raise AssertionError("drained although the sink has taken nothing")
        try:
            destination.begin(worker.streams[0][0])
        except StreamingError as error:
            assert "cannot begin: " in str(error), error  # noqa: PT017
        else:
            raise AssertionError("a stream with chunks on their way began anew")
        sleeping_barrier(comm)
        manager._timeout_s = 60.0
        manager.drain()  # and when the sink comes, all is well
        streamer.close()
    else:
        endpoint = MPISinkEndpoint(comm)
        receivers = [
            CacheReceiver(worker.caches[0], stream, LEVELS["3"], endpoint)
            for stream in worker.streams[0]
        ]
        sleeping_barrier(comm)
        for receiver in receivers:
            receiver.begin()
        receive_all(receivers)
        endpoint.finish()


def main(sources: int, split: str, source_microbatch: int, sink_microbatch: int) -> None:
    comm = MPI.COMM_WORLD.Dup()
    sides = (
        setup_of(sources, split, source_microbatch),
        setup_of(comm.size - sources, split, sink_microbatch),
    )
    total = stream_all(sides, comm)
    if source_microbatch == sink_microbatch:
        check_silent_sink(sides, comm)
    sleeping_barrier(comm)
    if comm.rank == 0:
        print(f"{sources} {split} {source_microbatch} {sink_microbatch}: {total} messages")
    comm.Free()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for variant in sys.argv[1:]:
        sources, split, source_microbatch, sink_microbatch = variant.split(",")
        main(int(sources), split, int(source_microbatch), int(sink_microbatch))
