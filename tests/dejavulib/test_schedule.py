"""Chunks and their order: one packed stream at every level, each element once, none too large."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dejavubench.dejavulib.extents import cut_extent_views
from dejavubench.dejavulib.kv_cache import BOTH, KVGeometry, KVLayout, Region, Span
from dejavubench.dejavulib.levels import LEVELS, Level
from dejavubench.dejavulib.packing import gather
from dejavubench.dejavulib.schedule import StreamSchedule
from helpers.caches import inside, packed_stream, random_cache, schedules

levels = st.sampled_from(list(LEVELS.values()))


@settings(max_examples=200, deadline=None)
@given(schedules(), levels)
def test_chunks_are_consecutive_and_none_is_larger_than_a_slot(
    schedule: StreamSchedule, level: Level
) -> None:
    chunks = list(schedule.all_chunks(level))
    assert [chunk.index for chunk in chunks] == list(range(schedule.count(level)))
    assert [chunk.step for chunk in chunks] == sorted(chunk.step for chunk in chunks)
    end = 0
    for chunk in chunks:
        assert chunk.offset == end
        assert chunk.nbytes == schedule.geometry.region_nbytes(chunk.region) > 0
        assert not level.buffered or chunk.nbytes <= schedule.slot_nbytes
        end += chunk.nbytes
    assert end == schedule.nbytes
    for step in range(schedule.steps + 1):
        of_step = list(schedule.chunks(level, step))
        assert of_step == [chunk for chunk in chunks if chunk.step == step]
        assert bool(of_step) == schedule.leaves(step)
        assert not of_step or of_step[0].offset == schedule.step_offset(step)
        assert sum(chunk.nbytes for chunk in of_step) == schedule.step_nbytes(step)
        if level.layerwise and step == 0:
            assert all(chunk.region.layers.size == 1 for chunk in of_step)


@settings(max_examples=100, deadline=None)
@given(schedules(), levels)
def test_every_element_moves_exactly_once(schedule: StreamSchedule, level: Level) -> None:
    for kv in BOTH:
        moved = np.zeros(schedule.geometry.shape(kv), dtype=int)
        for chunk in schedule.all_chunks(level):
            moved += inside(schedule.geometry, kv, chunk.region)
            positions = schedule.positions(chunk.step)
            assert positions & chunk.region.positions == chunk.region.positions
        assert np.array_equal(moved, inside(schedule.geometry, kv, schedule.region).astype(int))
    written = Span(0, schedule.input_len + schedule.steps)
    assert schedule.region.positions == written


@settings(max_examples=200, deadline=None)
@given(schedules())
def test_decode_steps_leave_in_groups_of_the_flush_interval(schedule: StreamSchedule) -> None:
    """Held against a list that is made step by step."""
    groups, waiting = [[0]], list[int]()
    for step in range(1, schedule.steps + 1):
        waiting.append(step)
        if len(waiting) == schedule.flush_interval or step == schedule.steps:
            groups.append(waiting)
            waiting = []
    leaving = [group[-1] for group in groups]
    assert [schedule.last_step(group) for group in range(schedule.group_count)] == leaving
    assert schedule.last_step(schedule.group_count) == schedule.steps + 1
    for number, group in enumerate(groups):
        first_position = schedule.input_len + group[0] - 1 if number else 0
        size = len(group) if number else schedule.input_len
        assert schedule.positions(group[-1]) == Span(first_position, first_position + size)
        for step in group:
            assert schedule.find_group(step) == number
            assert schedule.leaves(step) == (step == group[-1])
            assert schedule.positions(step).size == (size if step == group[-1] else 0)
            assert schedule.step_offset(step) == first_position * schedule.position_nbytes
            later = [other_step for other_step in leaving if other_step > step]
            assert schedule.step_after(step) == (later or [schedule.steps + 1])[0]
    assert schedule.step_offset(schedule.steps + 1) == schedule.nbytes


@settings(max_examples=150, deadline=None)
@given(schedules())
def test_the_packed_stream_is_the_same_at_every_level(schedule: StreamSchedule) -> None:
    cache = random_cache(schedule.geometry, seed=3)
    expected = packed_stream(cache, schedule)
    assert len(expected) == schedule.nbytes
    for level in LEVELS.values():
        packed = torch.zeros(schedule.nbytes, dtype=torch.uint8)
        for chunk in schedule.all_chunks(level):
            place = packed[chunk.offset : chunk.offset + chunk.nbytes]
            if level.buffered:
                gather(cache, chunk.region, place)
            else:
                views = cut_extent_views(cache, schedule.extents(chunk.step))
                place.copy_(torch.frombuffer(bytearray(b"".join(views)), dtype=torch.uint8))
        assert packed.numpy().tobytes() == expected, f"level {level.name}"


@settings(max_examples=100, deadline=None)
@given(schedules())
def test_atoms_fit_a_slot_and_are_no_smaller_than_needed(schedule: StreamSchedule) -> None:
    for step in range(schedule.steps + 1):
        atoms = schedule.atoms(step)
        if not schedule.leaves(step):
            assert not atoms
            continue
        sizes = [schedule.geometry.region_nbytes(atom) for atom in atoms]
        assert all(atom.layers.size == 1 for atom in atoms)
        assert max(sizes) <= schedule.slot_nbytes
        if schedule.layer_nbytes(step) <= schedule.slot_nbytes:
            assert len(atoms) == schedule.region.layers.size
        for (this_atom, this_nbytes), (next_atom, next_nbytes) in zip(
            zip(atoms, sizes, strict=True), zip(atoms[1:], sizes[1:], strict=True), strict=False
        ):
            whole_requests = schedule.positions(step) == this_atom.positions == next_atom.positions
            joinable = this_atom.layers == next_atom.layers and (
                whole_requests or this_atom.requests == next_atom.requests
            )
            assert (
                not joinable
                or this_nbytes + next_nbytes > schedule.slot_nbytes
                or this_nbytes > next_nbytes
            )


@pytest.mark.parametrize(
    ("slot", "expected"),
    [
        # A layer of the prompt has 3 requests × 4 positions × 256 bytes = 3072, of a step 768.
        # There are 4 layers.
        (16384, {"0": [1, 1], "1": [1, 1], "2": [4, 1], "3": [4, 1]}),
        (6144, {"0": [1, 1], "1": [2, 1], "2": [4, 1], "3": [4, 1]}),
        # Prompt: chunks of two requests and of one. Step: of 3 layers and of 1.
        (3071, {"0": [1, 1], "1": [8, 2], "2": [8, 2], "3": [8, 2]}),
        # Prompt: the same. Step: of 2 layers each.
        (2048, {"0": [1, 1], "1": [8, 2], "2": [8, 2], "3": [8, 2]}),
        (2047, {"0": [1, 1], "1": [12, 2], "2": [12, 2], "3": [12, 2]}),  # request by request
        (1023, {"0": [1, 1], "1": [24, 4], "2": [24, 4], "3": [24, 4]}),  # three positions and one
        (256, {"0": [1, 1], "1": [48, 12], "2": [48, 12], "3": [48, 12]}),
    ],
)
def test_a_step_has_as_few_chunks_as_slots_allow(slot: int, expected: dict[str, list[int]]) -> None:
    geometry = KVGeometry(layers=4, requests=3, heads=2, positions=10, head_size=32, itemsize=2)
    schedule = StreamSchedule(geometry, geometry.whole, input_len=4, steps=3, slot_nbytes=slot)
    assert schedule.layer_nbytes(0) == 4 * 3 * 2 * 32 * 2 * 2  # 4 positions; K and V of 2 bytes
    for name, (prompt, token) in expected.items():
        assert [len(list(schedule.chunks(LEVELS[name], step))) for step in range(4)] == [
            prompt,
            token,
            token,
            token,
        ]
        assert schedule.count(LEVELS[name]) == prompt + 3 * token


def test_both_sides_derive_the_same_chunks() -> None:
    """The two sides' caches differ; what moves between them does not."""
    source = KVGeometry(
        layers=6, requests=2, heads=4, positions=12, head_size=8, itemsize=2, layout=KVLayout.FT
    )
    target = KVGeometry(
        layers=3, requests=5, heads=2, positions=20, head_size=8, itemsize=2, layout=KVLayout.FT
    )
    out = Region(Span(3, 6), Span(0, 2), Span(2, 4), source.whole.positions)
    into = Region(Span(0, 3), Span(2, 4), Span(0, 2), target.whole.positions)
    for level in LEVELS.values():
        leaving = list(
            StreamSchedule(source, out, input_len=5, steps=3, slot_nbytes=200).all_chunks(level)
        )
        arriving = list(
            StreamSchedule(target, into, input_len=5, steps=3, slot_nbytes=200).all_chunks(level)
        )
        assert [(chunk.index, chunk.step, chunk.offset, chunk.nbytes) for chunk in leaving] == [
            (chunk.index, chunk.step, chunk.offset, chunk.nbytes) for chunk in arriving
        ]
        for leaving_chunk, arriving_chunk in zip(leaving, arriving, strict=True):
            assert leaving_chunk.region.layers == arriving_chunk.region.layers.shift(3)
            assert leaving_chunk.region.requests.shift(2) == arriving_chunk.region.requests
            assert leaving_chunk.region.positions == arriving_chunk.region.positions


