"""Verification: a wrong byte is found wherever it is, and said to be where it is."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dejavubench.bench.assignment.worker import WorkerView
from dejavubench.bench.checks.cache_bits import as_integers
from dejavubench.bench.checks.destination import compare_packed
from dejavubench.bench.checks.sink_caches import PieceReceiver, compare
from dejavubench.config.points import DataType, LayoutName, Point
from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.kv_cache import BOTH, KV, KVCache, Region, Span
from dejavubench.dejavulib.packing import aligned_buffer, gather, scatter
from dejavubench.dejavulib.schedule import Chunk, StreamSchedule
from dejavubench.models.hub import specs
from dejavubench.parallel.topology import Topology
from helpers.caches import logical_ids, logical_shape, random_cache

LAYOUTS: tuple[LayoutName, ...] = ("ft", "hnd", "nhd")
PATTERN = 0x2B
WRITTEN = 7
"""Positions that are streamed: a prompt of 5 and 2 steps, of the 9 that a cache has."""

FIRST_LAYER, FIRST_HEAD = 3, 2
"""First layer and head of the tested worker: second stage of 5 layers, second half of 4 heads."""


def view_of(layout: LayoutName, data_type: DataType = "fp16") -> WorkerView:
    """Return worker 3 of two stages × two tensor ranks: 2 layers, 2 heads, 7 of 9 positions."""
    spec = specs.make_custom_spec(
        layer_num=5, head_num=4, size_per_head=16, vocab_size=10, context=16
    )
    point = Point(
        "p000",
        spec,
        data_type,
        layout,
        ubatch_size=3,
        input_len=5,
        output_len=3,
        positions=9,
        tensor_para_size=2,
        pipeline_para_size=2,
    )
    return WorkerView(
        point, Topology(size=8, rank=7, tensor_size=2, stage_count=2), slot_nbytes=1 << 16
    )


def make_arrived_cache(view: WorkerView, source: KVCache, streams: list[Stream]) -> KVCache:
    """Return a sink's cache in which all streams have arrived."""
    cache = KVCache.allocate(view.geometry, source.k.dtype)
    cache.fill(PATTERN)
    for stream in streams:
        packed = aligned_buffer(stream.schedule.nbytes)
        gather(source, stream.schedule.region, packed)
        scatter(packed, cache, stream.schedule.region)
    return cache


def make_piece_reader(cache: KVCache) -> PieceReceiver:
    """Return the content of this process's own cache."""
    return lambda stream, region, kv: as_integers(cache.piece(kv, region).contiguous())


def find_difference(
    view: WorkerView, source: KVCache, received: KVCache, streams: list[Stream], microbatch: int = 1
) -> str | None:
    return compare(received, streams, make_piece_reader(source), PATTERN, view, microbatch)


DIFFERENCE = re.compile(
    r"layer (\d+), ([KV]), request (\d+), head (\d+), position (\d+) \(element (\d+)\) "
    r"of microbatch 1 "
    r"(is not what the source has|was written outside the streamed region); "
    r"(\d+) elements of this layer's ([KV]) differ"
)


