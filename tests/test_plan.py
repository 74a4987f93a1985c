"""stream_out / stream_in against a reference that places each element by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product

import pytest
from caches import spans
from hypothesis import given, settings
from hypothesis import strategies as st

from dejavubench.dejavulib.plan import Setup, Transfer, stream_in, stream_out
from dejavubench.kvcache import Region, Span

Element = tuple[int, int, int]
"""(layer, request, head) of the whole model; positions are cut by no setup."""

Place = tuple[int, int, Element]
"""Worker, microbatch and the element's numbers there."""


def place_of(setup: Setup, element: Element) -> Place:
    """Where one element lives, from the definition of pipeline, tensor and data splits alone."""
    layer, request, head = element
    stage = max(number for number, cut in enumerate(setup.layer_cuts) if cut <= layer)
    share = setup.heads // setup.tensor_parallel
    worker = stage * setup.tensor_parallel + head // share
    local = (layer - setup.layer_cuts[stage], request % setup.ubatch_size, head % share)
    return worker, request // setup.ubatch_size, local


def elements(region: Region) -> Iterator[Element]:
    yield from product(range(*region.layers), range(*region.requests), range(*region.heads))


def pairs(transfer: Transfer) -> Iterator[tuple[Place, Place]]:
    """From where to where each element of a transfer goes, both sides walked in the same order."""
    for out, into in zip(elements(transfer.source_region), elements(transfer.target_region), strict=True):
        yield (
            (transfer.source, transfer.source_ubatch, out),
            (transfer.target, transfer.target_ubatch, into),
        )


@st.composite
def setups(draw: Callable[..., int], layers: int, heads: int) -> Setup:
    inner = draw(st.sets(st.integers(1, layers - 1), max_size=layers - 1)) if layers > 1 else set()
    shares = [n for n in range(1, heads + 1) if heads % n == 0]
    return Setup((0, *sorted(inner), layers), heads, draw(st.sampled_from(shares)), draw(st.integers(1, 3)))


@st.composite
def plans(draw: Callable[..., Setup]) -> tuple[Setup, Setup, Region]:
    layers, heads, requests = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 3, 4])), draw(st.integers(1, 6))
    region = Region(draw(spans(layers)), draw(spans(requests)), draw(spans(heads)), draw(spans(9)))
    return draw(setups(layers, heads)), draw(setups(layers, heads)), region


def sent(source: Setup, target: Setup, region: Region) -> list[Transfer]:
    return [t for worker in range(source.workers) for t in stream_out(source, target, worker, region)]


@settings(max_examples=100, deadline=None)
@given(plans())
def test_each_element_goes_to_exactly_its_place(plan: tuple[Setup, Setup, Region]) -> None:
    source, target, region = plan
    moved = Counter(pair for transfer in sent(source, target, region) for pair in pairs(transfer))
    expected = Counter((place_of(source, each), place_of(target, each)) for each in elements(region))
    assert moved == expected


@settings(max_examples=40, deadline=None)
@given(plans())
def test_the_two_sides_mirror_each_other(plan: tuple[Setup, Setup, Region]) -> None:
    source, target, region = plan
    out = sent(source, target, region)
    into = [t for worker in range(target.workers) for t in stream_in(source, target, worker, region)]
    assert Counter(out) == Counter(into)
    for worker in range(source.workers):
        for peer in range(target.workers):  # both see the transfers between them in one order
            leaving = [t for t in stream_out(source, target, worker, region) if t.target == peer]
            arriving = [t for t in stream_in(source, target, peer, region) if t.source == worker]
            assert leaving == arriving
    back = [t for worker in range(target.workers) for t in stream_out(target, source, worker, region)]
    turned = [
        Transfer(t.target, t.target_ubatch, t.target_region, t.source, t.source_ubatch, t.source_region) for t in back
    ]
    assert Counter(turned) == Counter(out)


@settings(max_examples=60, deadline=None)
@given(plans())
def test_transfers_are_as_few_as_the_cuts_allow(plan: tuple[Setup, Setup, Region]) -> None:
    source, target, region = plan
    caches = Counter((t.source, t.source_ubatch, t.target, t.target_ubatch) for t in sent(source, target, region))
    # Elements of one cache that go to one other cache form a box: one transfer moves it.
    expected = {(*place_of(source, each)[:2], *place_of(target, each)[:2]) for each in elements(region)}
    assert caches == Counter(dict.fromkeys(expected, 1))


@settings(max_examples=50, deadline=None)
@given(plans())
def test_positions_stay_as_they_are(plan: tuple[Setup, Setup, Region]) -> None:
    source, target, region = plan
    for transfer in sent(source, target, region):
        assert transfer.source_region.positions == transfer.target_region.positions == region.positions


def test_uneven_stages_other_tensor_split_other_batch() -> None:
    source = Setup((0, 3, 4), heads=4, tensor_parallel=2, ubatch_size=2)
    target = Setup((0, 2, 4), heads=4, tensor_parallel=1, ubatch_size=3)
    region = Region(Span(0, 4), Span(0, 6), Span(0, 4), Span(0, 10))
    first = stream_out(source, target, 1, region)  # layers 0–2, heads 2–3
    assert first[:2] == [
        Transfer(
            1, 0, Region(Span(0, 2), Span(0, 2), Span(0, 2), Span(0, 10)),
            0, 0, Region(Span(0, 2), Span(0, 2), Span(2, 4), Span(0, 10)),
        ),
        Transfer(
            1, 1, Region(Span(0, 2), Span(0, 1), Span(0, 2), Span(0, 10)),
            0, 0, Region(Span(0, 2), Span(2, 3), Span(2, 4), Span(0, 10)),
        ),
    ]  # fmt: skip
    assert len(first) == 8  # 2 target stages × (2, 1 + 1, 2 requests)
    assert sum(t.source_region.tokens_heads for t in first) == 3 * 6 * 2 * 10


def test_equal_setups_move_whole_caches_between_equals() -> None:
    setup = Setup((0, 7, 13), heads=4, tensor_parallel=2, ubatch_size=3)
    region = Region(Span(0, 13), Span(0, 6), Span(0, 4), Span(0, 5))
    for worker in range(4):
        whole = Region(Span(0, 7 if worker < 2 else 6), Span(0, 3), Span(0, 2), Span(0, 5))
        assert stream_out(setup, setup, worker, region) == [
            Transfer(worker, ubatch, whole, worker, ubatch, whole) for ubatch in range(2)
        ]


def test_a_region_of_no_requests_moves_nothing() -> None:
    setup = Setup((0, 2), heads=2)
    assert stream_out(setup, setup, 0, Region(Span(0, 2), Span(3, 3), Span(0, 2), Span(0, 5))) == []


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (((1, 3), 4), "layer cuts must rise from 0"),
        (((0,), 4), "layer cuts must rise from 0"),
        (((0, 3, 3), 4), "layer cuts must rise from 0"),
        (((0, 3), 4, 3), "cannot be shared evenly by 3 workers"),
        (((0, 3), 4, 0), "cannot be shared evenly by 0 workers"),
        (((0, 3), 4, 2, 0), "at least one request"),
    ],
)
def test_impossible_setups_are_refused(numbers: tuple[tuple[int, ...], int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Setup(*numbers)


@pytest.mark.parametrize("other", [Setup((0, 3), heads=2), Setup((0, 2), heads=4)])
def test_two_models_are_refused(other: Setup) -> None:
    with pytest.raises(ValueError, match="the two sides hold different models"):
        stream_out(Setup((0, 2), heads=2), other, 0, Region(Span(0, 2), Span(0, 1), Span(0, 2), Span(0, 1)))
