"""Moving pieces of the sources' caches to the sinks that compare them, over MPI."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from mpi4py import MPI

from dejavubench.bench.checks.cache_bits import as_integers
from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.kv_cache import BOTH, KV, KVCache, Region
from dejavubench.dejavulib.waiting import wait_asleep

_ASK_TAG = 1
_PIECE_TAG = 2
_MESSAGE_NBYTES = 256 << 20  # far below MPI's limit of 2^31 − 1


def serve_pieces(comm: MPI.Intracomm, caches_and_streams: Sequence[tuple[KVCache, Stream]]) -> None:
    """Give each sink the pieces that it asks for: the part of a source.

    A sink asks in the order of its own caches, which need not be the order of the streams here.
    """
    streams = {stream.key: (cache, stream.schedule.region) for cache, stream in caches_and_streams}
    request = np.empty(3, dtype=np.int64)
    status = MPI.Status()
    # Every sink asks for K and V of each layer of each of its streams, so the number of requests is
    # known: no message has to say that a sink is done.
    for _ in range(sum(2 * region.layers.size for _, region in streams.values())):
        wait_asleep(lambda: comm.Iprobe(MPI.ANY_SOURCE, _ASK_TAG, status), "verification")
        peer = status.Get_source()
        comm.Recv(request, peer, _ASK_TAG)
        stream_id, layer, kv = request.tolist()
        cache, region = streams[peer, stream_id]
        one_layer = region.layer(region.layers.start + layer)
        piece = as_integers(cache.piece(BOTH[kv], one_layer).contiguous()).cpu()
        # One after another, so that only one copy of a piece waits in MPI's buffers.
        for message in _split_into_messages(piece):
            wait_asleep(comm.Isend(message.numpy(), peer, _PIECE_TAG).Test, "verification")


def make_piece_receiver(
    comm: MPI.Intracomm, cache: KVCache
) -> Callable[[Stream, Region, KV], torch.Tensor]:
    """Return a function that asks a source for a piece: the part of a sink.

    Each piece is valid until the next one of its shape is asked for.
    """
    buffers: dict[tuple[int, ...], torch.Tensor] = {}

    def receive(stream: Stream, region: Region, kv: KV) -> torch.Tensor:
        """Ask the stream's source for a piece, and wait for it asleep."""
        assert stream.peer is not None
        shape = cache.geometry.piece_shape(kv, region)
        if shape not in buffers:
            buffers[shape] = as_integers(torch.empty(shape, dtype=cache.tensor(kv).dtype))
        piece = buffers[shape]
        streamed_region = stream.schedule.region
        layer = region.layers.start - streamed_region.layers.start
        question = np.array([stream.id, layer, BOTH.index(kv)], dtype=np.int64)
        # Not waited for yet: the source answers it, and its answer is the proof that it has come.
        sent_question = comm.Isend(question, stream.peer, _ASK_TAG)
        for message in _split_into_messages(piece):
            wait_asleep(comm.Irecv(message.numpy(), stream.peer, _PIECE_TAG).Test, "verification")
        sent_question.Wait()
        return piece

    return receive


def _split_into_messages(piece: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return piece.view(-1).split(_MESSAGE_NBYTES // piece.element_size())