@pytest.mark.parametrize("data_type", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equal_caches_compare_equal(layout: LayoutName, data_type: DataType) -> None:
    """Bits are compared: not a number is equal to itself, and −0 is not 0."""
    view = view_of(layout, data_type)
    streams = view.local_streams()[0]
    bits = random_cache(view.geometry, seed=4)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[data_type]
    source = KVCache(view.geometry, bits.k.view(dtype), bits.v.view(dtype))
    source.k.view(-1)[:50] = float("nan")
    source.v[0, 0, 0, 0] = 0.0
    received = make_arrived_cache(view, source, streams)
    assert find_difference(view, source, received, streams) is None
    received.v[0, 0, 0, 0] = -0.0
    difference = find_difference(view, source, received, streams)
    assert difference is not None
    assert (
        f"layer {FIRST_LAYER}, V, request 0, head {FIRST_HEAD}, position 0 (element 0)"
        in difference
    )


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(LAYOUTS),
    st.sampled_from(BOTH),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 255),
)
def test_one_wrong_byte_is_found_and_located(
    layout: LayoutName, kv: KV, share: float, flip: int
) -> None:
    view = view_of(layout)
    geometry, streams = view.geometry, view.local_streams()[0]
    source = random_cache(geometry, seed=5)
    received = make_arrived_cache(view, source, streams)
    index = int(share * received.bytes(kv).numel())
    received.bytes(kv)[index] ^= flip
    number = logical_ids(geometry, kv).ravel()[index // geometry.itemsize]
    sizes = logical_shape(geometry)
    layer, request, head, position, element = map(int, np.unravel_index(number, sizes))
    match = DIFFERENCE.fullmatch(find_difference(view, source, received, streams) or "")
    assert match is not None
    expected = (layer + FIRST_LAYER, kv.upper(), request, head + FIRST_HEAD, position, element)
    assert match.groups() == (
        *map(str, expected),
        "is not what the source has"
        if position < WRITTEN
        else "was written outside the streamed region",
        "1",
        kv.upper(),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_first_of_several_differences_is_named_and_all_are_counted(layout: LayoutName) -> None:
    view = view_of(layout)
    streams = view.local_streams()[0]
    source = random_cache(view.geometry)
    received = make_arrived_cache(view, source, streams)
    # One token of both heads is made to be missing.
    missing_region = Region(Span(1, 2), Span(2, 3), Span(0, 2), Span(4, 5))
    for kv in BOTH:
        received.piece(kv, missing_region).view(torch.uint8).fill_(PATTERN)
    difference = find_difference(view, source, received, streams)
    assert difference is not None
    match = DIFFERENCE.fullmatch(difference)
    assert match is not None
    assert match.groups()[:5] == (str(FIRST_LAYER + 1), "K", "2", str(FIRST_HEAD), "4")
    assert match.group(8) == "32"  # 2 heads × 16 elements


@pytest.mark.parametrize("layout", LAYOUTS)
def test_right_bytes_in_another_streams_place_are_a_difference(layout: LayoutName) -> None:
    """Each half of the heads has a stream of its own; right bytes in the wrong half are wrong."""
    view = view_of(layout)
    geometry = view.geometry
    halves = [geometry.region(heads=Span(head, head + 1)) for head in range(2)]
    streams = [
        Stream(number, StreamSchedule(geometry, half, input_len=5, steps=2, slot_nbytes=1 << 16))
        for number, half in enumerate(halves)
    ]
    source = random_cache(geometry)
    assert find_difference(view, source, make_arrived_cache(view, source, streams), streams) is None
    received = make_arrived_cache(view, source, [])
    regions = [stream.schedule.region for stream in streams]
    for out, into in zip(regions, reversed(regions), strict=True):
        packed = aligned_buffer(geometry.region_nbytes(out))
        gather(source, out, packed)
        scatter(packed, received, into)
    difference = find_difference(view, source, received, streams)
    assert difference is not None
    assert difference.startswith(
        f"layer {FIRST_LAYER}, K, request 0, head {FIRST_HEAD}, position 0 "
    )
    difference_of_the_second = find_difference(
        view, source, make_arrived_cache(view, source, streams[:1]), streams
    )
    assert difference_of_the_second is not None
    assert (
        f"head {FIRST_HEAD + 1}, position 0 (element 0) of microbatch 1 is not what the source has"
        in difference_of_the_second
    )
    too_much = find_difference(view, source, make_arrived_cache(view, source, streams), streams[:1])
    assert too_much is not None
    assert (
        f"head {FIRST_HEAD + 1}, position 0 (element 0) of microbatch 1 was written outside"
        in too_much
    )


def test_every_stream_is_asked_for_even_after_a_difference() -> None:
    """A source sends all that it has; who stops listening leaves it waiting."""
    view = view_of("hnd")
    streams = view.local_streams()[0]
    source = random_cache(view.geometry)
    asked: list[tuple[int, KV]] = []

    def piece(stream: Stream, region: Region, kv: KV) -> torch.Tensor:
        asked.append((region.layers.start, kv))
        return make_piece_reader(source)(stream, region, kv)

    assert (
        compare(make_arrived_cache(view, source, []), streams, piece, PATTERN, view, 0) is not None
    )
    assert asked == [(layer, kv) for layer in range(2) for kv in BOTH]


def packed_by_indexing(cache: KVCache, stream: Stream) -> torch.Tensor:
    """Return the bytes of a packed stream, made without the library's own copies."""
    pieces = [
        as_integers(cache.piece(kv, atom)).reshape(-1)
        for step in range(3)
        for atom in stream.schedule.atoms(step)
        for kv in BOTH
    ]
    return torch.cat(pieces).view(torch.uint8)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(LAYOUTS), st.sampled_from([1 << 16, 600]), st.data())
def test_a_wrong_byte_in_a_packed_stream_is_located(
    layout: LayoutName, slot: int, data: st.DataObject
) -> None:
    """A local destination's order is checked by indexing, not by the library's own copies."""
    view = replace(view_of(layout), slot_nbytes=slot)
    (stream,) = view.local_streams()[0]
    source = random_cache(view.geometry, seed=6)
    packed = packed_by_indexing(source, stream)

    def fetch(_: Stream, chunk: Chunk) -> torch.Tensor:
        return packed[chunk.offset : chunk.offset + chunk.nbytes]

    assert compare_packed(fetch, source, [stream], view, 1) is None
    step = data.draw(st.integers(0, 2))
    atom = data.draw(st.sampled_from(stream.schedule.atoms(step)))
    kv = data.draw(st.sampled_from(BOTH))
    request = data.draw(st.integers(*(atom.requests.start, atom.requests.stop - 1)))
    head = data.draw(st.integers(0, 1))
    position = data.draw(st.integers(atom.positions.start, atom.positions.stop - 1))
    elements = Region(
        atom.layers, Span(request, request + 1), Span(head, head + 1), Span(position, position + 1)
    )
    marked = KVCache.allocate(view.geometry, torch.int16)
    marked.piece(kv, elements).fill_(1)
    marks = packed_by_indexing(marked, stream).view(torch.int16)
    packed.view(torch.int16)[int(torch.nonzero(marks)[0])] ^= 0x100
    match = DIFFERENCE.fullmatch(compare_packed(fetch, source, [stream], view, 1) or "")
    assert match is not None
    expected = (
        atom.layers.start + FIRST_LAYER,
        kv.upper(),
        request,
        head + FIRST_HEAD,
        position,
        0,
    )
    assert match.groups()[:6] == tuple(map(str, expected))
    assert match.group(7) == "is not what the source has"


@pytest.mark.parametrize("pattern", [0x00, 0x7F, 0x80, 0xFF])
def test_only_the_expected_pattern_outside_the_streams_is_accepted(pattern: int) -> None:
    view = view_of("nhd", "fp32")
    source = random_cache(view.geometry)
    received = make_arrived_cache(view, source, [])
    received.fill(pattern)
    assert compare(received, [], make_piece_reader(source), pattern, view, 0) is None
    assert compare(received, [], make_piece_reader(source), pattern ^ 1, view, 0) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
def test_as_integers_keeps_the_bits(dtype: torch.dtype) -> None:
    bits = torch.arange(32, dtype=torch.uint8)
    integers = as_integers(bits.view(dtype))
    assert not integers.is_floating_point()
    assert torch.equal(integers.view(torch.uint8), bits)
