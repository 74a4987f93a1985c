"""The model of time of predictions: closed forms at its limits, and what never may happen."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dejavubench.analysis.prediction.request import (
    FASTEST_RATE,
    PREDICTED_LEVELS,
    SOCKET_NBYTES,
    ChunkCosts,
    StreamedRequest,
)
from dejavubench.analysis.prediction.table import find_first_for_good

# 4 layers in 100 ms, 6 steps of 10 ms; a layer has 1000 bytes, a step 400.
PLAIN = StreamedRequest(
    layer_count=4,
    step_count=6,
    prompt_ms=100.0,
    token_ms=10.0,
    prompt_nbytes=4000.0,
    step_nbytes=400.0,
)
COSTS = ChunkCosts(
    helper_ms=0.3, helper_ms_per_byte=1e-4, sink_ms=0.2, sink_ms_per_byte=2e-4, latency_ms=0.5
)
PACKED = replace(PLAIN, costs=COSTS)

times = st.floats(0.0, 5.0)


@st.composite
def requests(draw: st.DrawFn) -> StreamedRequest:
    costs = ChunkCosts(
        helper_ms=draw(times),
        helper_ms_per_byte=draw(st.floats(0.0, 1e-3)),
        sink_ms=draw(times),
        sink_ms_per_byte=draw(st.floats(0.0, 1e-3)),
        latency_ms=draw(times),
        slot_nbytes=draw(st.sampled_from([math.inf, 500.0, 3000.0])),
        slot_count=draw(st.sampled_from([None, 1, 4])),
        least_piece_count=draw(st.integers(1, 3)),
    )
    return StreamedRequest(
        layer_count=draw(st.integers(1, 5)),
        step_count=draw(st.integers(0, 9)),
        prompt_ms=draw(st.floats(1.0, 100.0)),
        token_ms=draw(st.floats(0.1, 10.0)),
        prompt_nbytes=draw(st.floats(1.0, 1e4)),
        step_nbytes=draw(st.floats(1.0, 1e3)),
        message_count=draw(st.integers(0, 100)),
        message_ms=draw(times),
        message_nbytes=draw(st.floats(0.0, 200.0)),
        flush_interval=draw(st.integers(1, 4)),
        costs=costs,
        prompt_rest_ms=draw(times),
        token_rest_ms=draw(st.floats(0.0, 1.0)),
        burst_nbytes=draw(st.sampled_from([0.0, 500.0])),
        layer_lead_share=draw(st.floats(0.0, 1.0)),
    )


@given(requests(), st.sampled_from(PREDICTED_LEVELS), st.floats(-2, 8), st.floats(0.01, 4))
def test_an_overhead_never_rises_with_the_rate(
    request_: StreamedRequest, level: str, power: float, more: float
) -> None:
    slow_rate, fast_rate = 10.0**power, 10.0 ** (power + more)
    slow_link_ms, fast_link_ms = (
        request_.predict_ms(level, slow_rate),
        request_.predict_ms(level, fast_rate),
    )
    assert fast_link_ms <= slow_link_ms * (1 + 1e-12)
    assert fast_link_ms >= request_.total_ms * (1 - 1e-12)


@given(requests(), st.sampled_from(PREDICTED_LEVELS), st.floats(-2, 8), st.floats(0.01, 4))
def test_an_overhead_never_rises_with_the_rate_if_noise_made_a_rest_negative(
    request_: StreamedRequest, level: str, power: float, more: float
) -> None:
    noisy = replace(
        request_,
        prompt_rest_ms=-0.5 * request_.prompt_ms,
        token_rest_ms=-0.5 * request_.token_ms,
    )
    slow, fast = 10.0**power, 10.0 ** (power + more)
    assert noisy.predict_ms(level, fast) <= noisy.predict_ms(level, slow) * (1 + 1e-12)


@given(requests(), st.sampled_from(PREDICTED_LEVELS), st.floats(-2, 8))
def test_a_cost_is_never_negative(request_: StreamedRequest, level: str, power: float) -> None:
    """A request with costs is never faster than the same over an ideal link."""
    ideal = replace(
        request_,
        costs=ChunkCosts(),
        message_ms=0.0,
        message_nbytes=0.0,
        prompt_rest_ms=0.0,
        token_rest_ms=0.0,
    )
    rate = 10.0**power
    assert request_.predict_ms(level, rate) >= ideal.predict_ms(level, rate) * (1 - 1e-12)


def complete_queue(
    request: StreamedRequest, rate: float, chunks: list[tuple[float, float]]
) -> list[float]:
    """Return when each chunk of a queue is complete, by the formulas of docs/method/prediction.md.

    Args:
        chunks: when each chunk is ready, and its bytes.
    """
    costs = request.costs
    burst_ms = request.burst_nbytes / rate
    helper, link, sink = [0.0], [-burst_ms], [0.0]
    complete: list[float] = []
    for place, (ready, nbytes) in enumerate(chunks):
        has_slot = costs.slot_count is None or place < costs.slot_count
        freed = 0.0 if has_slot else complete[place - (costs.slot_count or 0)]
        own_ms = costs.helper_ms + costs.helper_ms_per_byte * nbytes
        helper.append(max(helper[-1], ready, freed) + own_ms)
        sent = max(helper[-1], sink[-1] - SOCKET_NBYTES / rate)
        link.append(max(link[-1], sent - burst_ms) + nbytes / rate)
        put_ms = costs.sink_ms + costs.sink_ms_per_byte * nbytes
        sink.append(max(link[-1], sent, sink[-1]) + put_ms)
        complete.append(sink[-1] + costs.latency_ms)
    return complete


def total_by_formula(request: StreamedRequest, level: str, rate: float) -> float:
    """Return TOTAL by the formulas, for chunks that fit their slots and groups of one step."""
    prompt_ms = request.prompt_ms + request.prompt_rest_ms
    token_ms = request.token_ms + request.token_rest_ms
    layers, steps, step_nbytes = request.layer_count, request.step_count, request.step_nbytes
    steps_in_turn_ms = steps * (token_ms + step_nbytes / rate)
    if level == "0":
        total_ms = prompt_ms + request.prompt_nbytes / rate + steps_in_turn_ms
        for count, message_ms, nbytes in (
            (request.prompt_message_count, request.prompt_message_ms, request.prompt_nbytes),
            (request.message_count, request.message_ms, steps * step_nbytes),
        ):
            packets_ms = count * request.message_nbytes / rate
            if not request.burst_nbytes:
                total_ms += count * message_ms + packets_ms
            elif count:
                total_ms += max(count * message_ms - nbytes / rate, packets_ms)
        return total_ms
    alone_ms = complete_queue(request, rate, [(0.0, step_nbytes)])[0] - step_nbytes / rate
    if level == "1":
        arrived_ms = complete_queue(request, rate, [(prompt_ms, request.prompt_nbytes)])[-1]
        return arrived_ms + steps_in_turn_ms + steps * alone_ms
    queue = [
        (prompt_ms * (layer - request.layer_lead_share) / layers, request.prompt_nbytes / layers)
        for layer in range(1, layers + 1)
    ]
    if level == "3" and steps:
        queue += [(prompt_ms + step * token_ms, step_nbytes) for step in range(1, steps + 1)]
        return complete_queue(request, rate, queue)[-1]
    arrived_ms = max(prompt_ms, complete_queue(request, rate, queue)[-1])
    return arrived_ms + steps_in_turn_ms + steps * alone_ms


@given(requests(), st.sampled_from(PREDICTED_LEVELS), st.floats(-2, 8))
def test_totals_are_those_of_the_documented_formulas(
    request_: StreamedRequest, level: str, power: float
) -> None:
    whole_chunks = replace(request_.costs, slot_nbytes=math.inf, least_piece_count=1)
    uncut = replace(
        request_,
        costs=whole_chunks,
        flush_interval=1,
        prompt_message_count=7,
        prompt_message_ms=0.5,
    )
    rate = 10.0**power
    expected = total_by_formula(uncut, level, rate)
    assert uncut.predict_ms(level, rate) == pytest.approx(expected, rel=1e-9)


def test_on_an_endless_link_only_the_costs_are_left() -> None:
    """A layer's chunk: helper 0.3 + 0.1, sink 0.2 + 0.2, latency 0.5; a step's 0.34 + 0.28 + 0.5.

    At level 1 the whole prompt is one chunk of helper 0.7 and sink 1.0.
    """
    step = 0.34 + 0.28 + 0.5
    assert PACKED.predict_ms("3", FASTEST_RATE) == pytest.approx(160 + step)
    assert PACKED.predict_ms("2", FASTEST_RATE) == pytest.approx(100 + 1.3 + 6 * (10 + step))
    assert PACKED.predict_ms("1", FASTEST_RATE) == pytest.approx(100 + 2.2 + 6 * (10 + step))
    grouped = replace(PACKED, flush_interval=4)
    # Groups of 4 and 2 steps: twice the fixed times, and all bytes.
    expected = 101.3 + 60 + 2 * 1.0 + 2400 * 3e-4
    assert grouped.predict_ms("2", FASTEST_RATE) == pytest.approx(expected)


def test_on_a_slow_link_only_the_bytes_count() -> None:
    """At 1 byte per ms the link never rests from the first layer on, and the sink puts one step."""
    first_layer_ms, sink_ms = 25 + 0.3 + 0.1, 0.28
    assert PACKED.predict_ms("3", 1.0) == pytest.approx(first_layer_ms + 6400 + sink_ms + 0.5)


def test_a_link_runs_ahead_of_the_sink_by_what_a_socket_holds() -> None:
    """Layers of 4 MB are ready together. Each takes 4 ms on the link, and 6 at the sink.

    The sink's kernel holds 1 ms of the link, so a layer has to wait for its last 3 ms.
    """
    request = replace(
        PLAIN, prompt_ms=0.0, prompt_nbytes=16e6, costs=ChunkCosts(sink_ms=6.0, latency_ms=0.5)
    )
    rate_per_ms = 1e6
    assert SOCKET_NBYTES / rate_per_ms == 1
    prompt_ms = 4 + 3 * (6 + 4 - 1) + 6 + 0.5
    assert request.predict_ms("2", rate_per_ms) == pytest.approx(
        prompt_ms + 6 * (10 + 400 / rate_per_ms + 6 + 0.5)
    )


def test_a_layer_that_is_ready_before_its_compute_ends_leaves_early() -> None:
    """Each layer has 25 ms of the prompt and takes 10 ms on the link, or 40 at a quarter rate."""
    early_request = replace(PLAIN, layer_lead_share=0.6)  # 15 ms before the end of its share
    steps_ms = 6 * (10 + 4)
    assert PLAIN.predict_ms("2", 100.0) == pytest.approx(100 + 10 + steps_ms)
    # The last layer is there 5 ms before the compute ends, so nobody waits for it.
    assert early_request.predict_ms("2", 100.0) == pytest.approx(100 + steps_ms)
    slow_steps = 6 * (10 + 16)
    assert early_request.predict_ms("2", 25.0) == pytest.approx(25 - 15 + 4 * 40 + slow_steps)


def test_a_rested_link_passes_its_burst_at_once() -> None:
    """A step's 400 bytes take 4 ms, or 3 if 100 of them pass at once; a layer's 10, or 9."""
    bucket = replace(PLAIN, burst_nbytes=100.0)
    assert PLAIN.predict_ms("2", 100.0) - bucket.predict_ms("2", 100.0) == pytest.approx(7 * 1)
    # A message is answered while the bucket fills for the next one.
    naive: dict[str, Any] = {"message_count": 60, "message_ms": 0.2, "message_nbytes": 20.0}
    steps, slow = 6 * 400 / 100, 60 * (0.2 + 20 / 100)
    unlimited, with_burst = replace(PLAIN, **naive), replace(bucket, **naive)
    assert unlimited.predict_ms("0", 100.0) == pytest.approx(160 + 40 + steps + slow)
    assert with_burst.predict_ms("0", 100.0) == pytest.approx(160 + 40 + steps + 60 * 20 / 100)


def test_contention_is_the_same_on_every_link_and_a_slow_one_hides_it() -> None:
    """On a link of 100 bytes/ms chunks take 40 of the prompt's 100 ms, and 4 of a step's 10."""
    slowed_request = replace(PLAIN, prompt_rest_ms=8.0, token_rest_ms=1.0)
    for rate in (100.0, 400.0, 1e9):
        undisturbed_ms = PLAIN.predict_ms("3", rate)
        assert slowed_request.predict_ms("3", rate) == pytest.approx(undisturbed_ms + 8 + 6)
    # Here the link alone decides, once the first layer is ready.
    undisturbed_ms = PLAIN.predict_ms("3", 5.0)
    assert slowed_request.predict_ms("3", 5.0) == pytest.approx(undisturbed_ms + 8 / 4)


def test_messages_are_paid_one_by_one() -> None:
    naive = replace(PLAIN, message_count=10, message_ms=0.2, message_nbytes=50.0)
    ideal = PLAIN.predict_ms("1", 100.0)
    assert naive.predict_ms("0", 100.0) == pytest.approx(ideal + 10 * (0.2 + 0.5))


def test_slots_bound_what_is_under_way() -> None:
    """With one slot, a layer's chunk begins when the one before it is complete."""
    one_slot = replace(
        PLAIN, step_count=0, prompt_ms=0.0, costs=ChunkCosts(latency_ms=7.0, slot_count=1)
    )
    assert one_slot.predict_ms("2", 1000.0) == pytest.approx(4 * (1 + 7))
    four_slots = replace(one_slot, costs=ChunkCosts(latency_ms=7.0, slot_count=4))
    assert four_slots.predict_ms("2", 1000.0) == pytest.approx(4 * 1 + 7)


