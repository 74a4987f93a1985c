"""stream_out / stream_in against a reference that places each element by itself.

``HYPOTHESIS_PROFILE=thorough`` takes 1,000 examples of each property.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from dejavubench.dejavulib.exchange import RegionPair, Setup, exchanges, stream_in, stream_out
from dejavubench.dejavulib.kv_cache import Region, Span

EXAMPLES = {"thorough": 1000}.get(os.environ.get("HYPOTHESIS_PROFILE", ""), 200)
checked = settings(max_examples=EXAMPLES, deadline=None)

Element = tuple[int, int, int, int]
"""(layer, request, head, block of positions) of the whole model."""

Cache = tuple[int, int]
"""Worker and microbatch."""

Place = tuple[Cache, Element]
"""A cache and the element's numbers there."""

POSITIONS_PER_BLOCK = 4
"""Positions of one block: no setup cuts them, so few stand for all."""


# ---- the reference ----


def place_of(setup: Setup, element: Element) -> Place:
    """Return the place of one element by the definition of the three kinds of split alone."""
    layer, request, head, block = element
    stage = max(number for number, cut in enumerate(setup.layer_cuts) if cut <= layer)
    share = setup.heads // setup.tensor_parallel
    worker = stage * setup.tensor_parallel + head // share
    local = (layer - setup.layer_cuts[stage], request % setup.microbatch_size, head % share, block)
    return (worker, request // setup.microbatch_size), local


def list_elements(region: Region) -> Iterator[Element]:
    blocks = range(
        region.positions.start // POSITIONS_PER_BLOCK, region.positions.stop // POSITIONS_PER_BLOCK
    )
    yield from product(range(*region.layers), range(*region.requests), range(*region.heads), blocks)


def caches_of(setup: Setup, region: Region) -> dict[Cache, set[Element]]:
    """Return the elements of a region that each worker's cache of each microbatch holds."""
    contents: dict[Cache, set[Element]] = {}
    for element in list_elements(region):
        contents.setdefault(place_of(setup, element)[0], set()).add(element)
    return contents


def capacity(setup: Setup, worker: int) -> tuple[int, int, int]:
    """Return the layers, requests and heads of one of a worker's caches."""
    stage = worker // setup.tensor_parallel
    layers = setup.layer_cuts[stage + 1] - setup.layer_cuts[stage]
    return layers, setup.microbatch_size, setup.heads // setup.tensor_parallel


# ---- what the plan says, in the reference's words ----


def caches_of_pair(transfer: RegionPair) -> tuple[Cache, Cache]:
    return (transfer.source, transfer.source_microbatch), (
        transfer.target,
        transfer.target_microbatch,
    )


def pair_places(transfer: RegionPair) -> Iterator[tuple[Place, Place]]:
    """Yield both places of each element of a transfer; both sides have the same order."""
    out_cache, in_cache = caches_of_pair(transfer)
    for out, into in zip(
        list_elements(transfer.source_region), list_elements(transfer.target_region), strict=True
    ):
        yield (out_cache, out), (in_cache, into)


def mirror(transfer: RegionPair) -> RegionPair:
    return RegionPair(
        transfer.target,
        transfer.target_microbatch,
        transfer.target_region,
        transfer.source,
        transfer.source_microbatch,
        transfer.source_region,
    )


def plan_sends(source: Setup, target: Setup, region: Region) -> list[RegionPair]:
    return [
        pair
        for worker in range(source.workers)
        for pair in stream_out(source, target, worker, region)
    ]


def plan_receives(source: Setup, target: Setup, region: Region) -> list[RegionPair]:
    return [
        pair
        for worker in range(target.workers)
        for pair in stream_in(source, target, worker, region)
    ]


def group_by_workers(transfers: list[RegionPair]) -> dict[tuple[int, int], list[RegionPair]]:
    groups: dict[tuple[int, int], list[RegionPair]] = {}
    for transfer in transfers:
        groups.setdefault((transfer.source, transfer.target), []).append(transfer)
    return groups


def assert_inside(setup: Setup, worker: int, local: Region) -> None:
    """Assert that a region is not empty and lies within a worker's caches."""
    assert 0 <= worker < setup.workers
    for span, size in zip(
        (local.layers, local.requests, local.heads), capacity(setup, worker), strict=True
    ):
        assert 0 <= span.start < span.stop <= size


# ---- what is drawn ----

Plan = tuple[Setup, Setup, Region]


@cache
def every_span(size: int) -> st.SearchStrategy[Span]:
    """Return the strategy of all non-empty intervals of an axis."""
    return st.sampled_from(
        [Span(start, stop) for stop in range(1, size + 1) for start in range(stop)]
    )


@cache
def setups(layers: int, heads: int) -> st.SearchStrategy[Setup]:
    """Return the strategy of all stages, sharings of the heads and sizes of microbatches."""
    inner = [chosen for count in range(layers) for chosen in combinations(range(1, layers), count)]
    shares = [n for n in range(1, heads + 1) if heads % n == 0]
    parts = st.sampled_from(inner), st.sampled_from(shares), st.integers(1, 5)
    return st.builds(
        lambda cuts, share, microbatch: Setup((0, *cuts, layers), heads, share, microbatch), *parts
    )


@st.composite
def plans(draw: Callable[..., Any]) -> Plan:
    layers, heads, requests = draw(
        st.sampled_from(list(product(range(1, 5), (1, 2, 3, 4, 6), range(1, 7))))
    )
    spans = [draw(every_span(size)) for size in (layers, requests, heads)]
    positions = draw(every_span(2)).scale(POSITIONS_PER_BLOCK)
    return (
        draw(setups(layers, heads)),
        draw(setups(layers, heads)),
        Region(spans[0], spans[1], spans[2], positions),
    )


# ---- properties ----


@checked
@given(plans())
def test_each_element_goes_to_exactly_its_place(plan: Plan) -> None:
    source, target, region = plan
    transfers = plan_sends(source, target, region)
    for transfer in transfers:
        assert_inside(source, transfer.source, transfer.source_region)
        assert_inside(target, transfer.target, transfer.target_region)
        assert (
            transfer.source_region.positions == transfer.target_region.positions == region.positions
        )
    moved = Counter(pair for transfer in transfers for pair in pair_places(transfer))
    expected = {
        (place_of(source, element), place_of(target, element)) for element in list_elements(region)
    }
    assert moved == Counter(dict.fromkeys(expected, 1))
    # The reference itself gives each element a place of its own.
    assert len(expected) == sum(1 for _ in list_elements(region))


@checked
@given(plans())
def test_the_two_sides_mirror_each_other(plan: Plan) -> None:
    source, target, region = plan
    out, into = plan_sends(source, target, region), plan_receives(source, target, region)
    assert Counter(out) == Counter(into)
    # Streams are numbered by the order between two workers.
    assert group_by_workers(out) == group_by_workers(into)
    assert Counter(map(mirror, plan_sends(target, source, region))) == Counter(out)


@checked
@given(plans())
def test_regions_are_as_few_as_the_cuts_allow(plan: Plan) -> None:
    """One per cache of a source and cache of a sink that share something."""
    source, target, region = plan
    out, into = caches_of(source, region), caches_of(target, region)
    meeting = {
        (source_cache, target_cache)
        for source_cache, target_cache in product(out, into)
        if out[source_cache] & into[target_cache]
    }
    connections = [caches_of_pair(transfer) for transfer in plan_sends(source, target, region)]
    assert len(connections) == len(set(connections))  # no two of them could have been one
    assert set(connections) == meeting
    event("few transfers" if len(connections) <= source.workers else "many transfers")


@checked
@given(plans())
def test_exchanges_are_the_plan_pair_by_pair(plan: Plan) -> None:
    source, target, region = plan
    worker_pairs = exchanges(source, target, region)
    pairs_of_worker_0 = [
        region_pair
        for pair in worker_pairs
        for region_pair in pair.pairs
        if region_pair.source == 0
    ]
    assert pairs_of_worker_0 == stream_out(source, target, 0, region)
    counts_by_pair = Counter(region_pair for pair in worker_pairs for region_pair in pair.pairs)
    counts_in_the_plan = Counter(plan_sends(source, target, region))
    assert counts_by_pair == counts_in_the_plan
    workers = [(pair.source, pair.target) for pair in worker_pairs]
    assert workers == sorted(set(workers))
    for pair in worker_pairs:
        assert {(region_pair.source, region_pair.target) for region_pair in pair.pairs} == {
            (pair.source, pair.target)
        }
        expected = {
            (place_of(source, element), place_of(target, element))
            for element in list_elements(pair.region)
        }
        assert expected == {places for transfer in pair.pairs for places in pair_places(transfer)}


@checked
@given(plans(), st.integers(1, 3))
def test_any_equal_setups_move_whole_caches(plan: Plan, microbatches: int) -> None:
    setup = plan[0]
    requests = Span(0, microbatches * setup.microbatch_size)
    region = Region(Span(0, setup.layer_cuts[-1]), requests, Span(0, setup.heads), Span(0, 5))
    transfers = plan_sends(setup, setup, region)
    assert len(transfers) == setup.workers * microbatches
    for transfer in transfers:
        assert mirror(transfer) == transfer
        sizes = tuple(span.size for span in vars(transfer.source_region).values())
        assert sizes == (*capacity(setup, transfer.source), 5)


@pytest.mark.parametrize("turned", [False, True])
def test_setups_that_cut_everything_move_single_vectors(turned: bool) -> None:
    layers_apart = Setup((0, 1, 2, 3), heads=4, tensor_parallel=1, microbatch_size=2)
    heads_apart = Setup((0, 3), heads=4, tensor_parallel=4, microbatch_size=1)
    sides = (heads_apart, layers_apart) if turned else (layers_apart, heads_apart)
    transfers = plan_sends(*sides, Region(Span(0, 3), Span(0, 4), Span(0, 4), Span(7, 8)))
    assert len(transfers) == 3 * 4 * 4
    assert {pair.source_region.tokens_heads for pair in transfers} == {1}


# ---- examples ----


def test_setups_that_differ_in_everything_exchange_known_regions() -> None:
    source = Setup((0, 3, 4), heads=4, tensor_parallel=2, microbatch_size=2)
    target = Setup((0, 2, 4), heads=4, tensor_parallel=1, microbatch_size=3)
    region = Region(Span(0, 4), Span(0, 6), Span(0, 4), Span(0, 10))
    region_pairs = stream_out(source, target, 1, region)  # layers 0–2, heads 2–3
    assert region_pairs[:2] == [
        RegionPair(
            source=1,
            source_microbatch=0,
            source_region=Region(Span(0, 2), Span(0, 2), Span(0, 2), Span(0, 10)),
            target=0,
            target_microbatch=0,
            target_region=Region(Span(0, 2), Span(0, 2), Span(2, 4), Span(0, 10)),
        ),
        RegionPair(
            source=1,
            source_microbatch=1,
            source_region=Region(Span(0, 2), Span(0, 1), Span(0, 2), Span(0, 10)),
            target=0,
            target_microbatch=0,
            target_region=Region(Span(0, 2), Span(2, 3), Span(2, 4), Span(0, 10)),
        ),
    ]
    assert len(region_pairs) == 8  # 2 target stages × (2, 1 + 1, 2 requests)
    assert sum(pair.source_region.tokens_heads for pair in region_pairs) == 3 * 6 * 2 * 10


def test_equal_setups_move_whole_caches_between_equals() -> None:
    setup = Setup((0, 7, 13), heads=4, tensor_parallel=2, microbatch_size=3)
    region = Region(Span(0, 13), Span(0, 6), Span(0, 4), Span(0, 5))
    for worker in range(4):
        layers = 7 if worker < 2 else 6  # of the first stage, and of the second
        whole_region = Region(Span(0, layers), Span(0, 3), Span(0, 2), Span(0, 5))
        assert stream_out(setup, setup, worker, region) == [
            RegionPair(worker, microbatch, whole_region, worker, microbatch, whole_region)
            for microbatch in range(2)
        ]


def test_a_region_of_no_requests_moves_nothing() -> None:
    setup = Setup((0, 2), heads=2)
    region_of_nobody = Region(Span(0, 2), Span(3, 3), Span(0, 2), Span(0, 5))
    assert stream_out(setup, setup, 0, region_of_nobody) == []


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (((1, 3), 4), "layer cuts must rise from 0"),
        (((0,), 4), "layer cuts must rise from 0"),
        (((0, 3, 3), 4), "layer cuts must rise from 0"),
        (((0, 3), 4, 3), "cannot be shared evenly by 3 workers"),
        (((0, 3), 4, 0), "cannot be shared evenly by 0 workers"),
        (((0, 3), 8, 16), "8 KV heads cannot be shared evenly by 16 workers"),
        (((0, 3), 8, 3), "8 KV heads cannot be shared evenly by 3 workers"),
        (((0, 3), 4, 2, 0), "at least one request"),
    ],
)
def test_impossible_setups_are_refused(
    sizes: tuple[tuple[int, ...], int, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Setup(*sizes)


@pytest.mark.parametrize("other", [Setup((0, 3), heads=2), Setup((0, 2), heads=4)])
def test_two_models_are_refused(other: Setup) -> None:
    region = Region(Span(0, 2), Span(0, 1), Span(0, 2), Span(0, 1))
    with pytest.raises(ValueError, match="the two sides hold different models"):
        stream_out(Setup((0, 2), heads=2), other, 0, region)
