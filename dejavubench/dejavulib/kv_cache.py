"""``KVCache``: the tensors of one worker's cache. Its geometry's names can be imported from here.

Importing this module needs numpy alone; torch is imported when a cache is allocated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .geometry import (
    BOTH,
    FT_VECTOR_BYTES,
    KV,
    Extents,
    KVGeometry,
    KVLayout,
    Rows,
)
from .regions import Region, Span

if TYPE_CHECKING:
    import torch

__all__ = [
    "BOTH",
    "FT_VECTOR_BYTES",
    "KV",
    "Extents",
    "KVCache",
    "KVGeometry",
    "KVLayout",
    "Region",
    "Rows",
    "Span",
]


class KVCache:
    """A static cache: one tensor for K and one for V, in the geometry's layout.

    Attention reads these tensors and streaming moves them; there is no second copy.

    Attributes:
        geometry: sizes and layout.
        k, v: contiguous tensors of ``geometry.shape("k")`` and ``geometry.shape("v")``.

    Raises:
        ValueError: a tensor has another shape or element size, or is not contiguous.
    """

    def __init__(self, geometry: KVGeometry, k: torch.Tensor, v: torch.Tensor) -> None:
        for kv, tensor in zip(BOTH, (k, v), strict=True):
            if tuple(tensor.shape) != geometry.shape(kv) or not tensor.is_contiguous():
                raise ValueError(
                    f"{kv} must be a contiguous tensor of shape {geometry.shape(kv)}, "
                    f"not {tensor.shape}"
                )
            if tensor.element_size() != geometry.itemsize:
                raise ValueError(
                    f"{kv} has elements of {tensor.element_size()} bytes, not {geometry.itemsize}"
                )
        # Extents are computed from the geometry alone, so the tensors must be as it says.
        self.geometry = geometry
        self.k = k
        self.v = v

    @classmethod
    def allocate(
        cls, geometry: KVGeometry, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> KVCache:
        """Return a cache of zeros."""
        import torch

        k, v = (torch.zeros(geometry.shape(kv), dtype=dtype, device=device) for kv in BOTH)
        return cls(geometry, k, v)

    def tensor(self, kv: KV) -> torch.Tensor:
        """Return the K or V tensor."""
        return self.k if kv == "k" else self.v

    def piece(self, kv: KV, region: Region) -> torch.Tensor:
        """Return a view of ``region``, of ``geometry.piece_shape(kv, region)``."""
        return self.tensor(kv)[self.geometry.index(kv, region)]

    def bytes(self, kv: KV) -> torch.Tensor:
        """Return the whole K or V tensor as a flat view of uint8."""
        import torch

        return self.tensor(kv).view(-1).view(torch.uint8)

    def fill(self, value: int) -> None:
        """Set every byte to ``value`` (0 to 255)."""
        for kv in BOTH:
            self.bytes(kv).fill_(value)

    def store(self, layer: int, position: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Write keys and values of n new positions into one layer.

        Args:
            position: the first of the new positions.
            k, v: [B, H, n, D].
        """
        stop = position + k.shape[2]
        match self.geometry.layout:
            case KVLayout.NHD:
                self.k[layer, :, position:stop] = k.transpose(1, 2)
                self.v[layer, :, position:stop] = v.transpose(1, 2)
            case KVLayout.HND:
                self.k[layer, :, :, position:stop] = k
                self.v[layer, :, :, position:stop] = v
            case KVLayout.FT:
                # The positions come between the two parts of D, so a head's vectors are spread.
                vectors = k.unflatten(-1, (-1, self.geometry.vector))  # [B, H, n, D/x, x]
                self.k[layer, :, :, :, position:stop] = vectors.transpose(2, 3)
                self.v[layer, :, :, position:stop] = v

    def keys(self, layer: int, stop: int) -> torch.Tensor:
        """Return keys of positions ``[0, stop)`` as [B, H, stop, D]: a view, in ``ft`` a copy."""
        match self.geometry.layout:
            case KVLayout.NHD:
                return self.k[layer, :, :stop].transpose(1, 2)
            case KVLayout.HND:
                return self.k[layer, :, :, :stop]
            case KVLayout.FT:
                return self.k[layer, :, :, :, :stop].transpose(2, 3).flatten(-2)

    def values(self, layer: int, stop: int) -> torch.Tensor:
        """Return values of positions ``[0, stop)`` as a view [B, H, stop, D]."""
        if self.geometry.layout is KVLayout.NHD:
            return self.v[layer, :, :stop].transpose(1, 2)
        return self.v[layer, :, :, :stop]
