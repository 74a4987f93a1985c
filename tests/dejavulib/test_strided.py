"""Strided DMA: its copies without a device, byte for byte; the bytes and the choice with one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dejavubench.dejavulib.boxes import plan_packing_copies
from dejavubench.dejavulib.kv_cache import KVCache, KVGeometry, KVLayout, Region, Span
from dejavubench.dejavulib.packing import pinned_buffer
from dejavubench.dejavulib.strided import (
    MEMCPY3D,
    StridedCopy,
    WayChoice,
    choose,
    is_worth_trying,
)
from helpers.caches import geometries, random_cache, regions
from helpers.copies import emulate_copy, is_accepted_by_cuda
from helpers.cpu_packing import gather_by_cpu
from helpers.gpu_marks import needs_gpus

GPU = needs_gpus(1)

OPT_13B = {
    layout: KVGeometry(
        layers=40, requests=8, heads=40, positions=1000, head_size=128, itemsize=2, layout=layout
    )
    for layout in KVLayout
}
PROMPT_LAYER = {"layers": Span(3, 4), "positions": Span(0, 500)}
TOKEN = {"positions": Span(700, 701)}


def emulate_copies(cache: KVCache, region: Region) -> bytes:
    """Return the packed buffer after the region's copies, row by row; no byte is written twice."""
    packed = np.zeros(cache.geometry.region_nbytes(region), np.uint8)
    written = np.zeros(len(packed), int)
    for copy in plan_packing_copies(cache.geometry, region):
        emulate_copy(copy, cache.bytes(copy.kv).numpy(), packed, written)
    assert (written == 1).all()
    return packed.tobytes()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_the_plan_packs_every_region(data: st.DataObject) -> None:
    geometry = data.draw(geometries())
    region = data.draw(regions(geometry))
    cache = random_cache(geometry)
    assert emulate_copies(cache, region) == gather_by_cpu(cache, region).numpy().tobytes()
    assert all(is_accepted_by_cuda(copy) for copy in plan_packing_copies(geometry, region))
    assert len(plan_packing_copies(geometry, region)) <= 2 * region.layers.size


@pytest.mark.parametrize("layout", list(KVLayout))
@pytest.mark.parametrize("part", [PROMPT_LAYER, TOKEN], ids=["prompt", "token"])
def test_whole_heads_take_one_copy_for_k_and_one_for_v(
    layout: KVLayout, part: dict[str, Span]
) -> None:
    assert [
        copy.kv for copy in plan_packing_copies(OPT_13B[layout], OPT_13B[layout].region(**part))
    ] == [
        "k",
        "v",
    ]


@pytest.mark.parametrize(
    ("layout", "part", "widths"),
    [
        (KVLayout.HND, PROMPT_LAYER, [128_000, 128_000]),  # positions × head
        (KVLayout.NHD, PROMPT_LAYER, [5_120_000, 5_120_000]),  # positions × heads × head
        (KVLayout.FT, PROMPT_LAYER, [8000, 128_000]),  # positions × 16 bytes
        (KVLayout.HND, TOKEN, [256, 256]),
        (KVLayout.NHD, TOKEN, [10_240, 10_240]),
        (KVLayout.FT, TOKEN, [16, 256]),
    ],
)
def test_rows_of_copies_are_as_wide_as_the_layout_is_contiguous(
    layout: KVLayout, part: dict[str, Span], widths: list[int]
) -> None:
    region = OPT_13B[layout].region(**part)
    assert [copy.width for copy in plan_packing_copies(OPT_13B[layout], region)] == widths
    assert is_worth_trying(OPT_13B[layout], region) == (min(widths) >= 64)


@pytest.mark.parametrize("layout", list(KVLayout))
def test_some_heads_take_a_copy_for_each_layer_at_most(layout: KVLayout) -> None:
    geometry = OPT_13B[layout]
    token = plan_packing_copies(geometry, geometry.region(heads=Span(10, 20), **TOKEN))
    prompt = plan_packing_copies(geometry, geometry.region(heads=Span(10, 20), **PROMPT_LAYER))
    assert (len(token), len(prompt)) == (2 if layout is KVLayout.NHD else 80, 2)


