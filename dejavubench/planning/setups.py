"""How the two sides of a point hold the model's cache, in the terms of the library's plan. Pure: numbers alone."""

from __future__ import annotations

from dejavubench.config.points import Point, Split
from dejavubench.dejavulib.kvcache import KVGeometry, KVLayout, Region, Span
from dejavubench.dejavulib.plan import Setup


def setup_of(point: Point, split: Split) -> Setup:
    cuts = point.spec.layer_cuts(split.pipeline_para_size)
    return Setup(cuts, point.spec.kv_heads, split.tensor_para_size, split.ubatch_size)


def setups(point: Point) -> tuple[Setup, Setup]:
    """Of the sources and of the sinks."""
    return setup_of(point, point.sources), setup_of(point, point.sinks or point.sources)


def everything(point: Point) -> Region:
    """What is streamed of all microbatches in flight, in the whole model's numbers."""
    spec = point.spec
    return Region(
        Span(0, spec.layer_num),
        Span(0, point.requests),
        Span(0, spec.kv_heads),
        Span(0, point.streamed),
    )


def geometry_of(point: Point, setup: Setup, worker: int) -> KVGeometry:
    """A worker's cache of one microbatch."""
    return KVGeometry(
        setup.layers(worker).size,
        setup.ubatch_size,
        setup.heads_of(worker).size,
        point.positions,
        point.spec.size_per_head,
        point.itemsize,
        KVLayout(point.kv_layout),
    )
