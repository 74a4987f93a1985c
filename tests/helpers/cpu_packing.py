"""For tests of copies by a device: what the CPU's gather makes of a region, as the reference."""

from __future__ import annotations

import torch

from dejavubench.dejavulib.kv_cache import KVCache, Region
from dejavubench.dejavulib.packing import Packing


def gather_by_cpu(cache: KVCache, region: Region) -> torch.Tensor:
    """Return a region of a cache in packed form, as bytes in host memory."""
    packed = torch.zeros(cache.geometry.region_nbytes(region), dtype=torch.uint8)
    Packing(cache, region).gather(packed)
    return packed
