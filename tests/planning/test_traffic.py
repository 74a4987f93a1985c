"""The bytes of a plan against the caches' sizes, extents against memory, and bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dejavubench.config.points import LayoutName
from dejavubench.dejavulib.exchange import Setup
from dejavubench.dejavulib.kv_cache import BOTH, KV, KVGeometry, KVLayout, Region, Span
from dejavubench.planning.traffic import LinkSpec, Volume, count_common_extents
from helpers.caches import inside, logical_ids, spans
from helpers.transfer_plans import traffic_between

SOURCE = Setup((0, 3, 4), heads=4, tensor_parallel=2, microbatch_size=2)
SINK = Setup((0, 2, 4), heads=4, tensor_parallel=1, microbatch_size=3)


def test_workers_send_and_receive_the_bytes_of_their_caches() -> None:
    traffic = traffic_between(SOURCE, SINK, 6)
    vector = 2 * 8 * 2  # K and V of one head of 8 elements in fp16
    assert traffic.total.token_nbytes == 6 * 4 * 4 * vector
    assert traffic.total.prompt_nbytes == 10 * traffic.total.token_nbytes
    assert traffic.total.total_nbytes == 13 * traffic.total.token_nbytes
    sent_nbytes = {worker: volume.token_nbytes for worker, volume in traffic.sent.items()}
    nbytes_of_own_layers = {
        worker: layers * 2 * 6 * vector for worker, layers in enumerate([3, 3, 1, 1])
    }
    assert sent_nbytes == nbytes_of_own_layers
    assert {
        worker: volume.token_nbytes for worker, volume in traffic.received.items()
    } == dict.fromkeys((0, 1), 2 * 4 * 6 * vector)


def test_both_sides_add_up_to_the_whole() -> None:
    traffic = traffic_between(SOURCE, SINK, 6)
    for side in (traffic.sent, traffic.received):
        assert sum(side.values(), Volume()) == traffic.total
    # Pairs of microbatches with requests in common: (0, 0), (1, 0), (1, 1), (2, 1); pairs of
    # workers: 2 × 2 + 2 × 1.
    assert traffic.total.region_pair_count == 4 * 6
    assert traffic.peers_of_sources == {0: 2, 1: 2, 2: 1, 3: 1}
    assert traffic.peers_of_sinks == {0: 2, 1: 4}


def test_the_busiest_worker_bounds_the_time() -> None:
    traffic = traffic_between(SOURCE, SINK, 6)
    link = LinkSpec(rate=1e6, latency_s=1e-3)
    assert (traffic.busiest_source, traffic.busiest_sink) == (0, 0)
    sink = traffic.received[0]
    assert sink.total_nbytes > traffic.sent[0].total_nbytes
    expected = tuple(
        nbytes / 1e6 + 1e-3 for nbytes in (sink.prompt_nbytes, sink.token_nbytes, sink.total_nbytes)
    )
    assert traffic.compute_least_s(link) == expected
    one_to_four = traffic_between(
        Setup((0, 4), heads=4, tensor_parallel=1, microbatch_size=2),
        Setup((0, 4), heads=4, tensor_parallel=4, microbatch_size=2),
        2,
    )
    assert one_to_four.compute_least_s(link)[2] == one_to_four.total.total_nbytes / 1e6 + 1e-3


def test_a_request_of_one_token_is_its_prompt() -> None:
    traffic = traffic_between(SOURCE, SINK, 6, output_len=1)
    assert traffic.total.total_nbytes == traffic.total.prompt_nbytes


@pytest.mark.parametrize(
    ("layout", "prompt", "token"),
    [
        # 4 layers × 2 requests, K and V. All heads of a position are neighbours on one side only.
        ("nhd", 4 * 2 * 2 * 10 * 2, 4 * 2 * 2 * 2),
        ("hnd", 4 * 2 * 2 * 4, 4 * 2 * 2 * 4),
        # A key is one vector of 16 bytes here: keys lie as values do.
        ("ft", 4 * 2 * 2 * 4, 4 * 2 * 2 * 4),
    ],
)
def test_a_split_of_heads_makes_extents_by_the_layout(
    layout: LayoutName, prompt: int, token: int
) -> None:
    traffic = traffic_between(
        Setup((0, 4), heads=4, tensor_parallel=1, microbatch_size=2),
        Setup((0, 4), heads=4, tensor_parallel=2, microbatch_size=2),
        2,
        layout,
    )
    assert (traffic.total.prompt_extent_count, traffic.total.token_extent_count) == (prompt, token)


# ---- extents, against memory ----


@st.composite
def two_caches(draw: Callable[..., Any]) -> tuple[KVGeometry, Region, KVGeometry, Region]:
    """A region and its places in two caches of one layout."""
    layout = draw(st.sampled_from(list(KVLayout)))
    itemsize = draw(st.sampled_from([2, 4]))
    head_size = 16 // itemsize * draw(st.integers(1, 2))
    positions = draw(st.integers(1, 4))
    sizes = [draw(st.integers(1, 3)) for _ in range(3)]
    span = draw(spans(positions))
    sides: list[tuple[KVGeometry, Region]] = []
    for _ in range(2):
        sizes_before, sizes_after = ([draw(st.integers(0, 2)) for _ in range(3)] for _ in range(2))
        total = [sum(parts) for parts in zip(sizes_before, sizes, sizes_after, strict=True)]
        layers, requests, heads = total
        geometry = KVGeometry(
            layers=layers,
            requests=requests,
            heads=heads,
            positions=positions,
            head_size=head_size,
            itemsize=itemsize,
            layout=layout,
        )
        axes = [Span(start, start + size) for start, size in zip(sizes_before, sizes, strict=True)]
        sides.append((geometry, Region(axes[0], axes[1], axes[2], span)))
    return (*sides[0], *sides[1])


def offsets(geometry: KVGeometry, kv: KV, region: Region) -> np.ndarray:
    """Return the places of a region's elements, in the order of memory."""
    assert logical_ids(geometry, kv).size == inside(geometry, kv, region).size
    return np.flatnonzero(inside(geometry, kv, region))


@settings(max_examples=200, deadline=None)
@given(two_caches())
def test_common_extents_are_contiguous_on_both_sides_and_maximal(
    caches: tuple[KVGeometry, Region, KVGeometry, Region],
) -> None:
    source, source_region, target, target_region = caches
    expected = 0
    for kv in BOTH:
        for out_layer, in_layer in zip(
            range(*source_region.layers), range(*target_region.layers), strict=True
        ):
            steps = [
                np.diff(offsets(geometry, kv, region.layer(layer)))
                for geometry, region, layer in (
                    (source, source_region, out_layer),
                    (target, target_region, in_layer),
                )
            ]
            expected += 1 + int(((steps[0] != 1) | (steps[1] != 1)).sum())
    (source, region), (target, _) = caches[:2], caches[2:]
    assert count_common_extents(source, region, target) == expected
