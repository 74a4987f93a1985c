"""Comparing a sink's caches with the sources' ones. Plain indexing, no copies of the library."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from mpi4py import MPI

from dejavubench.bench.assignment.worker import WorkerView
from dejavubench.bench.checks.cache_bits import as_integers, describe_difference
from dejavubench.bench.checks.cache_transfer import make_piece_receiver
from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.kv_cache import BOTH, KV, KVCache, Region, Span

PieceReceiver = Callable[[Stream, Region, KV], torch.Tensor]
"""Returns the source's K or V of one layer within a stream's region, as integers."""

NO_POSITIONS = Span(0, 0)
"""Positions that a sink itself writes, unless it continues a request."""


def check_sink_caches(
    caches: Sequence[KVCache],
    worker_view: WorkerView,
    comm: MPI.Intracomm,
    pattern: int,
    written_here: Span = NO_POSITIONS,
) -> str | None:
    """Compare the cache of each microbatch with the sources; see :func:`compare`."""
    first_difference = None
    for microbatch, (cache, streams) in enumerate(
        zip(caches, worker_view.remote_streams(), strict=True)
    ):
        receive_piece = make_piece_receiver(comm, cache)
        difference = compare(
            cache, streams, receive_piece, pattern, worker_view, microbatch, written_here
        )
        # The sources send all they have, so every cache is compared.
        first_difference = first_difference or difference
    return first_difference


def compare(
    cache: KVCache,
    streams: Sequence[Stream],
    receive_piece: PieceReceiver,
    pattern: int,
    worker_view: WorkerView,
    microbatch: int,
    written_here: Span = NO_POSITIONS,
) -> str | None:
    """Compare ``cache`` with each stream's region at the source, and with the pattern elsewhere.

    Args:
        pattern: the byte that ``cache`` was filled with.
        written_here: positions that the sink has written itself, which may hold anything.

    Returns:
        None, or where the first difference is, in the whole model's numbers.
    """
    geometry = cache.geometry
    first_difference: str | None = None
    # The pattern's byte, repeated over one element, as the integer that such an element is read as.
    fill = int.from_bytes(bytes([pattern]) * geometry.itemsize, "little", signed=True)
    # Allocated once: touching new pages would cost as much as comparing.
    expected_buffers = {kv: torch.empty_like(as_integers(cache.tensor(kv)[0])) for kv in BOTH}
    for layer in range(geometry.layers):
        streams_of_layer = [
            stream for stream in streams if layer in range(*stream.schedule.region.layers)
        ]
        for kv in BOTH:
            received_layer = as_integers(cache.tensor(kv)[layer])
            expected_layer = expected_buffers[kv].fill_(fill)
            for stream in streams_of_layer:
                region = stream.schedule.region
                expected_region = expected_layer[geometry.index(kv, region)[1:]]
                expected_region.copy_(
                    receive_piece(stream, region.layer(layer), kv).view(expected_region.shape)
                )
            written_index = geometry.index(kv, geometry.region(positions=written_here))[1:]
            # Equal by definition, so never a difference.
            expected_layer[written_index] = received_layer[written_index]
            # Go on after a difference: the source sends all that it has.
            if first_difference is None and not torch.equal(received_layer, expected_layer):
                first_difference = _locate_difference(
                    received_layer,
                    expected_layer,
                    streams_of_layer,
                    worker_view,
                    microbatch,
                    layer,
                    kv,
                )
    return first_difference


def _locate_difference(
    received_layer: torch.Tensor,
    expected_layer: torch.Tensor,
    streams: Sequence[Stream],
    worker_view: WorkerView,
    microbatch: int,
    layer: int,
    kv: KV,
) -> str:
    """Locate the first difference within one layer's K or V."""
    wrong_elements = torch.nonzero((received_layer != expected_layer).flatten()).flatten()
    # A wrong byte inside a stream's region was sent wrong or lost. One outside was written by a
    # stream that has no business there.
    is_streamed = torch.zeros_like(received_layer, dtype=torch.bool)
    for stream in streams:
        is_streamed[worker_view.geometry.index(kv, stream.schedule.region)[1:]] = True
    offset = int(wrong_elements[0])
    was_streamed = bool(is_streamed.flatten()[offset])
    element = layer * received_layer.numel() + offset
    return describe_difference(
        worker_view, microbatch, kv, element, was_streamed, len(wrong_elements)
    )
