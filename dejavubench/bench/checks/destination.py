"""Comparing a source's caches with a destination that this process can read back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from dejavubench.bench.assignment.worker import WorkerView
from dejavubench.bench.checks.cache_bits import as_integers, describe_difference, locate_element
from dejavubench.dejavulib.destinations.base import (
    Destination,
    ReadableDestination,
    Stream,
    WrongBytesError,
)
from dejavubench.dejavulib.kv_cache import BOTH, KVCache
from dejavubench.dejavulib.levels import DEFAULT_LEVEL, LEVELS
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.schedule import Chunk
from dejavubench.machine import liveness
from dejavubench.transports.connector import Connector
from dejavubench.transports.contexts import OutsideWrite


def check_destination(
    connector: Connector,
    destination: Destination,
    manager: CacheManager,
    buffer: torch.Tensor,
    pattern: int,
    worker_view: WorkerView,
    microbatch: int,
) -> str | None:
    """Compare all that the destination holds of one microbatch; checksums come first.

    Args:
        connector: this rank's part in the destination.
        buffer: takes one chunk at a time.
        pattern: the byte that the destination was filled with.

    Returns:
        None, or where the first difference is.
    """
    assert isinstance(destination, ReadableDestination)

    def fetch(stream: Stream, chunk: Chunk) -> torch.Tensor:
        packed = buffer[: chunk.nbytes]
        destination.fetch(stream, chunk, packed)
        liveness.count_progress()
        return packed

    streams = manager.streams
    try:
        for stream in streams:
            connector.check(destination, stream)
        difference = compare_packed(fetch, manager.cache, streams, worker_view, microbatch)
        if difference is None:  # a wrong byte inside tells more than one outside
            outside_writes = [
                connector.find_outside_write(destination, stream, pattern) for stream in streams
            ]
            difference = _describe_outside_write(outside_writes, worker_view, microbatch)
        return difference
    except WrongBytesError as error:  # the destination itself noticed
        return str(error)


def compare_packed(
    fetch: Callable[[Stream, Chunk], torch.Tensor],
    cache: KVCache,
    streams: Sequence[Stream],
    worker_view: WorkerView,
    microbatch: int,
) -> str | None:
    """Compare what a destination holds with ``cache``, in the packed order of the schedules.

    Args:
        fetch: returns the bytes of a chunk at the destination, valid until it is called again.

    Returns:
        None, or where the first difference is, in the whole model's numbers.
    """
    for stream in streams:
        for chunk in stream.schedule.all_chunks(LEVELS[DEFAULT_LEVEL]):
            # [layers, elements]: a chunk has K, then V, of each layer in turn.
            pieces = [as_integers(cache.piece(kv, chunk.region).flatten(1)) for kv in BOTH]
            expected_bits = torch.cat(pieces, dim=1)
            # As integers: a NaN is unequal to itself, and −0 equals 0.
            packed_bits = as_integers(fetch(stream, chunk).view(cache.k.dtype))
            arrived_bits = packed_bits.to(expected_bits.device).view_as(expected_bits)
            if not torch.equal(arrived_bits, expected_bits):
                widths = [piece.shape[1] for piece in pieces]
                return _locate_difference(
                    arrived_bits != expected_bits, widths, chunk, worker_view, microbatch
                )
    return None


def _locate_difference(
    is_wrong: torch.Tensor,
    widths: list[int],
    chunk: Chunk,
    worker_view: WorkerView,
    microbatch: int,
) -> str:
    """Locate the first difference within a chunk; ``widths``: elements of K and V of a layer."""
    # Layers count from the chunk's first one here, and from the model's first one in the message.
    layer = int(is_wrong.any(1).nonzero()[0])
    wrong_by_kv = is_wrong[layer].split(widths)
    wrong_elements, kv = next(
        (wrong_of_kv, kv)
        for wrong_of_kv, kv in zip(wrong_by_kv, BOTH, strict=True)
        if wrong_of_kv.any()
    )
    region = chunk.region.layer(chunk.region.layers.start + layer)
    element = locate_element(worker_view.geometry, kv, region, int(wrong_elements.nonzero()[0]))
    return describe_difference(
        worker_view, microbatch, kv, element, True, int(wrong_elements.sum())
    )


def _describe_outside_write(
    outside_writes: Sequence[OutsideWrite | None], worker_view: WorkerView, microbatch: int
) -> str | None:
    """Return the first difference that a sink has found by itself, in the whole model's numbers."""
    for outside_write in outside_writes:
        if outside_write is not None:
            return describe_difference(
                worker_view,
                microbatch,
                outside_write.kv,
                outside_write.flat,
                False,
                outside_write.elements,
            )
    return None
