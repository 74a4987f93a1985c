"""The ``cuda-ipc`` destination beside a raw loop of copies between the same two GPUs."""

from __future__ import annotations

import time
from collections import deque

import torch
from mpi4py import MPI

from dejavubench.dejavulib.destinations.cuda_ipc import CudaIPCDestination, CudaIPCSinkEndpoint
from dejavubench.dejavulib.destinations.peers.chunk_words import list_flags
from dejavubench.dejavulib.destinations.peers.pairs import map_sink
from dejavubench.dejavulib.destinations.peers.puts import CudaPuts
from dejavubench.dejavulib.kv_cache import KVCache
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.transports.loops.rank_pair import RankPair
from dejavubench.transports.probe import MESSAGE_NBYTES, WINDOW, Probe, Sample, make_message_stream

PUT_MESSAGE_COUNT = 32
"""Messages of one measurement, and of the cache that holds them on either side."""


class CudaIPCLoops:
    """Bandwidth from one source's GPU into its sink's memory; each method runs on both sides.

    Args:
        comm: names the ranks; nothing else may be on its way there while this is made.
    """

    def __init__(self, comm: MPI.Intracomm, rank_pair: RankPair, device: torch.device) -> None:
        self._rank_pair = rank_pair
        peer = rank_pair.peer
        self._stream = make_message_stream(PUT_MESSAGE_COUNT, peer)
        self._chunks = list(self._stream.schedule.all_chunks(LEVELS["2"]))
        self._cache = KVCache.allocate(self._stream.schedule.geometry, torch.float32, device)
        torch.cuda.synchronize(device)  # puts have a stream of their own, beside that of the zeros
        self._destination: CudaIPCDestination | None = None
        self._endpoint: CudaIPCSinkEndpoint | None = None
        if not rank_pair.is_source:
            memory = [self._cache.k, self._cache.v]
            self._endpoint = CudaIPCSinkEndpoint.connect(
                comm, [peer], memory, [(self._cache, self._stream)]
            )
            return
        self._puts = CudaPuts(device, list_flags())
        sink = map_sink(comm, peer, device, self._puts.pin)
        self._sink_address = sink.find(self._stream).bases.k
        self._destination = CudaIPCDestination(self._puts, {peer: sink})
        self._prepared = [
            self._destination.prepare_direct(self._stream, chunk, self._cache)
            for chunk in self._chunks
        ]

    def probes(self) -> list[Probe]:
        """Return the raw loop of copies, and the destination with the same sizes."""
        return [
            Probe("cuda-ipc-raw", "GB/s", self.time_raw),
            Probe("cuda-ipc-destination", "GB/s", self.time_destination),
        ]

    def time_raw(self) -> list[Sample]:
        """Run the raw loop: copies one behind the other, then one byte back by MPI."""
        self._rank_pair.begin()
        began_s = time.perf_counter()
        if self._destination is not None:
            cache_address = self._cache.k.data_ptr()
            cuda_stream_handle = self._puts.own_cuda_stream_handle
            for message_index in range(PUT_MESSAGE_COUNT):
                offset = message_index % WINDOW * MESSAGE_NBYTES
                self._puts.put(
                    cache_address + offset,
                    self._sink_address + offset,
                    MESSAGE_NBYTES,
                    cuda_stream_handle,
                )
            self._puts.synchronize()
        self._rank_pair.confirm()
        return self._make_samples(time.perf_counter() - began_s)

    def time_destination(self) -> list[Sample]:
        """Run the destination: puts on this side, grants and acknowledgements from the other."""
        self._rank_pair.begin()
        began_s = time.perf_counter()
        if self._destination is not None:
            self._send(self._destination)
        elif self._endpoint is not None:
            self._receive(self._endpoint)
        return self._make_samples(time.perf_counter() - began_s)

    def _send(self, destination: CudaIPCDestination) -> None:
        destination.begin(self._stream)
        for chunk, prepared in zip(self._chunks, self._prepared, strict=True):
            while chunk.index - destination.poll_completed(self._stream) >= WINDOW:
                pass
            destination.flush_direct(self._stream, chunk, prepared)
        while destination.poll_completed(self._stream) < len(self._chunks):
            pass

    def _receive(self, endpoint: CudaIPCSinkEndpoint) -> None:
        packed = self._cache.bytes("k")  # no chunk is packed: all go straight to their place
        posted = deque(endpoint.receive(self._stream, packed, _refuse_slot) for _ in range(WINDOW))
        for chunk_index in range(len(self._chunks)):
            while not posted[0].poll():
                pass
            posted.popleft()
            endpoint.acknowledge(self._stream)
            if chunk_index + WINDOW < len(self._chunks):
                posted.append(endpoint.receive(self._stream, packed, _refuse_slot))

    def _make_samples(self, duration_s: float) -> list[Sample]:
        if self._destination is None:
            return []
        return [
            (
                PUT_MESSAGE_COUNT * MESSAGE_NBYTES / duration_s / 1e9,
                f"{PUT_MESSAGE_COUNT} × {MESSAGE_NBYTES >> 20} MiB",
            )
        ]

    def close(self) -> None:
        """Close the end that this rank has."""
        for own_end in (self._destination, self._endpoint):
            if own_end is not None:
                own_end.close()


def _refuse_slot(packed: torch.Tensor) -> None:
    raise AssertionError("a message of the loop went into a slot")
