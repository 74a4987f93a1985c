"""Geometry of the cache: golden sizes, extents against brute force, writes and reads of a model."""

from __future__ import annotations

from dataclasses import fields, replace
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dejavubench.dejavulib.kv_cache import BOTH, KVCache, KVGeometry, KVLayout, Region, Span
from dejavubench.models.hub.specs import SPECS
from helpers.caches import geometries, inside, logical_ids, logical_shape, random_cache, regions

# ---- golden sizes ----


def geometry_of(
    model: str, requests: int, positions: int, layout: KVLayout = KVLayout.HND
) -> KVGeometry:
    spec = SPECS[model]
    return KVGeometry(
        layers=spec.layer_num,
        requests=requests,
        heads=spec.head_num,
        positions=positions,
        head_size=spec.size_per_head,
        itemsize=2,
        layout=layout,
    )


@pytest.mark.parametrize("layout", list(KVLayout))
def test_a_cache_of_opt_66b_with_1500_positions_takes_3_5_gb(layout: KVLayout) -> None:
    geometry = geometry_of("opt-66b", requests=1, positions=1500, layout=layout)
    assert (geometry.layers, geometry.heads, geometry.head_size) == (64, 72, 128)
    nbytes = 3_538_944_000  # as published: 2 × 64 layers × 9216 × 1500 positions × 2 bytes
    assert geometry.nbytes == nbytes
    assert geometry.region_nbytes(geometry.whole) == nbytes
    assert sum(2 * prod(geometry.shape(kv)) for kv in BOTH) == nbytes


@pytest.mark.parametrize(
    ("layout", "keys", "values"),
    [
        (KVLayout.FT, (204_800, 16), (12_800, 256)),
        (KVLayout.HND, (12_800, 256), (12_800, 256)),
        (KVLayout.NHD, (320, 10_240), (320, 10_240)),
    ],
)
def test_one_token_of_opt_13b_has_the_extents_of_its_layout(
    layout: KVLayout, keys: tuple[int, int], values: tuple[int, int]
) -> None:
    geometry = geometry_of("opt-13b", requests=8, positions=1000, layout=layout)
    token = geometry.region(positions=Span(500, 501))
    for kv, expected in zip(BOTH, (keys, values), strict=True):
        extents = [geometry.extents(kv, token.layer(layer)) for layer in range(geometry.layers)]
        assert {extent.nbytes for extent in extents} == {expected[1]}
        assert sum(len(extent.offsets) for extent in extents) == expected[0]