def test_a_copys_descriptor_has_the_size_and_offsets_of_cudas_struct() -> None:
    assert MEMCPY3D.itemsize == 160
    assert MEMCPY3D.fields is not None
    assert [MEMCPY3D.fields[name][1] for name in ("source", "target", "extent", "kind")] == [
        32,
        96,
        128,
        152,
    ]


def test_an_empty_region_is_refused() -> None:
    geometry = OPT_13B[KVLayout.HND]
    with pytest.raises(ValueError, match="nothing to move"):
        plan_packing_copies(geometry, geometry.region(positions=Span(4, 4)))


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        (WayChoice("kernel"), "kernel (not measured)"),
        (WayChoice("kernel", 1e-3), "kernel (rows too short for strided DMA)"),
        (WayChoice("kernel", kernel_s=1e-3, dma_s=2e-3), "kernel (0.50 of strided DMA's time)"),
        (
            WayChoice("strided DMA", kernel_s=1e-3, dma_s=0.71e-3),
            "strided DMA (0.71 of the kernel's time)",
        ),
    ],
)
def test_a_choice_says_what_it_was_made_by(choice: WayChoice, text: str) -> None:
    assert str(choice) == text


# ---- on a device ----


@GPU
@pytest.mark.gpu
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_region_arrives_on_the_host(data: st.DataObject) -> None:
    geometry = data.draw(geometries())
    region = data.draw(regions(geometry))
    cache = random_cache(geometry)
    packed = pinned_buffer(geometry.region_nbytes(region))
    packed.fill_(0xA5)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    device = KVCache(geometry, cache.k.cuda(), cache.v.cuda())
    torch.cuda.synchronize()
    StridedCopy(device, region).to_host(packed, stream)
    stream.synchronize()
    assert packed.numpy().tobytes() == gather_by_cpu(cache, region).numpy().tobytes()


@GPU
@pytest.mark.gpu
@pytest.mark.parametrize("layout", list(KVLayout))
@pytest.mark.parametrize("heads", [Span(0, 40), Span(10, 30)], ids=["all heads", "some heads"])
def test_large_regions_arrive_on_the_host(layout: KVLayout, heads: Span) -> None:
    geometry = KVGeometry(
        layers=3, requests=4, heads=40, positions=333, head_size=128, itemsize=2, layout=layout
    )
    cache = random_cache(geometry)
    device = KVCache(geometry, cache.k.cuda(), cache.v.cuda())
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    for part in (
        {"positions": Span(0, 301)},
        {"layers": Span(1, 2)},
        {"positions": Span(332, 333)},
    ):
        region = geometry.region(heads=heads, **part)
        packed = pinned_buffer(geometry.region_nbytes(region))
        StridedCopy(device, region).to_host(packed, stream)
        stream.synchronize()
        assert torch.equal(packed, gather_by_cpu(cache, region))


@GPU
@pytest.mark.gpu
def test_the_faster_way_is_chosen() -> None:
    geometry = KVGeometry(layers=4, requests=2, heads=8, positions=200, head_size=128, itemsize=2)
    cache = KVCache.allocate(geometry, torch.float16, "cuda")
    choice = choose(cache, geometry.region(layers=Span(0, 1)))
    assert choice.kernel_s is not None
    assert choice.dma_s is not None
    assert choice.way == ("strided DMA" if choice.dma_s <= choice.kernel_s else "kernel")
    assert choose(cache, geometry.region(layers=Span(0, 1)), tie=100.0).way == "strided DMA"


@GPU
@pytest.mark.gpu
def test_rows_too_short_for_dma_are_left_to_the_kernel() -> None:
    geometry = KVGeometry(
        layers=2, requests=2, heads=2, positions=9, head_size=64, itemsize=2, layout=KVLayout.FT
    )
    cache = KVCache.allocate(geometry, torch.float16, "cuda")
    choice = choose(cache, geometry.region(positions=Span(3, 4)))
    assert (choice.way, choice.dma_s) == ("kernel", None)


@GPU
@pytest.mark.gpu
def test_a_buffer_of_another_size_is_refused() -> None:
    geometry = KVGeometry(layers=2, requests=2, heads=2, positions=9, head_size=16, itemsize=2)
    cache = KVCache.allocate(geometry, torch.float16, "cuda")
    with pytest.raises(ValueError, match="a buffer of 7 bytes"):
        StridedCopy(cache, geometry.whole).to_host(pinned_buffer(7), torch.cuda.Stream())
