"""Probes of the CPU and its memory: of the machine, not of a destination."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from dejavubench.dejavulib.packing import aligned_buffer
from dejavubench.machine.memory import measure_available_nbytes
from dejavubench.transports.probe import Probe, Sample, time_call

LEAST_BUFFER_NBYTES = 128 << 20
"""At least four times the last-level cache of the machines this was written on.

See :func:`read_last_level_nbytes`.
"""

MATMUL_SIDES = (768, 1024, 2048)
"""Sides of the square matrices that are multiplied; the best of them is the ceiling."""

STRIDE_NBYTES = 4096
"""Bytes between the extents of the copy probes.

The vectors of a key in ``ft`` are as far apart at some 256 positions.
"""

EXTENT_COUNT = 4096
"""Extents of one measurement."""

EXTENT_NBYTES = 16


def read_last_level_nbytes() -> int:
    """Return the bytes of the largest cache of CPU 0; 0 where the kernel does not tell."""
    sizes = [0]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        sizes.append(
            int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]]
            if text[-1] in "KM"
            else int(text)
        )
    return max(sizes)


class CPUMemory:
    """Read and copy bandwidth over two buffers of at least four times the last-level cache.

    They take a quarter of the free memory at most; the shape says how large they are.
    """

    def __init__(self) -> None:
        # Two buffers of fp32: an eighth of the free memory each.
        element_count = (
            min(
                max(LEAST_BUFFER_NBYTES, 4 * read_last_level_nbytes()),
                measure_available_nbytes() // 8,
            )
            // 4
        )
        # Written: pages that were never written are all one page of zeros.
        self._source = torch.ones(element_count)
        self._target = torch.zeros(element_count)

    def read(self) -> list[Sample]:
        """Read the whole buffer by three reductions of torch; one GB/s sample of each."""
        nbytes = self._source.nbytes
        shapes: list[tuple[str, Callable[[], object]]] = [
            ("sum", self._source.sum),
            ("max", self._source.max),
            ("dot", lambda: torch.dot(self._source, self._source)),
        ]
        return [
            (nbytes / time_call(work) / 1e9, f"{operation} of {nbytes >> 20} MiB")
            for operation, work in shapes
        ]

    def copy(self) -> list[Sample]:
        """Copy one buffer to another one, in GB/s of bytes copied, not read plus written."""
        nbytes = self._source.nbytes
        return [
            (
                nbytes / time_call(lambda: self._target.copy_(self._source)) / 1e9,
                f"{nbytes >> 20} MiB, bytes copied",
            )
        ]


def copy_loop() -> list[Sample]:
    """Time one 16-byte copy in the naive loop of a local copy, in microseconds."""
    # The loop that the library's naive level runs: slices of memoryviews, and no torch.
    source, target = _allocate_extents()
    source_bytes = source.numpy().data
    target_bytes = target.numpy().data
    views = [
        source_bytes[start : start + EXTENT_NBYTES]
        for start in range(0, EXTENT_COUNT * STRIDE_NBYTES, STRIDE_NBYTES)
    ]
    began_s = time.perf_counter()
    offset = 0
    for view in views:
        target_bytes[offset : offset + EXTENT_NBYTES] = view
        offset += EXTENT_NBYTES
    return [((time.perf_counter() - began_s) / EXTENT_COUNT * 1e6, _SHAPE)]


def copy_loop_compiled() -> list[Sample]:
    """Time the same copies in one call of torch: what they cost without Python's loop."""
    source, target = _allocate_extents()
    strided_view = source.view(EXTENT_COUNT, STRIDE_NBYTES)[:, :EXTENT_NBYTES]
    duration_s = time_call(lambda: target.view(EXTENT_COUNT, EXTENT_NBYTES).copy_(strided_view))
    return [(duration_s / EXTENT_COUNT * 1e6, _SHAPE)]


_SHAPE = f"{EXTENT_NBYTES} B, {STRIDE_NBYTES} B apart"


def _allocate_extents() -> tuple[torch.Tensor, torch.Tensor]:
    source = aligned_buffer(EXTENT_COUNT * STRIDE_NBYTES)
    return source, aligned_buffer(EXTENT_COUNT * EXTENT_NBYTES)


def measure_matmul(dtype: torch.dtype) -> list[Sample]:
    """Measure square products in the type that the model computes in, in GFLOP/s."""
    samples = []
    for side in MATMUL_SIDES:
        a, b = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
        samples.append((2 * side**3 / time_call(partial(torch.mm, a, b)) / 1e9, f"{side}³"))
    return samples


def make_cpu_probes(dtype: torch.dtype) -> list[Probe]:
    """Return the probes of a source whose model runs on the CPU.

    Args:
        dtype: the type that the model computes in.
    """
    memory = CPUMemory()
    return [
        Probe("memory-read", "GB/s", memory.read),
        Probe("memory-copy", "GB/s", memory.copy),
        Probe("matmul", "GFLOP/s", partial(measure_matmul, dtype)),
        Probe("run-copy", "us", copy_loop),
        Probe("run-copy-compiled", "us", copy_loop_compiled),
    ]
