"""For tests of planning: plans of transfers between two splits."""

from __future__ import annotations

from dejavubench.config.points import LayoutName, Point
from dejavubench.dejavulib.exchange import Setup
from dejavubench.models.hub import specs
from dejavubench.planning.traffic import Traffic, plan_traffic


def traffic_between(
    source: Setup, sink: Setup, requests: int, layout: LayoutName = "hnd", output_len: int = 4
) -> Traffic:
    spec = specs.make_custom_spec(
        layer_num=source.layer_cuts[-1],
        head_num=source.heads,
        size_per_head=8,
        vocab_size=100,
        context=64,
    )
    point = Point(
        id="p",
        spec=spec,
        data_type="fp16",
        kv_layout=layout,
        ubatch_size=source.microbatch_size,
        input_len=10,
        output_len=output_len,
        positions=32,
        tensor_para_size=source.tensor_parallel,
        pipeline_para_size=source.stages,
    )
    return plan_traffic(point, source, sink, requests)