@st.composite
def schedules_of_two_sides(draw: st.DrawFn) -> tuple[StreamSchedule, StreamSchedule]:
    """Draw one prompt's schedules of two caches: the same region, at a place of its own in each."""
    layout = draw(st.sampled_from(list(KVLayout)))
    # Extent of the region in layers, requests, heads and positions.
    shape = [draw(st.integers(1, 3)) for _ in range(4)]
    sides: list[tuple[KVGeometry, Region]] = []
    for _ in range(2):
        layers, requests, heads, positions = (extent + draw(st.integers(0, 1)) for extent in shape)
        geometry = KVGeometry(
            layers=layers,
            requests=requests,
            heads=heads,
            positions=positions,
            head_size=8,
            itemsize=2,
            layout=layout,
        )
        sizes = (layers, requests, heads)
        starts = [
            draw(st.integers(0, size - extent)) for size, extent in zip(sizes, shape, strict=False)
        ]
        spans = [Span(start, start + extent) for start, extent in zip(starts, shape, strict=False)]
        region = Region(spans[0], spans[1], spans[2], Span(0, shape[3]))  # steps begin at 0
        sides.append((geometry, region))
    (source, out), (target, into) = sides
    prompt: dict[str, Any] = {"input_len": shape[3], "steps": 0, "slot_nbytes": 1 << 20}
    return (
        StreamSchedule(source, out, **prompt, other_geometry=target),
        StreamSchedule(target, into, **prompt, other_geometry=source),
    )


