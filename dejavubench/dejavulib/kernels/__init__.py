"""``gather`` / ``scatter`` of a region on a CUDA device by one kernel, ``regions.cu`` (cupy).

The kernel's arguments and the size of its vectors are computed here from the geometry alone, so
that they can be checked without a device.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from math import gcd, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..kv_cache import BOTH, KV, KVCache, KVGeometry, Region

if TYPE_CHECKING:
    import torch

SOURCE_FILE = Path(__file__).with_name("regions.cu")
VECTOR_TYPES = {16: "uint4", 8: "uint2", 4: "unsigned int", 2: "unsigned short", 1: "unsigned char"}
"""C types of the vectors that are moved, by their bytes."""

GATHER_VALUES = ("true", "false")
"""Values of the template parameter ``GATHER``: into the packed buffer, or out of it."""

THREADS_PER_BLOCK = 256

VECTORS_PER_THREAD = 4
"""Vectors that a thread moves, as in ``regions.cu``."""

# The fields named "padding" pad each struct to a multiple of its largest field, as C++ does.
DIVIDER = np.dtype([("divisor", "u4"), ("multiplier", "u4"), ("shift", "u4"), ("padding", "u4")])
KIND = np.dtype(
    [("first_vector", "i8")]
    + [(f"{axis}_stride", "i8") for axis in ("layer", "outer", "middle", "inner")]
    + [("packed_offset", "i8"), ("plane_size", "u4"), ("padding", "u4")]
    + [(f"{divided}_size", DIVIDER) for divided in ("row", "inner", "middle")]
)
REGION = np.dtype([("packed_layer_size", "i8"), ("kinds", KIND, 2)])
"""The struct ``Region`` of ``regions.cu``, byte for byte."""


@dataclass(frozen=True)
class KernelArguments:
    """The kernel's arguments for one region.

    A *plane* is one layer's K or V; a *row* is a contiguous piece of it.

    Attributes:
        vector: bytes that a thread moves at once: the largest power of two up to 16 that divides
            every size and stride.
        layer_count: number of layers; there are twice as many planes.
        content: one :data:`REGION`, counted in vectors.
    """

    vector: int
    layer_count: int
    content: np.ndarray

    @property
    def blocks(self) -> tuple[int, int]:
        """Number of blocks along a plane, and of planes."""
        largest_plane = max(int(kind["plane_size"]) for kind in self.content["kinds"])
        return -(-largest_plane // (THREADS_PER_BLOCK * VECTORS_PER_THREAD)), 2 * self.layer_count


def make_kernel_arguments(geometry: KVGeometry, region: Region) -> KernelArguments:
    """Return the kernel's arguments for a region.

    Raises:
        ValueError: the region is empty, or a plane has more vectors than 31 bits count.
    """
    pieces = {kv: _Piece.of_region(geometry, region, kv) for kv in BOTH}
    # One vector size for K and V, whose packed planes follow one another in one buffer.
    vector = gcd(16, *(nbytes for piece in pieces.values() for nbytes in piece.nbytes))
    content = np.zeros((), REGION)
    sizes = [piece.row * prod(piece.counts) for piece in pieces.values()]
    if not all(sizes) or not region.layers.size:
        raise ValueError(f"nothing to move in {region}")
    content["packed_layer_size"] = sum(sizes) // vector
    for kind_index, (piece, size) in enumerate(zip(pieces.values(), sizes, strict=True)):
        if size // vector >= 2**31:
            raise ValueError(
                f"{size} bytes of one layer's {BOTH[kind_index].upper()} are more than "
                "the kernel counts"
            )
        fields = content["kinds"][kind_index]
        fields["first_vector"] = piece.first_offset // vector
        fields["layer_stride"] = piece.layer // vector
        fields["outer_stride"], fields["middle_stride"], fields["inner_stride"] = (
            stride // vector for stride in piece.strides
        )
        # A layer's K comes first in the packed buffer, so V begins behind it.
        fields["packed_offset"] = sum(sizes[:kind_index]) // vector
        fields["plane_size"] = size // vector
        fields["row_size"] = make_divider(piece.row // vector)
        fields["inner_size"] = make_divider(piece.counts[2])
        fields["middle_size"] = make_divider(piece.counts[1])
    return KernelArguments(vector, region.layers.size, content)


@dataclass(frozen=True)
class _Piece:
    """One layer's K or V within a region, in bytes.

    Attributes:
        first_offset: of the first row in the tensor.
        layer: bytes from one layer to the next.
        counts, strides: sizes and strides of the three axes that count rows, outermost first.
        row: bytes of a row.
    """

    first_offset: int
    layer: int
    counts: tuple[int, int, int]
    strides: tuple[int, int, int]
    row: int

    @property
    def nbytes(self) -> tuple[int, ...]:
        return (self.first_offset, self.layer, *self.strides, self.row)

    @classmethod
    def of_region(cls, geometry: KVGeometry, region: Region, kv: KV) -> _Piece:
        rows = geometry.rows(kv, region)
        (_, layer), *axes = rows.axes
        # Missing axes are outermost axes of size 1: the kernel always counts three.
        axes = [(1, 0)] * (3 - len(axes)) + axes
        counts, strides = zip(*axes, strict=True)
        return cls(
            first_offset=rows.first_offset,
            layer=layer,
            counts=counts,
            strides=strides,
            row=rows.nbytes,
        )


def make_divider(divisor: int) -> tuple[int, int, int, int]:
    """Return (divisor, multiplier, shift, 0), which divide by one multiplication on the GPU.

    n // divisor = (high half of n · multiplier + n) >> shift, for n < 2³¹. Source: Granlund and
    Montgomery, "Division by invariant integers using multiplication", PLDI 1994, figure 4.1.
    """
    shift = (divisor - 1).bit_length()
    multiplier = (2**32 * (2**shift - divisor)) // divisor + 1
    return divisor, multiplier, shift, 0


# ---- on a device ----


@functools.cache
def _compile_module() -> Any:
    import cupy

    kernel_names = [
        f"copy_region<{kind}, {way}>" for kind in VECTOR_TYPES.values() for way in GATHER_VALUES
    ]
    return cupy.RawModule(
        code=SOURCE_FILE.read_text(), options=("--std=c++17",), name_expressions=kernel_names
    )


class RegionCopy:
    """Packs one region of a CUDA cache, or puts it back, by one launch on torch's current stream.

    The methods raise ValueError if the packed buffer is on another device, or its address is no
    multiple of the vector size.
    """

    def __init__(self, cache: KVCache, region: Region) -> None:
        import torch

        arguments = make_kernel_arguments(cache.geometry, region)
        self._cache = cache
        self._vector = arguments.vector
        self._blocks = arguments.blocks
        # Copied to the device once: each launch then passes a pointer, not 216 bytes.
        content = bytearray(arguments.content.tobytes())
        self._arguments = torch.frombuffer(content, dtype=torch.uint8).to(cache.k.device)
        self._fixed = [
            np.uintp(tensor.data_ptr()) for tensor in (self._arguments, cache.k, cache.v)
        ]
        element_type = VECTOR_TYPES[arguments.vector]
        self._gather, self._scatter = (
            _compile_module().get_function(f"copy_region<{element_type}, {way}>")
            for way in GATHER_VALUES
        )

    def gather(self, packed: torch.Tensor) -> None:
        """Issue the packing of the region into ``packed``."""
        self._launch(self._gather, packed)

    def scatter(self, packed: torch.Tensor) -> None:
        """Issue the inverse of :meth:`gather`."""
        self._launch(self._scatter, packed)

    def _launch(self, kernel: Any, packed: torch.Tensor) -> None:
        import cupy
        import torch

        if packed.device != self._cache.k.device or packed.data_ptr() % self._vector:
            raise ValueError(
                f"the packed buffer must be on {self._cache.k.device}, not on {packed.device}, "
                f"and begin at a multiple of {self._vector} bytes"
            )
        with cupy.cuda.Stream.from_external(torch.cuda.current_stream(packed.device)):
            kernel(self._blocks, (THREADS_PER_BLOCK,), (*self._fixed, np.uintp(packed.data_ptr())))
