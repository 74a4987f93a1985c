"""Comparing, outside the clock, what arrived with what the source has. Plain indexing, none of the library's copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import xxhash
from mpi4py import MPI

from dejavubench.bench.side import Side
from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.kvcache import BOTH, KV, KVCache, KVGeometry, Region, Span
from dejavubench.dejavulib.levels import DEFAULT_LEVEL, LEVELS
from dejavubench.dejavulib.schedule import Chunk
from dejavubench.dejavulib.waiting import wait_asleep
from dejavubench.transports.session import Outside

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
_ASK, _PIECE = 1, 2  # tags
_MESSAGE = 256 << 20  # bytes of one message: far below MPI's 2^31 − 1

Piece = Callable[[Stream, Region, KV], torch.Tensor]
"""Gives what the source holds of one layer's K or V within a stream's region, as integers."""


NOTHING = Span(0, 0)


class VerificationError(Exception):
    """What arrived is not what was sent; the message locates it."""


def as_integers(tensor: torch.Tensor) -> torch.Tensor:
    """The same bits as integers: equal bytes compare equal, whatever number they would be."""
    return tensor.view(_INTEGERS[tensor.element_size()])


def digests(cache: KVCache, positions: int) -> list[str]:
    """Of the first ``positions`` positions, K and V of each layer."""
    geometry = cache.geometry
    pieces = [
        cache.piece(
            kv, geometry.region(layers=Span(layer, layer + 1), positions=Span(0, positions))
        )
        for layer in range(geometry.layers)
        for kv in BOTH
    ]
    return [
        xxhash.xxh3_128_hexdigest(as_integers(piece).contiguous().numpy().data) for piece in pieces
    ]


def compare(
    got: KVCache,
    streams: list[Stream],
    piece: Piece,
    pattern: int,
    side: Side,
    ubatch: int,
    own: Span = NOTHING,
) -> str | None:
    """Whether ``got`` holds each stream's region as the source has it, and the pattern everywhere else.

    Args:
        own: positions that the sink has written itself, which may hold anything.

    Returns:
        None, or where the first difference is, in the whole model's numbers.
    """
    geometry = got.geometry
    first: str | None = None
    fill = int.from_bytes(bytes([pattern]) * geometry.itemsize, "little", signed=True)
    # allocated once: touching new pages would cost as much as comparing
    reused = {kv: torch.empty_like(as_integers(got.tensor(kv)[0])) for kv in BOTH}
    for layer in range(geometry.layers):
        for kv in BOTH:
            found, expected = as_integers(got.tensor(kv)[layer]), reused[kv].fill_(fill)
            inside = [
                stream for stream in streams if layer in range(*stream.schedule.region.layers)
            ]
            for stream in inside:
                place = expected[geometry.index(kv, stream.schedule.region)[1:]]
                place.copy_(
                    piece(stream, stream.schedule.region.layer(layer), kv).view(place.shape)
                )
            written = geometry.index(kv, geometry.region(positions=own))[1:]
            expected[written] = found[written]
            if first is None and not torch.equal(
                found, expected
            ):  # but go on: the source sends all it has
                wrong = torch.nonzero((found != expected).flatten()).flatten()
                streamed = torch.zeros_like(found, dtype=torch.bool)
                for stream in inside:
                    streamed[geometry.index(kv, stream.schedule.region)[1:]] = True
                flat = int(wrong[0])
                was_streamed = bool(streamed.flatten()[flat])
                first = _where(
                    side, ubatch, kv, layer * found.numel() + flat, was_streamed, len(wrong)
                )
    return first


def compare_packed(
    fetch: Callable[[Stream, Chunk], torch.Tensor],
    cache: KVCache,
    streams: list[Stream],
    side: Side,
    ubatch: int,
) -> str | None:
    """Whether a local destination holds each stream as ``cache`` has it, in the packed order that schedules define.

    Args:
        fetch: gives the bytes that the destination holds where a chunk belongs, until it is called again.

    Returns:
        None, or where the first difference is, in the whole model's numbers.
    """
    for stream in streams:
        for chunk in stream.schedule.all_chunks(LEVELS[DEFAULT_LEVEL]):
            pieces = [
                as_integers(cache.piece(kv, chunk.region).flatten(1)) for kv in BOTH
            ]  # [layers, elements]
            expected = torch.cat(pieces, dim=1)
            found = (
                as_integers(fetch(stream, chunk).view(cache.k.dtype))
                .to(expected.device)
                .view_as(expected)
            )
            if not torch.equal(found, expected):
                wrong = found != expected
                layer = int(wrong.any(1).nonzero()[0])
                by_kv = wrong[layer].split([piece.shape[1] for piece in pieces])
                differ, kv = next(
                    (each, kv) for each, kv in zip(by_kv, BOTH, strict=True) if each.any()
                )
                region = chunk.region.layer(chunk.region.layers.start + layer)
                flat = _flat(cache.geometry, kv, region, int(differ.nonzero()[0]))
                return _where(side, ubatch, kv, flat, True, int(differ.sum()))
    return None


def written_outside(found: Sequence[Outside | None], side: Side, ubatch: int) -> str | None:
    """What a sink that compares for itself has found outside the streamed region, in the whole model's numbers."""
    for outside in found:
        if outside is not None:
            return _where(side, ubatch, outside.kv, outside.flat, False, outside.elements)
    return None


