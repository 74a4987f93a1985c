"""The setups of a point's two sides, as the library's plan takes them. Pure: numbers alone."""

from __future__ import annotations

from dejavubench.config.points import Point, SetupSizes
from dejavubench.dejavulib.exchange import Setup
from dejavubench.dejavulib.kv_cache import KVGeometry, KVLayout, Region, Span


def make_setup(point: Point, sizes: SetupSizes) -> Setup:
    """Return the setup of one side: its sizes, with the layer cuts and KV heads of the model."""
    cuts = point.spec.layer_cuts(sizes.pipeline_para_size)
    return Setup(cuts, point.spec.kv_heads, sizes.tensor_para_size, sizes.ubatch_size)


def list_setups(point: Point) -> tuple[Setup, Setup]:
    """Return the setups of the sources and of the sinks."""
    return make_setup(point, point.sources), make_setup(point, point.sinks or point.sources)


def make_whole_region(point: Point) -> Region:
    """Return the region that all microbatches in flight stream, in the whole model's numbers."""
    spec = point.spec
    return Region(
        Span(0, spec.layer_num),
        Span(0, point.request_count),
        Span(0, spec.kv_heads),
        Span(0, point.streamed_position_count),
    )


def make_geometry(point: Point, setup: Setup, worker_index: int) -> KVGeometry:
    """Return a worker's cache of one microbatch."""
    return KVGeometry(
        layers=setup.layers(worker_index).size,
        requests=setup.microbatch_size,
        heads=setup.heads_of(worker_index).size,
        positions=point.positions,
        head_size=point.spec.size_per_head,
        itemsize=point.itemsize,
        layout=KVLayout(point.kv_layout),
    )