def test_a_whole_layer_is_one_extent_of_keys_and_one_of_values() -> None:
    for layout in KVLayout:
        geometry = geometry_of("gpt2", requests=4, positions=300, layout=layout)
        for kv in BOTH:
            extents = geometry.extents(kv, geometry.whole.layer(3))
            assert extents.offsets.tolist() == [3 * geometry.nbytes // 2 // geometry.layers]
            assert extents.nbytes == extents.total == geometry.nbytes // 2 // geometry.layers


# ---- against brute force ----


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_extents_are_the_maximal_contiguous_pieces(data: st.DataObject) -> None:
    geometry = data.draw(geometries())
    region = data.draw(regions(geometry))
    region = region.layer(region.layers.start)
    for kv in BOTH:
        elements = np.flatnonzero(inside(geometry, kv, region))
        pieces = np.split(elements, np.flatnonzero(np.diff(elements) != 1) + 1)
        extents = geometry.extents(kv, region)
        assert extents.kv == kv
        assert extents.offsets.tolist() == [int(piece[0]) * geometry.itemsize for piece in pieces]
        assert {len(piece) * geometry.itemsize for piece in pieces} == {extents.nbytes}
        assert 2 * extents.total == geometry.region_nbytes(region)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_index_cuts_out_the_region(data: st.DataObject) -> None:
    geometry = data.draw(geometries())
    region = data.draw(regions(geometry))
    for kv in BOTH:
        chosen = np.zeros(geometry.shape(kv), dtype=bool)
        chosen[geometry.index(kv, region)] = True
        assert np.array_equal(chosen, inside(geometry, kv, region))
        assert geometry.piece_shape(kv, region) == chosen[geometry.index(kv, region)].shape


@settings(max_examples=50, deadline=None)
@given(geometries(most=3))
def test_locate_is_the_inverse_of_the_layout(geometry: KVGeometry) -> None:
    sizes = logical_shape(geometry)
    for kv in BOTH:
        for flat, number in enumerate(logical_ids(geometry, kv).ravel()):
            assert geometry.locate(kv, flat) == tuple(
                int(i) for i in np.unravel_index(number, sizes)
            )


def test_extents_of_several_layers_are_refused() -> None:
    geometry = KVGeometry(layers=2, requests=1, heads=1, positions=4, head_size=8, itemsize=2)
    with pytest.raises(ValueError, match="one layer"):
        geometry.extents("k", geometry.whole)


# ---- what the model writes and reads ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", list(KVLayout))
def test_stored_elements_are_read_back_and_lie_where_the_layout_says(
    layout: KVLayout, dtype: torch.dtype
) -> None:
    geometry = KVGeometry(
        layers=2,
        requests=3,
        heads=2,
        positions=7,
        head_size=16,
        itemsize=dtype.itemsize,
        layout=layout,
    )
    cache = KVCache.allocate(geometry, dtype)
    cache.fill(0x3C)
    k, v = torch.randn(2, 2, 3, 2, 5, 16).to(dtype)  # of both kinds: [L, B, H, S = 5, D]
    for layer in range(2):
        cache.store(layer, 0, k[layer, :, :, :4], v[layer, :, :, :4])  # a prompt of four
        cache.store(layer, 4, k[layer, :, :, 4:], v[layer, :, :, 4:])  # one token
        for stop in (1, 4, 5):
            assert torch.equal(cache.keys(layer, stop), k[layer, :, :, :stop])
            assert torch.equal(cache.values(layer, stop), v[layer, :, :, :stop])
        assert (
            cache.values(layer, 5).data_ptr()
            == cache.piece("v", geometry.whole.layer(layer)).data_ptr()
        )
    written = geometry.region(positions=Span(0, 5))
    for kv, given_values in zip(BOTH, (k, v), strict=True):
        ids = logical_ids(geometry, kv)
        axes = np.unravel_index(ids, (2, 3, 2, 7, 16))
        stored = inside(geometry, kv, written)
        expected = given_values[tuple(torch.from_numpy(axis[stored]) for axis in axes)]
        assert torch.equal(cache.tensor(kv)[torch.from_numpy(stored)], expected)
        unstored = cache.tensor(kv)[torch.from_numpy(~stored)].view(torch.uint8)
        assert (unstored == 0x3C).all(), "something beyond the stored positions was written"


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_bytes_and_pieces_are_views(data: st.DataObject) -> None:
    geometry = data.draw(geometries(most=3))
    cache = random_cache(geometry)
    region = data.draw(regions(geometry))
    for kv in BOTH:
        cache.piece(kv, region).zero_()
        flat = cache.bytes(kv).view(-1, geometry.itemsize)
        zeroed = inside(geometry, kv, region).ravel()
        assert not flat[torch.from_numpy(zeroed)].any()
        assert flat.data_ptr() == cache.tensor(kv).data_ptr()
        assert flat.numel() == geometry.nbytes // 2


def test_a_cache_refuses_other_tensors() -> None:
    geometry = KVGeometry(layers=1, requests=2, heads=2, positions=4, head_size=8, itemsize=2)
    keys, shape = torch.zeros(geometry.shape("k"), dtype=torch.float16), geometry.shape("v")
    with pytest.raises(ValueError, match="v must be a contiguous tensor"):
        KVCache(geometry, keys, torch.zeros(*shape[:-1], 9, dtype=torch.float16))
    with pytest.raises(ValueError, match="k must be a contiguous tensor"):
        KVCache(geometry, torch.zeros(1, 2, 4, 2, 8, dtype=torch.float16).transpose(2, 3), keys)
    with pytest.raises(ValueError, match="elements of 4 bytes, not 2"):
        KVCache(geometry, keys, torch.zeros(shape))


# ---- intervals, regions, refusals ----


def test_spans_are_intersected_cut_and_shifted() -> None:
    assert (Span(2, 5) & Span(4, 9)) == (4, 5)
    assert (Span(2, 5) & Span(5, 9)).size == (Span(6, 9) & Span(2, 5)).size == 0
    assert list(Span(3, 10).cut(3)) == [(3, 6), (6, 9), (9, 10)]
    assert Span(1, 4).shift(2) == (3, 6)
    for start, stop in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="not an interval"):
            Span(start, stop)


def test_a_region_is_a_part_of_its_cache() -> None:
    geometry = KVGeometry(layers=4, requests=3, heads=2, positions=10, head_size=8, itemsize=2)
    region = geometry.region(layers=Span(1, 3), positions=Span(2, 7))
    assert region == Region(Span(1, 3), Span(0, 3), Span(0, 2), Span(2, 7))
    assert region.tokens_heads == 2 * 3 * 2 * 5
    assert geometry.region_nbytes(region) == 2 * 60 * 8 * 2
    assert geometry.token_nbytes * 3 * 10 == geometry.nbytes
    with pytest.raises(ValueError, match="is not inside a cache"):
        geometry.region(heads=Span(1, 3))


@pytest.mark.parametrize("name", [field.name for field in fields(KVGeometry)][:6])
def test_sizes_must_be_positive(name: str) -> None:
    geometry = KVGeometry(layers=1, requests=1, heads=1, positions=1, head_size=8, itemsize=2)
    changed: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match="must be positive"):
        replace(geometry, **changed)


@pytest.mark.parametrize(("head_size", "itemsize"), [(12, 2), (2, 4), (15, 1)])
def test_ft_needs_whole_vectors(head_size: int, itemsize: int) -> None:
    with pytest.raises(ValueError, match="16 bytes of a key together"):
        KVGeometry(
            layers=1,
            requests=1,
            heads=1,
            positions=1,
            head_size=head_size,
            itemsize=itemsize,
            layout=KVLayout.FT,
        )
