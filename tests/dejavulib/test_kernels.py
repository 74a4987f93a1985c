"""The CUDA kernel of gather and scatter: arithmetic without a device, bytes and speed with one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dejavubench.dejavulib.kernels import (
    KIND,
    REGION,
    SOURCE_FILE,
    KernelArguments,
    make_divider,
    make_kernel_arguments,
)
from dejavubench.dejavulib.kv_cache import BOTH, KVCache, KVGeometry, KVLayout, Span
from dejavubench.dejavulib.packing import Packing
from helpers.caches import geometries, random_cache, regions
from helpers.cpu_packing import gather_by_cpu
from helpers.gpu_marks import needs_gpus

GPU = needs_gpus(1)


def divide(dividends: np.ndarray, divisor: np.void) -> np.ndarray:
    """Divide as the source's ``Divider`` does, in the same 32-bit steps."""
    high = (dividends.astype(np.uint64) * np.uint64(divisor["multiplier"])) >> np.uint64(32)
    total = high + dividends.astype(np.uint64)
    assert (total < 2**32).all(), "the sum does not fit 32 bits"
    return (total >> np.uint64(divisor["shift"])).astype(np.int64)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 2**31 - 1), st.lists(st.integers(0, 2**31 - 1), min_size=1))
def test_multiplication_and_shift_divide_exactly(divisor: int, dividends: list[int]) -> None:
    factors: np.void = np.array([make_divider(divisor)], dtype=KIND["row_size"])[0]
    edges = [0, divisor - 1, divisor, 2**31 - 1, (2**31 - 1) // divisor * divisor]
    tried = np.array([n for n in dividends + edges if n < 2**31])
    assert (divide(tried, factors) == tried // divisor).all()


def emulate_kernel(cache: KVCache, arguments: KernelArguments) -> bytes:
    """Return the bytes that the kernel packs, computed thread for thread in numpy."""
    packed = np.zeros(
        int(arguments.content["packed_layer_size"]) * arguments.layer_count * arguments.vector,
        np.uint8,
    )
    vectors = packed.reshape(-1, arguments.vector)
    for plane in range(arguments.blocks[1]):
        kind, layer = arguments.content["kinds"][plane & 1], plane >> 1
        memory = cache.bytes(BOTH[plane & 1]).numpy().reshape(-1, arguments.vector)
        offsets = np.arange(int(kind["plane_size"]))
        row = divide(offsets, kind["row_size"])
        outer_and_middle = divide(row, kind["inner_size"])
        outer_index = divide(outer_and_middle, kind["middle_size"])
        place = (
            kind["first_vector"]
            + layer * kind["layer_stride"]
            + outer_index * kind["outer_stride"]
            + (outer_and_middle - outer_index * kind["middle_size"]["divisor"])
            * kind["middle_stride"]
            + (row - outer_and_middle * kind["inner_size"]["divisor"]) * kind["inner_stride"]
            + (offsets - row * kind["row_size"]["divisor"])
        )
        vectors[
            layer * arguments.content["packed_layer_size"] + kind["packed_offset"] + offsets
        ] = memory[place.astype(np.int64)]
    return packed.tobytes()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_kernels_arguments_pack_every_region(data: st.DataObject) -> None:
    geometry = data.draw(geometries())
    region = data.draw(regions(geometry))
    cache = random_cache(geometry)
    assert (
        emulate_kernel(cache, make_kernel_arguments(geometry, region))
        == gather_by_cpu(cache, region).numpy().tobytes()
    )


@pytest.mark.parametrize("layout", list(KVLayout))
def test_usual_heads_move_in_sixteen_bytes(layout: KVLayout) -> None:
    geometry = KVGeometry(
        layers=40, requests=8, heads=40, positions=640, head_size=128, itemsize=2, layout=layout
    )
    for positions in (Span(0, 500), Span(511, 512)):
        assert make_kernel_arguments(geometry, geometry.region(positions=positions)).vector == 16


def test_the_plan_has_the_size_of_the_kernels_struct() -> None:
    assert (KIND.itemsize, REGION.itemsize) == (104, 216)


def test_the_kernel_compiles_without_warnings(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    command = [
        nvcc,
        "-arch=sm_90",
        "-std=c++17",
        "-Werror",
        "all-warnings",
        "-c",
        str(SOURCE_FILE),
        "-o",
        str(tmp_path / "o"),
    ]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr


@pytest.mark.gpu
@GPU
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_kernel_moves_every_region_there_and_back(data: st.DataObject) -> None:
    geometry = data.draw(geometries())
    region = data.draw(regions(geometry))
    source = random_cache(geometry)
    device_cache = KVCache(geometry, source.k.cuda(), source.v.cuda())
    packed = torch.zeros(geometry.region_nbytes(region), dtype=torch.uint8, device="cuda")
    Packing(device_cache, region).gather(packed)
    assert torch.equal(packed.cpu(), gather_by_cpu(source, region))
    scattered = KVCache(
        geometry, torch.zeros_like(device_cache.k), torch.zeros_like(device_cache.v)
    )
    Packing(scattered, region).scatter(packed)
    expected = KVCache(geometry, torch.zeros_like(source.k), torch.zeros_like(source.v))
    Packing(expected, region).scatter(packed.cpu())
    for kv in BOTH:
        assert torch.equal(scattered.tensor(kv).cpu(), expected.tensor(kv))


@pytest.mark.gpu
@GPU
def test_a_buffer_that_is_not_on_the_device_is_refused() -> None:
    geometry = KVGeometry(
        layers=2, requests=1, heads=2, positions=4, head_size=16, itemsize=2, layout=KVLayout.HND
    )
    packing = Packing(KVCache.allocate(geometry, torch.int16, "cuda"), geometry.whole)
    with pytest.raises(ValueError, match="must be on cuda:0, not on cpu"):
        packing.gather(torch.zeros(geometry.nbytes, dtype=torch.uint8))
    odd = torch.zeros(geometry.nbytes + 1, dtype=torch.uint8, device="cuda")[1:]
    with pytest.raises(ValueError, match="begin at a multiple of 16 bytes"):
        packing.gather(odd)
