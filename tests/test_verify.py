"""Verification: a wrong byte is found wherever it is, and said to be where it is."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from caches import logical_ids, random_cache
from hypothesis import given, settings
from hypothesis import strategies as st

from dejavubench import specs
from dejavubench.bench.streams import Side
from dejavubench.bench.verify import as_integers, compare, own_pieces
from dejavubench.dejavulib.copies import aligned_buffer, gather, scatter
from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.schedule import StreamSchedule
from dejavubench.kvcache import BOTH, KV, KVCache, Region, Span
from dejavubench.parallel.topology import Topology
from dejavubench.points import DataType, LayoutName, Point

LAYOUTS: tuple[LayoutName, ...] = ("ft", "hnd", "nhd")
PATTERN = 0x2B
FIRST_LAYER, FIRST_HEAD = 3, 2
"""Of the worker whose part is looked at: the second stage of 5 layers in 2, the second half of 4 heads."""


def side_of(layout: LayoutName, data_type: DataType = "fp16") -> Side:
    """Worker 3 of two stages × two tensor ranks; 2 layers, 2 heads, 9 positions of which 7 are streamed."""
    spec = specs.custom(layer_num=5, head_num=4, size_per_head=16, vocab_size=10, context=16)
    point = Point("p000", spec, data_type, layout, 3, 5, 3, 9, tensor_para_size=2, pipeline_para_size=2)
    return Side(point, Topology(8, 7, tensor_size=2, stages=2), slot_nbytes=1 << 16)


def arrived(side: Side, source: KVCache, streams: list[Stream]) -> KVCache:
    """A sink's cache after everything went well."""
    cache = KVCache.allocate(side.geometry, source.k.dtype)
    cache.fill(PATTERN)
    for stream in streams:
        packed = aligned_buffer(stream.schedule.nbytes)
        gather(source, stream.schedule.region, packed)
        scatter(packed, cache, stream.schedule.region)
    return cache


def differ(side: Side, source: KVCache, got: KVCache, streams: list[Stream], ubatch: int = 1) -> str | None:
    return compare(got, streams, own_pieces(source), PATTERN, side, ubatch)


SAID = re.compile(
    r"layer (\d+), ([KV]), request (\d+), head (\d+), position (\d+) \(element (\d+)\) of microbatch 1 "
    r"(is not what the source has|was written outside the streamed region); "
    r"(\d+) elements of this layer's ([KV]) differ"
)


