"""Services of a ``tcp`` sink that only the benchmark needs: fill, compare, and a raw loop.

The library's sink has none of them. :data:`SERVICES` are frames that ``dejavubench sink`` adds to
its protocol, and :class:`MeasuredTCPDestination` is the source's side of them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from math import prod

import numpy as np
import torch

from dejavubench.dejavulib.destinations.base import Buffer, Stream
from dejavubench.dejavulib.destinations.tcp import TCPDestination
from dejavubench.dejavulib.destinations.tcp.connection import Connection, Service
from dejavubench.dejavulib.destinations.tcp.sink_stream import RefusalError, SinkStream
from dejavubench.dejavulib.destinations.tcp.wire import FIRST_SERVICE, Frame
from dejavubench.dejavulib.kv_cache import BOTH, KV, KVCache, Region
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.transports.contexts import OutsideWrite

FILL, COMPARE, RAW = range(FIRST_SERVICE, FIRST_SERVICE + 3)
"""Kinds of frames. FILL and COMPARE carry a byte as their number."""

COMPARED_ELEMENTS = 1 << 17
"""Elements that are compared at a time, so that memory does not grow with the cache."""

_DIFFERENCE = struct.Struct("<IQQ")
"""K (0) or V (1), the first element of it that differs, and how many of its layer do."""


# ---- the source's side ----


class MeasuredTCPDestination(TCPDestination):
    """A ``tcp`` destination whose sink offers :data:`SERVICES`."""

    def buffers(self, stream: Stream) -> Sequence[Buffer]:
        """Return the sink's cache of the stream, which is filled by a request."""
        return [_SinkCache(self, stream)]

    def find_outside_write(self, stream: Stream, byte: int) -> OutsideWrite | None:
        """Return where the sink's cache differs from ``byte`` outside the stream's region."""
        answer = self.request(stream, COMPARE, byte)
        if not answer:
            return None
        kv, flat_index, elements = _DIFFERENCE.unpack(answer)
        return OutsideWrite(BOTH[kv], flat_index, elements)

    def send_raw(self, stream: Stream, messages: Sequence[torch.Tensor]) -> None:
        """Send level 3's chunks of a stream bare: the raw loop that flush is held against."""
        self.request(stream, RAW, 0, [message.numpy().data for message in messages])


class _SinkCache:
    """The cache that a sink keeps for a stream."""

    def __init__(self, destination: TCPDestination, stream: Stream) -> None:
        self._destination = destination
        self._stream = stream

    def fill_(self, value: int, /) -> None:
        """Have the sink set every byte to ``value``; return when it has."""
        self._destination.request(self._stream, FILL, value)


# ---- the sink's side ----


def _fill_cache(connection: Connection, frame: Frame, stream: SinkStream) -> None:
    _check_byte(frame)
    # Answered after the fill, so that no chunk of the next arm is overwritten.
    stream.cache.fill(frame.number)
    connection.reply(FILL, frame)


def _compare_cache(connection: Connection, frame: Frame, stream: SinkStream) -> None:
    _check_byte(frame)
    outside_write = find_write_outside(stream.cache, stream.schedule.region, frame.number)
    answer = b""
    if outside_write is not None:
        answer = _DIFFERENCE.pack(
            BOTH.index(outside_write.kv), outside_write.flat, outside_write.elements
        )
    connection.reply(COMPARE, frame, answer)


def _receive_raw(connection: Connection, frame: Frame, stream: SinkStream) -> None:
    """Receive as many bytes to the same places, without frames and hashes."""
    if frame.nbytes:
        raise RefusalError("a raw loop has no bytes of its own")
    peer_socket = connection.wire.socket
    for chunk in stream.schedule.all_chunks(LEVELS["3"]):
        # Straight into the cache where the chunk lies in few pieces, as its own frames would go.
        for view in stream.walk_chunk(chunk) or iter(
            [connection.staging(chunk.nbytes).numpy().data]
        ):
            received_nbytes = 0
            while received_nbytes < len(view):
                new_nbytes = peer_socket.recv_into(view[received_nbytes:])
                if not new_nbytes:
                    raise RefusalError("it closed in the middle of a raw loop")
                received_nbytes += new_nbytes
    connection.reply(RAW, frame)


def _check_byte(frame: Frame) -> None:
    if frame.number > 255 or frame.nbytes:
        raise RefusalError(f"{frame.number} is no byte to fill with")


SERVICES: Mapping[int, Service] = {FILL: _fill_cache, COMPARE: _compare_cache, RAW: _receive_raw}
"""The sink's function for each kind of frame."""


# ---- comparing in memory that does not grow with the cache ----


def find_write_outside(
    cache: KVCache, region: Region, byte: int, most_element_count: int = COMPARED_ELEMENTS
) -> OutsideWrite | None:
    """Return the first layer's K or V with an element outside ``region`` that is not ``byte``.

    Args:
        most_element_count: number of elements that are compared together.
    """
    for layer in range(cache.geometry.layers):
        for kv in BOTH:
            changes = _find_changes(cache, region, byte, kv, layer, most_element_count)
            if changes is not None:
                return OutsideWrite(kv, *changes)
    return None


def _find_changes(
    cache: KVCache, region: Region, byte: int, kv: KV, layer: int, most_element_count: int
) -> tuple[int, int] | None:
    """Return the first element of a layer's K or V that differs, and how many differ."""
    tensor = cache.tensor(kv)[layer]
    first_element: int | None = None
    changed_count = 0
    region_index = cache.geometry.index(kv, region)[1:] if layer in range(*region.layers) else None
    for block in _cut_blocks(tensor.shape, most_element_count):
        elements = tensor[block]
        is_changed = (elements.unsqueeze(-1).view(torch.uint8) != byte).any(-1)
        if region_index is not None:
            is_changed[_intersect(block, region_index, tensor.shape)] = False
        if is_changed.any():
            # Blocks follow one another as elements do: the first one that differs has the first.
            if first_element is None:
                index = np.unravel_index(
                    int(is_changed.view(torch.uint8).argmax()), is_changed.shape
                )
                element_index = [
                    int(offset) + cut.start for offset, cut in zip(index, block, strict=True)
                ]
                first_element = layer * tensor.numel() + int(
                    np.ravel_multi_index(element_index, tensor.shape)
                )
            changed_count += int(is_changed.sum())
    return None if first_element is None else (first_element, changed_count)


def _cut_blocks(shape: tuple[int, ...], most_element_count: int) -> Iterator[tuple[slice, ...]]:
    """Cut a tensor into consecutive pieces of at most ``most_element_count`` elements."""
    if not shape:
        yield ()
        return
    row_element_count = prod(shape[1:])
    block_row_count = max(1, most_element_count // row_element_count)
    for start in range(0, shape[0], block_row_count):
        cut = slice(start, min(start + block_row_count, shape[0]))
        if row_element_count <= most_element_count:
            yield (cut, *(slice(0, size) for size in shape[1:]))
        else:
            yield from (
                (cut, *inner_block) for inner_block in _cut_blocks(shape[1:], most_element_count)
            )


def _intersect(
    block: tuple[slice, ...], region_index: tuple[slice, ...], shape: tuple[int, ...]
) -> tuple[slice, ...]:
    """Return the part of a block that lies inside, counted from the block's beginning.

    The slices are empty if no part does.
    """
    slices = []
    for cut, inside_cut, size in zip(block, region_index, shape, strict=True):
        start, stop, _ = inside_cut.indices(size)
        begin = max(start - cut.start, 0)
        slices.append(slice(begin, max(begin, min(stop, cut.stop) - cut.start)))
    return tuple(slices)
