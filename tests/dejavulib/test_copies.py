"""gather / scatter: what is packed is what the region holds, and nothing else is touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dejavubench.dejavulib.extents import cut_extent_views
from dejavubench.dejavulib.kv_cache import BOTH, KVCache, KVGeometry, KVLayout
from dejavubench.dejavulib.packing import PAGE_NBYTES, aligned_buffer, gather, scatter
from helpers.caches import geometries, inside, packed_bytes, random_cache, regions


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_gather_packs_layers_k_then_v_in_the_layouts_order(data: st.DataObject) -> None:
    geometry = data.draw(geometries())
    region = data.draw(regions(geometry))
    cache = random_cache(geometry, seed=1)
    packed = torch.zeros(geometry.region_nbytes(region), dtype=torch.uint8)
    gather(cache, region, packed)
    layers = [region.layer(layer) for layer in range(*region.layers)]
    assert packed.numpy().tobytes() == packed_bytes(cache, layers)
    extents = [geometry.extents(kv, layer) for layer in layers for kv in BOTH]
    assert b"".join(cut_extent_views(cache, extents)) == packed.numpy().tobytes()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_scatter_is_the_inverse_and_stays_in_the_region(data: st.DataObject) -> None:
    geometry = data.draw(geometries())
    region = data.draw(regions(geometry))
    source = random_cache(geometry, seed=2)
    packed = torch.zeros(geometry.region_nbytes(region), dtype=torch.uint8)
    gather(source, region, packed)
    target = KVCache.allocate(geometry, source.k.dtype)
    target.fill(0xA5)
    scatter(packed, target, region)
    for kv in BOTH:
        streamed = torch.from_numpy(inside(geometry, kv, region))
        assert torch.equal(target.tensor(kv)[streamed], source.tensor(kv)[streamed])
        untouched = target.tensor(kv)[~streamed].view(torch.uint8)
        assert (untouched == 0xA5).all()


@pytest.mark.parametrize("layout", list(KVLayout))
def test_run_views_are_the_caches_own_memory(layout: KVLayout) -> None:
    geometry = KVGeometry(
        layers=2, requests=2, heads=2, positions=6, head_size=16, itemsize=2, layout=layout
    )
    cache = random_cache(geometry)
    region = geometry.region().layer(1)
    for view in cut_extent_views(cache, [geometry.extents(kv, region) for kv in BOTH]):
        view[:] = bytes(len(view))
    for kv in BOTH:
        assert not cache.piece(kv, region).any()
        assert cache.piece(kv, region.layer(0)).any()


@pytest.mark.parametrize(
    "nbytes", [1, PAGE_NBYTES - 1, PAGE_NBYTES, PAGE_NBYTES + 1, 5 * PAGE_NBYTES]
)
def test_an_aligned_buffer_begins_a_page_and_is_its_own_memory(nbytes: int) -> None:
    buffer = aligned_buffer(nbytes)
    assert buffer.data_ptr() % PAGE_NBYTES == 0
    assert (buffer.dtype, buffer.numel()) == (torch.uint8, nbytes)
    buffer.fill_(7)
    second_buffer = aligned_buffer(nbytes)
    assert not np.shares_memory(buffer.numpy(), second_buffer.numpy())
    assert not second_buffer.any()