@pytest.mark.parametrize("data_type", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equal_caches_compare_equal(layout: LayoutName, data_type: DataType) -> None:
    """Bits are compared: not a number is equal to itself, and −0 is not 0."""
    side = side_of(layout, data_type)
    streams = side.local()[0]
    bits = random_cache(side.geometry, seed=4)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[data_type]
    source = KVCache(side.geometry, bits.k.view(dtype), bits.v.view(dtype))
    source.k.view(-1)[:50] = float("nan")
    source.v[0, 0, 0, 0] = 0.0
    got = arrived(side, source, streams)
    assert differ(side, source, got, streams) is None
    got.v[0, 0, 0, 0] = -0.0
    found = differ(side, source, got, streams)
    assert found is not None
    assert f"layer {FIRST_LAYER}, V, request 0, head {FIRST_HEAD}, position 0 (element 0)" in found


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(LAYOUTS),
    st.sampled_from(BOTH),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 255),
)
def test_one_wrong_byte_is_found_and_located(layout: LayoutName, kv: KV, where: float, flip: int) -> None:
    side = side_of(layout)
    geometry, streams = side.geometry, side.local()[0]
    source = random_cache(geometry, seed=5)
    got = arrived(side, source, streams)
    at = int(where * got.bytes(kv).numel())
    got.bytes(kv)[at] ^= flip
    number = logical_ids(geometry, kv).ravel()[at // geometry.itemsize]
    sizes = (geometry.layers, geometry.requests, geometry.heads, geometry.positions, geometry.head_size)
    layer, request, head, position, element = map(int, np.unravel_index(number, sizes))
    said = SAID.fullmatch(differ(side, source, got, streams) or "")
    assert said is not None
    expected = (layer + FIRST_LAYER, kv.upper(), request, head + FIRST_HEAD, position, element)
    assert said.groups() == (
        *map(str, expected),
        "is not what the source has" if position < 7 else "was written outside the streamed region",
        "1",
        kv.upper(),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_first_of_several_differences_is_named_and_all_are_counted(layout: LayoutName) -> None:
    side = side_of(layout)
    streams = side.local()[0]
    source = random_cache(side.geometry)
    got = arrived(side, source, streams)
    wrong = Region(Span(1, 2), Span(2, 3), Span(0, 2), Span(4, 5))  # a token of both heads that did not arrive
    for kv in BOTH:
        got.piece(kv, wrong).view(torch.uint8).fill_(PATTERN)
    found = differ(side, source, got, streams)
    assert found is not None
    said = SAID.fullmatch(found)
    assert said is not None
    assert said.groups()[:5] == (str(FIRST_LAYER + 1), "K", "2", str(FIRST_HEAD), "4")
    assert said.group(8) == "32"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_streams_whose_data_is_exchanged(layout: LayoutName) -> None:
    """Each half of the heads has a stream of its own; right bytes in the wrong half are wrong."""
    side = side_of(layout)
    geometry = side.geometry
    halves = [geometry.region(heads=Span(head, head + 1)) for head in range(2)]
    streams = [Stream(number, StreamSchedule(geometry, half, 5, 2, 1 << 16)) for number, half in enumerate(halves)]
    source = random_cache(geometry)
    assert differ(side, source, arrived(side, source, streams), streams) is None
    got = arrived(side, source, [])
    regions = [stream.schedule.region for stream in streams]
    for out, into in zip(regions, reversed(regions), strict=True):
        packed = aligned_buffer(geometry.region_nbytes(out))
        gather(source, out, packed)
        scatter(packed, got, into)
    found = differ(side, source, got, streams)
    assert found is not None
    assert found.startswith(f"layer {FIRST_LAYER}, K, request 0, head {FIRST_HEAD}, position 0 ")
    missing = differ(side, source, arrived(side, source, streams[:1]), streams)
    assert missing is not None
    assert f"head {FIRST_HEAD + 1}, position 0 (element 0) of microbatch 1 is not what the source has" in missing
    too_much = differ(side, source, arrived(side, source, streams), streams[:1])
    assert too_much is not None
    assert f"head {FIRST_HEAD + 1}, position 0 (element 0) of microbatch 1 was written outside" in too_much


def test_every_stream_is_asked_for_even_after_a_difference() -> None:
    """A source sends all that it has; who stops listening leaves it waiting."""
    side = side_of("hnd")
    streams = side.local()[0]
    source = random_cache(side.geometry)
    asked: list[tuple[int, KV]] = []

    def piece(stream: Stream, region: Region, kv: KV) -> torch.Tensor:
        asked.append((region.layers.start, kv))
        return own_pieces(source)(stream, region, kv)

    assert compare(arrived(side, source, []), streams, piece, PATTERN, side, 0) is not None
    assert asked == [(layer, kv) for layer in range(2) for kv in BOTH]


@pytest.mark.parametrize("pattern", [0x00, 0x7F, 0x80, 0xFF])
def test_any_pattern(pattern: int) -> None:
    side = side_of("nhd", "fp32")
    source = random_cache(side.geometry)
    got = arrived(side, source, [])
    got.fill(pattern)
    assert compare(got, [], own_pieces(source), pattern, side, 0) is None
    assert compare(got, [], own_pieces(source), pattern ^ 1, side, 0) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
def test_as_integers_keeps_the_bits(dtype: torch.dtype) -> None:
    bits = torch.arange(32, dtype=torch.uint8)
    integers = as_integers(bits.view(dtype))
    assert not integers.is_floating_point()
    assert torch.equal(integers.view(torch.uint8), bits)