def _flat(geometry: KVGeometry, kv: KV, region: Region, number: int) -> int:
    """Where in the whole K or V the ``number``-th element of a region is."""
    within = np.unravel_index(number, geometry.piece_shape(kv, region))
    starts = [
        cut.indices(size)[0]
        for cut, size in zip(geometry.index(kv, region), geometry.shape(kv), strict=True)
    ]
    return int(
        np.ravel_multi_index(
            [a + b for a, b in zip(starts, within, strict=True)], geometry.shape(kv)
        )
    )


def _where(side: Side, ubatch: int, kv: KV, flat: int, inside: bool, count: int) -> str:
    layer, request, head, position, element = side.geometry.locate(kv, flat)
    layer, head = side.locate(layer, head)
    what = "is not what the source has" if inside else "was written outside the streamed region"
    return (
        f"layer {layer}, {kv.upper()}, request {request}, head {head}, position {position} (element {element}) of "
        f"microbatch {ubatch} {what}; {count} elements of this layer's {kv.upper()} differ"
    )


def serve_pieces(comm: MPI.Intracomm, held: Sequence[tuple[KVCache, Stream]]) -> None:
    """The source's side of comparing on sinks: gives each what it asks for, on a communicator of their own.

    A sink asks in the order of its own caches, which need not be that of the streams here.
    """
    streams = {stream.key: (cache, stream.schedule.region) for cache, stream in held}
    asked = np.empty(3, dtype=np.int64)
    status = MPI.Status()
    for _ in range(sum(2 * region.layers.size for _, region in streams.values())):
        wait_asleep(lambda: comm.Iprobe(MPI.ANY_SOURCE, _ASK, status), "verification")
        peer = status.Get_source()
        comm.Recv(asked, peer, _ASK)
        number, layer, kv = asked.tolist()
        cache, region = streams[peer, number]
        piece = as_integers(
            cache.piece(BOTH[kv], region.layer(region.layers.start + layer)).contiguous()
        ).cpu()
        for part in _messages(piece):
            wait_asleep(comm.Isend(part.numpy(), peer, _PIECE).Test, "verification")


def received_pieces(comm: MPI.Intracomm, cache: KVCache) -> Piece:
    """The sink's side: what the source gives; each piece until the next one of its shape is asked for."""
    reused: dict[tuple[int, ...], torch.Tensor] = {}

    def receive(stream: Stream, region: Region, kv: KV) -> torch.Tensor:
        assert stream.peer is not None
        shape = cache.geometry.piece_shape(kv, region)
        if shape not in reused:
            reused[shape] = as_integers(torch.empty(shape, dtype=cache.tensor(kv).dtype))
        piece = reused[shape]
        layer = region.layers.start - stream.schedule.region.layers.start
        asking = np.array([stream.id, layer, BOTH.index(kv)], dtype=np.int64)
        sent = comm.Isend(asking, stream.peer, _ASK)
        for part in _messages(piece):
            wait_asleep(comm.Irecv(part.numpy(), stream.peer, _PIECE).Test, "verification")
        sent.Wait()
        return piece

    return receive


def _messages(piece: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return piece.view(-1).split(_MESSAGE // piece.element_size())
