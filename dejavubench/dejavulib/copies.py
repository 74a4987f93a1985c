"""``gather`` / ``scatter``: a non-contiguous region of the cache ↔ one contiguous buffer.

The packed order is that of :mod:`~dejavubench.dejavulib.schedule`: per layer K then V, each in the
layout's own order, so that what is contiguous in the cache stays contiguous.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable

import numpy as np
import torch

from dejavubench.kvcache import BOTH, KVCache, Region

PAGE = mmap.PAGESIZE


def aligned_buffer(nbytes: int) -> torch.Tensor:
    """A page-aligned buffer of uint8 (O_DIRECT needs the alignment), its pages touched."""
    pages = mmap.mmap(-1, -(-nbytes // PAGE) * PAGE)
    buffer = np.frombuffer(pages, dtype=np.uint8)[:nbytes]
    buffer[::PAGE] = 0
    return torch.from_numpy(buffer)


def gather(cache: KVCache, region: Region, packed: torch.Tensor) -> None:
    """Pack ``region`` into ``packed``, a contiguous uint8 tensor of exactly the region's bytes."""
    for packed_piece, piece in _pairs(cache, region, packed):
        packed_piece.copy_(piece)


def scatter(packed: torch.Tensor, cache: KVCache, region: Region) -> None:
    """Put ``packed`` where ``region`` belongs: the inverse of :func:`gather`."""
    for packed_piece, piece in _pairs(cache, region, packed):
        piece.copy_(packed_piece)


def _pairs(cache: KVCache, region: Region, packed: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    geometry = cache.geometry
    both = packed.view(cache.k.dtype).view(region.layers.size, 2, -1)  # [layers, K and V, elements]
    return [
        (both[:, number].view(geometry.piece_shape(kv, region)), cache.piece(kv, region))
        for number, kv in enumerate(BOTH)
    ]


def run_views(cache: KVCache, regions: Iterable[Region]) -> list[memoryview]:
    """The runs of regions of one layer each, as views of the cache's own memory in packed order (CPU only)."""
    memory = {kv: cache.bytes(kv).numpy().data for kv in BOTH}
    views = []
    for region in regions:
        for kv in BOTH:
            runs = cache.geometry.runs(kv, region)
            whole, nbytes = memory[kv], runs.nbytes
            views += [whole[start : start + nbytes] for start in runs.offsets.tolist()]
    return views
