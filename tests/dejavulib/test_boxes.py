"""Strided copies from cache to cache, without a device: byte for byte, for every region."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dejavubench.dejavulib.boxes import plan_cache_copies, plan_packing_copies, suits_strided_dma
from dejavubench.dejavulib.kv_cache import BOTH, KVCache, KVGeometry, KVLayout, Region, Span
from helpers.caches import geometries, random_cache, regions
from helpers.copies import emulate_copy, is_accepted_by_cuda

OPT_13B = {
    layout: KVGeometry(
        layers=40, requests=8, heads=40, positions=1000, head_size=128, itemsize=2, layout=layout
    )
    for layout in KVLayout
}
PROMPT_LAYER = {"layers": Span(3, 4), "positions": Span(0, 500)}
TOKEN = {"positions": Span(700, 701)}


@st.composite
def places(draw: st.DrawFn, geometry: KVGeometry, region: Region) -> tuple[KVGeometry, Region]:
    """Draw another cache of the same layout, and a place for the region there."""
    before = [draw(st.integers(0, 2)) for _ in range(4)]
    behind = [draw(st.integers(0, 2)) for _ in range(4)]
    spans = (region.layers, region.requests, region.heads, region.positions)
    shifted = [Span(start, start + span.size) for start, span in zip(before, spans, strict=True)]
    sizes = [span.stop + more for span, more in zip(shifted, behind, strict=True)]
    other_geometry = replace(
        geometry, layers=sizes[0], requests=sizes[1], heads=sizes[2], positions=sizes[3]
    )
    return other_geometry, Region(*shifted)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_region_gets_to_its_place_in_another_cache(data: st.DataObject) -> None:
    geometry = data.draw(geometries())
    region = data.draw(regions(geometry))
    other_geometry, place = data.draw(places(geometry, region))
    source, target = random_cache(geometry, 1), random_cache(other_geometry, 2)
    expected = KVCache(other_geometry, target.k.clone(), target.v.clone())
    for kv in BOTH:
        expected.piece(kv, place).copy_(source.piece(kv, region))
    copies = plan_cache_copies(geometry, region, other_geometry, place)
    written = {kv: np.zeros(target.bytes(kv).numel(), int) for kv in BOTH}
    for copy in copies:
        emulate_copy(
            copy, source.bytes(copy.kv).numpy(), target.bytes(copy.kv).numpy(), written[copy.kv]
        )
    assert all(torch.equal(target.tensor(kv), expected.tensor(kv)) for kv in BOTH)
    assert max(counts.max() for counts in written.values()) == 1
    assert all(is_accepted_by_cuda(copy) for copy in copies)


@pytest.mark.parametrize("layout", list(KVLayout))
@pytest.mark.parametrize("part", [PROMPT_LAYER, TOKEN], ids=["prompt", "token"])
def test_equal_caches_take_one_copy_for_k_and_one_for_v(
    layout: KVLayout, part: dict[str, Span]
) -> None:
    geometry = OPT_13B[layout]
    region = geometry.region(**part)
    copies = plan_cache_copies(geometry, region, geometry, region)
    assert [copy.kv for copy in copies] == ["k", "v"]
    assert [copy.width for copy in copies] == [
        copy.width for copy in plan_packing_copies(geometry, region)
    ]


@pytest.mark.parametrize("layout", list(KVLayout))
def test_half_of_the_heads_take_few_copies(layout: KVLayout) -> None:
    """Two sources with half of the heads each stream to one sink."""
    whole = OPT_13B[layout]
    half = replace(whole, heads=20)
    copies = plan_cache_copies(
        half, half.region(**TOKEN), whole, whole.region(heads=Span(20, 40), **TOKEN)
    )
    assert len(copies) == 2


def test_short_rows_and_long_pitches_do_not_suit() -> None:
    geometry = OPT_13B[KVLayout.FT]
    token = geometry.region(**TOKEN)
    assert not suits_strided_dma(plan_cache_copies(geometry, token, geometry, token))
    copies = plan_cache_copies(OPT_13B[KVLayout.HND], token, OPT_13B[KVLayout.HND], token)
    assert suits_strided_dma(copies)
    too_long = [copy._replace(rows=copy.rows._replace(target=2**31)) for copy in copies]
    assert not suits_strided_dma(too_long)


def test_pieces_of_other_sizes_are_refused() -> None:
    geometry = OPT_13B[KVLayout.HND]
    with pytest.raises(ValueError, match="does not fit"):
        plan_cache_copies(
            geometry, geometry.region(**TOKEN), geometry, geometry.region(**PROMPT_LAYER)
        )
    empty = geometry.region(positions=Span(4, 4))
    with pytest.raises(ValueError, match="nothing to move"):
        plan_cache_copies(geometry, empty, geometry, empty)
