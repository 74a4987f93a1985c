"""How long a run takes on a CPU, roughly: before anything starts, and from a probe of 0.1 s."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np

from dejavubench.config.arms import Arm
from dejavubench.config.plan import Plan
from dejavubench.config.points import DataType, Point
from dejavubench.dejavulib.kv_cache import BOTH, Span
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.machine import cpu
from dejavubench.planning.memory import make_worker_geometry
from dejavubench.units import MIB

PROMPT_SHARE = 0.75
"""Share of the peak of matmul that the model reaches in a prompt."""

TOKEN_SHARE = 0.6
"""Share of the bandwidth of reads that the model reaches in a token."""

BATCHED_SPEEDUP = 3
"""How much faster copies are that are all issued before one wait; rough."""


@dataclass(frozen=True)
class Rates:
    """The speed of one core: ``matmul`` in fp32 FLOP/s, ``read`` in bytes/s."""

    matmul: float
    read: float


def probe_core() -> Rates:
    """Measure one core in about 0.1 s: the best of a few products and passes over memory."""
    # BLAS libraries leave products of 64 × 64 matrices to the calling thread.
    matrices = np.ones((256, 64, 64), dtype=np.float32)
    product = np.empty_like(matrices)
    array = np.ones(32 * MIB // 8)
    # The best of several: an interruption by another program only ever lengthens a pass.
    product_s = min(
        _measure_s(lambda: np.matmul(matrices, matrices, out=product)) for _ in range(10)
    )
    read_s = min(_measure_s(array.max) for _ in range(5))
    return Rates(matmul=2 * matrices.shape[0] * 64**3 / product_s, read=array.nbytes / read_s)


def _measure_s(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def multiplies_natively(data_type: DataType) -> bool:
    """Return whether this CPU multiplies a type without converting it."""
    return data_type == "fp32" or (data_type == "bf16" and cpu.has_native_bf16())


def estimate_compute_s(point: Point, rates: Rates, thread_count: int) -> tuple[float, float]:
    """Return the time of one microbatch's prompt and of one token, all layers on one worker."""
    spec = point.spec
    batch = point.ubatch_size
    # Positions that a decode step attends to, on average.
    attended_position_count = point.input_len + point.output_len // 2
    weight_count = spec.layer_weight_count + spec.head_weight_count
    # A CPU that multiplies a half type does so twice as fast.
    speedup = 2 if multiplies_natively(point.data_type) and point.data_type != "fp32" else 1
    matmul = rates.matmul * thread_count * speedup * PROMPT_SHARE
    # A pair of positions takes 4 · hidden FLOP per layer; a prompt's mask leaves half of the pairs.
    attention_flop = 2 * spec.layer_num * spec.hidden
    prompt_flop = 2 * batch * (point.input_len * spec.layer_weight_count + spec.head_weight_count)
    prompt_flop += attention_flop * batch * point.input_len**2
    token_flop = 2 * batch * (weight_count + attention_flop * attended_position_count)
    weights_nbytes = weight_count * point.itemsize
    read_nbytes = weights_nbytes + batch * attended_position_count * point.token_nbytes
    return prompt_flop / matmul, max(token_flop / matmul, read_nbytes / (rates.read * TOKEN_SHARE))


def estimate_naive_s(point: Point, arm: Arm) -> float:
    """Return a microbatch's wait for copies of single extents; 0 if the level is buffered."""
    transport = arm.transport
    if transport is None or arm.level is None or LEVELS[arm.level].buffered:
        return 0.0
    geometry = make_worker_geometry(point)

    def count_extents(position_count: int) -> int:
        region = geometry.region(layers=Span(0, 1), positions=Span(0, position_count))
        return geometry.layers * sum(
            prod(count for count, _ in geometry.rows(kv, region).axes) for kv in BOTH
        )

    copy_count = count_extents(point.input_len)
    copy_count += sum(
        count * count_extents(token_count) for token_count, count in point.flush_groups
    )
    flush_count = 1 + sum(count for _, count in point.flush_groups)
    is_on_storage = transport.waits_for_storage(arm.durability)
    if LEVELS[arm.level].each_complete:
        # On storage the sync of each extent is the wait; the copy before it hardly counts.
        copy_s = transport.sync_s if is_on_storage else transport.copy_s
        return copy_count * copy_s
    return copy_count * transport.copy_s / BATCHED_SPEEDUP + (
        flush_count * transport.sync_s if is_on_storage else 0.0
    )


def estimate_iteration_s(plan: Plan, point: Point, arm: Arm, rates: Rates) -> float:
    """Return the time of one iteration of ``arm``, whose workers share this machine's cores."""
    core_count = point.settings.busy_core_count
    depth = plan.experiment.pipeline_para_size
    prompt_s, token_s = estimate_compute_s(point, rates, core_count)
    parallel_worker_count = min(
        plan.source_count, max(1, len(os.sched_getaffinity(0)) // core_count)
    )
    # A pipeline of D stages with D microbatches is busy for 2 D − 1 turns of a stage.
    compute_s = (
        (prompt_s + (point.output_len - 1) * token_s) * (2 * depth - 1) / parallel_worker_count
    )
    return compute_s + depth * estimate_naive_s(point, arm)


def estimate_point_s(plan: Plan, point: Point, rates: Rates) -> float:
    """Return the time of all warm-up iterations and rounds; with ``precision`` of the fewest."""
    round_s = sum(estimate_iteration_s(plan, point, arm, rates) for arm in plan.unskipped_arms)
    return (plan.experiment.warmup + plan.starts[point.id].rounds) * round_s
