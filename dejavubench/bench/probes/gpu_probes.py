"""Probes of a CUDA device that the model of a source runs on.

Work that stays on the device is timed between two CUDA events, over several repetitions. They queue
up behind other work, so no launch is waited for. Copies to the host are timed by the host's clock,
because the destination that is held against them can be timed by no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from dejavubench.bench.probes.device_to_host import DeviceToHostCopies, ExtentCopies
from dejavubench.bench.probes.probe_subjects import ProbedModel
from dejavubench.dejavulib.kv_cache import KVCache, KVGeometry, Span
from dejavubench.dejavulib.packing import Packing
from dejavubench.transports.probe import Probe, Sample

LEAST_BUFFER_NBYTES = 1 << 30
"""Bytes of each of the two buffers on the device, or four times its L2 cache if that is more."""

MEMORY_PART_COUNT = 16
"""Two buffers, the matrices and the gathered cache each take one of these parts of free memory.

Together they take a quarter of it at most.
"""

REPETITION_COUNT = 8
"""Passes over a buffer, and products, between two events."""

GATHER_COUNT = 20
"""Launches of ``gather`` between two events, at least."""

MATMUL_SIDES = (4096, 8192)
"""Sides of the square matrices that are multiplied; the best of them is the ceiling."""

_READ_KERNEL = r"""
// Each thread reads vectors that lie a whole grid apart, so neighbouring threads read neighbouring
// vectors. Four loads are in flight before the first is used.
extern "C" __global__ void read_all(
    const uint4* __restrict__ from, unsigned long long count, unsigned int* out) {
    const unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x;
    unsigned long long number = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
    unsigned int seen = 0;
    for (; number + 3 * stride < count; number += 4 * stride) {
        const uint4 a = from[number], b = from[number + stride];
        const uint4 c = from[number + 2 * stride], d = from[number + 3 * stride];
        seen ^= a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w;
        seen ^= c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
    }
    for (; number < count; number += stride) {
        const uint4 a = from[number];
        seen ^= a.x ^ a.y ^ a.z ^ a.w;
    }
    // Hardly ever true, but the compiler cannot know that, so it must keep the loads.
    if (seen == 0x9E3779B9u) *out = seen;
}
"""
READ_THREAD_COUNT = 256
"""Threads of a block of that kernel."""

BLOCKS_PER_MULTIPROCESSOR = 8
"""Blocks of that kernel on each multiprocessor."""


def choose_buffer_nbytes(l2_nbytes: int, free_nbytes: int) -> int:
    """Return the bytes of each of the two buffers: a multiple of 16, within its share."""
    return min(max(LEAST_BUFFER_NBYTES, 4 * l2_nbytes), free_nbytes // MEMORY_PART_COUNT) // 16 * 16


def count_gathered_layers(
    geometry: KVGeometry, input_len: int, l2_nbytes: int, free_nbytes: int, buffer_nbytes: int
) -> int:
    """Return how many layers are gathered in turn; 0 if not one has room.

    There are enough of them that none is in L2 any more when its turn comes.
    """
    # Each layer must fit its share of free memory, and all packed layers one buffer together.
    layer_nbytes = geometry.nbytes // geometry.layers
    gathered_nbytes = layer_nbytes * input_len // geometry.positions
    return min(
        geometry.layers,
        max(1, -(-4 * l2_nbytes // gathered_nbytes)),
        free_nbytes // MEMORY_PART_COUNT // layer_nbytes,
        buffer_nbytes // gathered_nbytes,
    )


class DeviceProbes:
    """Probes of one CUDA device at one point.

    They allocate their memory at the beginning, so that no measurement has to.

    Args:
        device: the device that the model runs on.
        model: ``gather`` packs one layer of its prompt, in the layout of its cache.
    """

    def __init__(self, device: torch.device, model: ProbedModel) -> None:
        dtype, geometry, input_len = model.dtype, model.geometry, model.input_len
        properties = torch.cuda.get_device_properties(device)
        free_nbytes, _ = torch.cuda.mem_get_info(device)
        nbytes = choose_buffer_nbytes(properties.L2_cache_size, free_nbytes)
        self._device = device
        self._source = torch.empty(nbytes // 4, device=device).normal_().view(torch.uint8)
        self._target = torch.zeros(nbytes, dtype=torch.uint8, device=device)
        self._block_count = properties.multi_processor_count * BLOCKS_PER_MULTIPROCESSOR
        self._out = torch.zeros(4, dtype=torch.uint8, device=device)
        self._products = _Products.make_within(device, dtype, free_nbytes // MEMORY_PART_COUNT)
        layer_count = count_gathered_layers(
            geometry, input_len, properties.L2_cache_size, free_nbytes, nbytes
        )
        self._gathers = (
            _Gathers.prepare(device, dtype, geometry, input_len, layer_count)
            if layer_count
            else None
        )
        self._to_host = DeviceToHostCopies(device, model)
        self._extents = ExtentCopies(device)

    def probes(self) -> list[Probe]:
        """Return the probes, in the order in which they run."""
        probes = [
            Probe("memory-read", "GB/s", self.read),
            Probe("memory-copy", "GB/s", self.copy),
            Probe("matmul", "GFLOP/s", self.matmul),
            Probe("pcie-d2h", "GB/s", self._to_host.time_raw),
            Probe("pcie-destination", "GB/s", self._to_host.time_destination),
            Probe("pcie-d2h-large", "GB/s", self._to_host.time_large),
            Probe("run-copy", "us", self._extents.time_copy),
            Probe("run-copy-overhead", "us", self._extents.time_overhead),
            Probe("run-copy-compiled", "us", self._extents.time_compiled),
        ]
        if self._gathers is not None:
            probes += [
                Probe("gather", "GB/s", self.gather),
                Probe("gather-copy", "GB/s", self.gather_copy),
            ]
        return probes

    def read(self) -> list[Sample]:
        """Read the whole buffer in four ways; one GB/s sample of each."""
        # Several ways to read everything: the best one is the ceiling, whatever torch optimises.
        words = self._source.view(torch.float32)
        shapes: list[tuple[str, Callable[[], object]]] = [
            ("sum", words.sum),
            ("max", words.max),
            ("dot", lambda: torch.dot(words, words)),
            ("16-byte loads", self._read_all),
        ]
        nbytes = self._source.numel()
        size = f"{nbytes >> 20} MiB"
        return [
            (nbytes / self._time_works([work] * REPETITION_COUNT) / 1e9, f"{operation} of {size}")
            for operation, work in shapes
        ]

    def copy(self) -> list[Sample]:
        """Copy within device memory, in GB/s of bytes read plus bytes written."""
        nbytes = self._source.numel()
        seconds = self._time_works([self._copy_all] * REPETITION_COUNT)
        return [(2 * nbytes / seconds / 1e9, f"{nbytes >> 20} MiB, read + write")]

    def matmul(self) -> list[Sample]:
        """Measure square products in the type that the model computes in, in GFLOP/s."""
        return [
            (2 * side**3 / self._time_works([work] * REPETITION_COUNT) / 1e9, f"{side}³")
            for side, work in self._products.works.items()
        ]

    def gather(self) -> list[Sample]:
        """Pack one layer of a prompt as the library does, the layers in turn."""
        assert self._gathers is not None
        nbytes = self._gathers.nbytes
        packings = enumerate(self._gathers.packings)
        return self._time_gathers(
            [
                partial(
                    packing.gather,
                    self._target[packing_index * nbytes : (packing_index + 1) * nbytes],
                )
                for packing_index, packing in packings
            ]
        )

    def gather_copy(self) -> list[Sample]:
        """Copy as many bytes, as often, from and to as many places."""
        assert self._gathers is not None
        nbytes = self._gathers.nbytes
        spans = [
            slice(packing_index * nbytes, (packing_index + 1) * nbytes)
            for packing_index in range(len(self._gathers.packings))
        ]
        return self._time_gathers(
            [partial(self._target[span].copy_, self._source[span]) for span in spans]
        )

    def _time_gathers(self, works: Sequence[Callable[[], object]]) -> list[Sample]:
        assert self._gathers is not None
        seconds = self._time_works(list(works) * -(-GATHER_COUNT // len(works)))
        # Read and written: both count, as in the copy that it is held against.
        return [(2 * self._gathers.nbytes / seconds / 1e9, self._gathers.shape)]

    def _time_works(self, works: Sequence[Callable[[], object]]) -> float:
        """Return the seconds of one of ``works``, launched while the device is still busy."""
        with torch.cuda.device(self._device):
            begin_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            works[0]()  # compiled or tuned here, and not between the events
            # These take a millisecond or more: longer than it takes to launch the timed work.
            for _ in range(3):
                self._copy_all()
            begin_event.record()
            for work in works:
                work()
            end_event.record()
            end_event.synchronize()
            return begin_event.elapsed_time(end_event) / 1e3 / len(works)

    def _copy_all(self) -> None:
        self._target.copy_(self._source)

    def _read_all(self) -> None:
        import cupy

        # Each load takes 16 bytes. The buffer's size is a multiple of that, see buffer_nbytes.
        count = np.uint64(self._source.numel() // 16)
        parameters = (np.uintp(self._source.data_ptr()), count, np.uintp(self._out.data_ptr()))
        with cupy.cuda.Stream.from_external(torch.cuda.current_stream(self._device)):
            _read_kernel()((self._block_count,), (READ_THREAD_COUNT,), parameters)


@cache
def _read_kernel() -> Any:
    import cupy

    return cupy.RawKernel(_READ_KERNEL, "read_all")


@dataclass
class _Products:
    """By side, a product of two matrices into a third one."""

    works: dict[int, Callable[[], object]]

    @classmethod
    def make_within(cls, device: torch.device, dtype: torch.dtype, room_nbytes: int) -> _Products:
        """Make the products that fit into ``room_nbytes`` bytes; the smallest in any case."""
        works: dict[int, Callable[[], object]] = {}
        for side in MATMUL_SIDES:
            if not works or 3 * side**2 * dtype.itemsize <= room_nbytes:
                a, b, out = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))
                works[side] = partial(torch.mm, a, b, out=out)
        return cls(works)


@dataclass
class _Gathers:
    """Packings of a prompt's layer in a cache like the point's, one for each of some layers.

    Attributes:
        nbytes: bytes of one layer.
    """

    packings: list[Packing]
    nbytes: int
    shape: str

    @classmethod
    def prepare(
        cls,
        device: torch.device,
        dtype: torch.dtype,
        geometry: KVGeometry,
        input_len: int,
        layer_count: int,
    ) -> _Gathers:
        """Make the packings of a prompt over ``layer_count`` layers; allocates their cache."""
        probe_geometry = replace(geometry, layers=layer_count)
        probe_cache = KVCache.allocate(probe_geometry, dtype, device)
        region = probe_geometry.region(positions=Span(0, input_len))
        packings = [Packing(probe_cache, region.layer(layer)) for layer in range(layer_count)]
        nbytes = probe_geometry.region_nbytes(region.layer(0))
        size = f"{nbytes / 2**20:.1f} MiB, {geometry.layout.value}"
        return cls(packings, nbytes, f"{size}, {layer_count} layers in turn, read + write")