def test_what_does_not_fit_a_slot_is_cut() -> None:
    costs = ChunkCosts(helper_ms=1.0, slot_nbytes=2500.0)
    cut = replace(PLAIN, step_count=0, costs=costs)
    # Level 1: two layers fit a slot. The helper packs the second while the first is on the link.
    assert cut.predict_ms("1", 1000.0) == pytest.approx(100 + 1 + 2 + 2)
    parted = replace(PLAIN, step_count=0, costs=ChunkCosts(helper_ms=1.0, least_piece_count=2))
    assert parted.predict_ms("1", 1000.0) == pytest.approx(100 + 1 + 2 + 2)


def test_contention_lengthens_prompt_and_steps() -> None:
    slowed_request = replace(PLAIN, prompt_rest_ms=2.0, token_rest_ms=0.5)
    assert slowed_request.predict_ms("3", FASTEST_RATE) == pytest.approx(160 + 2 + 6 * 0.5)
    assert slowed_request.total_ms == PLAIN.total_ms


def test_arrays_give_one_result_per_resample() -> None:
    two_resamples = replace(
        PACKED,
        prompt_ms=np.array([100.0, 110.0]),
        costs=replace(COSTS, latency_ms=np.array([0.5, 0.9])),
    )
    second_resample = replace(PACKED, prompt_ms=110.0, costs=replace(COSTS, latency_ms=0.9))
    for level in PREDICTED_LEVELS:
        assert two_resamples.predict_ms(level, 50.0) == pytest.approx(
            [PACKED.predict_ms(level, 50.0), second_resample.predict_ms(level, 50.0)]
        )


@pytest.mark.parametrize(
    ("holds", "expected"),
    [
        (lambda value: value >= 37, 37),
        (lambda value: True, 1),
        (lambda value: False, None),
        # What is true for a while and not at the end is no crossover.
        (lambda value: value < 50, None),
        (lambda value: value in (1, 2) or value > 90, 91),
    ],
    ids=["from 37", "always", "never", "only below 50", "at 1 and from 91"],
)
def test_a_crossover_holds_for_good(holds: Any, expected: int | None) -> None:
    assert find_first_for_good([1, 10, 40, 100], holds) == expected
