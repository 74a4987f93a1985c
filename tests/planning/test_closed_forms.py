"""Sizes in closed form are those that looking at each layer, worker and region pair finds."""

from __future__ import annotations

from math import prod

import pytest

from dejavubench.config.arms import Arm
from dejavubench.config.plan import Plan
from dejavubench.config.points import LayoutName
from dejavubench.config.resolve import load
from dejavubench.dejavulib.exchange import Setup, exchanges, stream_in
from dejavubench.dejavulib.kv_cache import BOTH, Region, Span
from dejavubench.models.hub.specs import SPECS
from dejavubench.planning import duration, fit, memory
from dejavubench.planning.fit import HostResources
from dejavubench.planning.setups import list_setups, make_geometry, make_whole_region
from dejavubench.planning.staging import plan_sink_staging
from dejavubench.planning.traffic import MOST_REGION_PAIRS
from dejavubench.transports.registry import find_transport
from helpers.transfer_plans import traffic_between

pytestmark = pytest.mark.usefixtures("no_gpu")

SPLITS = [
    ((1, 1, 2), (1, 1, 2)),
    ((2, 3, 2), (4, 2, 3)),
    ((1, 5, 4), (2, 4, 1)),
    ((4, 2, 3), (1, 5, 2)),
    ((2, 1, 6), (2, 4, 3)),
    ((1, 12, 1), (1, 7, 4)),
]
"""Of the sources, then of the sinks: tensor-parallel degree, stages, requests per microbatch."""


def plan_of(model: str, sources: tuple[int, int, int], sinks: tuple[int, int, int]) -> Plan:
    keys = ("tensor_para_size", "pipeline_para_size", "ubatch_size")
    source_sizes = dict(zip(keys, sources, strict=True))
    sink_sizes = {f"sink_{key}": size for key, size in zip(keys, sinks, strict=True)}
    return load(
        None,
        {
            "model": model,
            "streaming": "mpi",
            "device": "cpu",
            "input_len": 8,
            **source_sizes,
            **sink_sizes,
        },
        {},
    )


@pytest.mark.parametrize("model", SPECS)
def test_counts_of_a_specs_weights_equal_the_sum_over_its_tensors(model: str) -> None:
    spec = SPECS[model]
    assert spec.parameter_count == sum(map(prod, spec.tensors.values()))
    matrices = [
        shape
        for name, shape in spec.tensors.items()
        if name.startswith("layers.") and len(shape) == 2
    ]
    assert spec.layer_weight_count == sum(map(prod, matrices))


@pytest.mark.parametrize(("sources", "sinks"), SPLITS)
@pytest.mark.parametrize("model", ["gpt2", "opt-350m", "bloom-560m"])
def test_the_fullest_workers_are_known_without_looking_at_each(
    model: str, sources: tuple[int, int, int], sinks: tuple[int, int, int]
) -> None:
    plan = plan_of(model, sources, sinks)
    (point,) = plan.points
    source, sink = list_setups(point)
    slot = 16 << 20
    geometries = [make_geometry(point, source, worker) for worker in range(source.workers)]
    assert memory.make_worker_geometry(point) == max(
        geometries, key=lambda geometry: geometry.layers
    )
    streams = max(
        len(stream_in(source, sink, worker, make_whole_region(point)))
        for worker in range(sink.workers)
    )
    cache = max(make_geometry(point, sink, worker).nbytes for worker in range(sink.workers))
    assert (
        memory.count_arriving_nbytes(point)
        + plan_sink_staging(plan, point, memory.count_arriving_streams(point)).host_nbytes
        == point.request_count // sink.microbatch_size * cache + 2 * streams * slot
    )


@pytest.mark.parametrize("layout", ["ft", "hnd", "nhd"])
def test_copies_of_naive_levels_are_counted_without_making_them(layout: LayoutName) -> None:
    plan = load(
        None,
        {"model": "gpt2", "kv_layout": layout, "ubatch_size": 3, "input_len": 8, "device": "cpu"},
        {},
    )
    (point,) = plan.points
    geometry = memory.make_worker_geometry(point)
    seconds = duration.estimate_naive_s(point, Arm("mpi@0", "mpi", "0"))
    copies = 0
    for positions in (8, *[1] * 31):
        region = geometry.region(layers=Span(0, 1), positions=Span(0, positions))
        copies += 12 * sum(len(geometry.extents(kv, region).offsets) for kv in BOTH)
    assert seconds == pytest.approx(copies * find_transport("mpi").copy_s)


@pytest.mark.parametrize("microbatches", [(2, 3), (1, 1), (4, 2), (3, 4)])
def test_a_plan_repeats_after_the_lcm_of_the_microbatches(microbatches: tuple[int, int]) -> None:
    sources = Setup((0, 3, 4), heads=4, tensor_parallel=2, microbatch_size=microbatches[0])
    sinks = Setup((0, 2, 4), heads=4, tensor_parallel=1, microbatch_size=microbatches[1])
    traffic = traffic_between(sources, sinks, 24)
    region = Region(
        Span(0, 4), Span(0, 24), Span(0, 4), Span(0, traffic.point.written_position_count)
    )
    expected = exchanges(sources, sinks, region)
    assert [list(flow.region_pairs()) for flow in traffic.flows] == [
        list(pairs.pairs) for pairs in expected
    ]
    assert [flow.region for flow in traffic.flows] == [pairs.region for pairs in expected]
    assert traffic.total.region_pair_count == sum(len(pairs.pairs) for pairs in expected)
    traffic_of_half = traffic_between(sources, sinks, 12).total
    assert traffic.total == traffic_of_half.repeat(2)


def test_too_many_different_region_pairs_are_refused() -> None:
    sources, sinks = (
        Setup((0, 4), heads=4, tensor_parallel=1, microbatch_size=99_999),
        Setup((0, 4), heads=4, tensor_parallel=4, microbatch_size=100_000),
    )
    with pytest.raises(ValueError, match=f"at most {MOST_REGION_PAIRS:,} are planned"):
        traffic_between(sources, sinks, 99_999 * 100_000)


def test_staging_takes_half_of_the_memory_at_most() -> None:
    plan = load(
        None, {"device": "cpu", "model": "gpt2", "streaming": "mpi", "staging_slots": 512}, {}
    )
    assert fit.find_skip_reasons(plan, HostResources(15 << 30)) == {
        "p000": "--staging-slots 512 × --staging-mib 16 take 8.00 GiB for 1 source: more than half "
        "of the 15.0 GiB that are available"
    }
    assert fit.find_skip_reasons(plan, HostResources(17 << 30)) == {}
    assert "gpt2 needs" in fit.find_skip_reasons(plan, HostResources(8 << 30))["p000"]