@settings(max_examples=150, deadline=None)
@given(schedules_of_two_sides())
def test_both_sides_cut_what_moves_into_the_same_extents(
    both_schedules: tuple[StreamSchedule, StreamSchedule],
) -> None:
    """Even if an extent of one side is none of the other; and none is shorter than it must be."""
    source, target = both_schedules
    out, into = (list(schedule.extents(0)) for schedule in both_schedules)
    leaving_extents = [(extent.kv, len(extent.offsets), extent.nbytes) for extent in out]
    arriving_extents = [(extent.kv, len(extent.offsets), extent.nbytes) for extent in into]
    assert leaving_extents == arriving_extents
    atoms = [[atom for atom in schedule.atoms(0) for _ in BOTH] for schedule in both_schedules]
    for extent, leaving_atom, arriving_atom in zip(out, *atoms, strict=True):
        assert extent.nbytes == min(
            source.geometry.extents(extent.kv, leaving_atom).nbytes,
            target.geometry.extents(extent.kv, arriving_atom).nbytes,
        )


def test_a_slot_that_is_too_small_is_refused() -> None:
    geometry = KVGeometry(layers=2, requests=3, heads=2, positions=10, head_size=32, itemsize=2)
    one_position = 2 * 2 * 32 * 2
    StreamSchedule(geometry, geometry.whole, input_len=4, steps=3, slot_nbytes=one_position)
    with pytest.raises(
        ValueError, match=f"slot of {one_position - 1} bytes does not hold one position"
    ):
        StreamSchedule(geometry, geometry.whole, input_len=4, steps=3, slot_nbytes=one_position - 1)


def test_positions_beyond_the_cache_are_refused() -> None:
    geometry = KVGeometry(layers=2, requests=3, heads=2, positions=10, head_size=32, itemsize=2)
    StreamSchedule(geometry, geometry.whole, input_len=7, steps=3, slot_nbytes=1024)
    with pytest.raises(ValueError, match="is not inside a cache"):
        StreamSchedule(geometry, geometry.whole, input_len=8, steps=3, slot_nbytes=1024)
