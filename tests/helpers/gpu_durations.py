"""For tests of configs: how long a run takes on H200s, roughly, by what was measured on some.

``--dry-run`` estimates no time on a GPU. Three and four GPUs were never measured: the estimate
takes for granted that a tensor-parallel rank is as fast there as with one other rank. The waits of
a swap are not counted.
"""

from __future__ import annotations

from dejavubench.bench.ceiling_rounds import CEILINGS_S
from dejavubench.config.arms import Arm
from dejavubench.config.plan import Plan
from dejavubench.config.points import Point, SetupSizes
from dejavubench.planning.duration import PROMPT_SHARE, TOKEN_SHARE, Rates, estimate_compute_s

REACHED = Rates(matmul=570e12, read=3.5e12)
"""What a model reaches on each of two H200, tensor-parallel, in FLOP/s and bytes/s.

OPT-66B, 8 × 1000 + 24 tokens: a prompt took 925 ms, a token 21.6 ms.
"""

PEAKS = Rates(REACHED.matmul / PROMPT_SHARE, REACHED.read / TOKEN_SHARE)
"""The peaks of which a model would reach :data:`REACHED`, as ``estimate_compute_s`` counts."""

DRAWN_PER_S = 1.9e9
"""Weights that a rank draws per second: OPT-13B was loaded within 6.9 s."""

COMPARED_NBYTES_PER_S = {"host": 5.7e9, "disk": 0.47e9, "mpi": 1.17e9}
GPU_COMPARED_NBYTES_PER_S = 1.4e9
"""Bytes that one rank compares per second, by destination: those of Fig 25 in results/h200-x2."""

START_S = 15.0
"""Start of MPI, torch, CUDA and NCCL; a guess."""

PREPARE_S = 0.7
"""Time to fill caches before an iteration; the mean over the arms of that run without the disk."""

POINT_S = 3.4
"""What a point of a sweep takes beside iterations and loading: Appendix A of results/h200."""


def estimate_run_seconds(plan: Plan) -> float:
    """Return the seconds of all points, from ``mpirun`` to its end."""
    # Every rank draws each tensor of its stage whole, and keeps its part. Models come in turn.
    drawn_weights = sum(
        spec.layer_weight_count + spec.head_weight_count
        for spec in dict.fromkeys(point.spec for point in plan.points)
    )
    points_s = sum(_estimate_point_seconds(plan, point) for point in plan.points)
    return START_S + drawn_weights / DRAWN_PER_S + CEILINGS_S + points_s


def _estimate_point_seconds(plan: Plan, point: Point) -> float:
    """Return the seconds of the undisturbed iteration, of all warm-ups and of all rounds."""
    one_round_s = sum(
        estimate_iteration_seconds(point)
        + PREPARE_S
        + _estimate_comparison_seconds(plan, arm, point)
        for arm in plan.unskipped_arms
    )
    repeats = plan.experiment.warmup + plan.experiment.rounds
    undisturbed_s = _compute_seconds(point, point.sources, 0, point.output_len)
    return POINT_S + undisturbed_s + repeats * one_round_s


def estimate_iteration_seconds(point: Point) -> float:
    """Return the seconds from the prompt to the last token, on the sinks if they go on."""
    sources_s = _compute_seconds(point, point.sources, 0, point.generated_token_count)
    sinks = point.sinks or point.sources
    return sources_s + _compute_seconds(point, sinks, point.generated_token_count, point.output_len)


def _compute_seconds(point: Point, sizes: SetupSizes, first: int, stop: int) -> float:
    """Return the seconds in which one side generates tokens ``first`` to ``stop`` of all requests.

    Token 0 is the prompt's.
    """
    prompt_s, token_s = estimate_compute_s(point, PEAKS, thread_count=1)
    one_microbatch_s = sum(prompt_s if token == 0 else token_s for token in range(first, stop))
    workers = sizes.tensor_para_size * sizes.pipeline_para_size
    # A pipeline of D stages with D microbatches is busy for 2 D − 1 turns of a stage.
    return one_microbatch_s * (2 * sizes.pipeline_para_size - 1) / workers


def _estimate_comparison_seconds(plan: Plan, arm: Arm, point: Point) -> float:
    """Return the seconds in which the bytes of an arm are compared; its ranks share them."""
    if not (arm.is_streaming and plan.experiment.verify):
        return 0.0
    ranks = plan.experiment.sinks if arm.is_remote else plan.source_count
    rate = COMPARED_NBYTES_PER_S.get(arm.mode, GPU_COMPARED_NBYTES_PER_S)
    return point.pipeline_para_size * point.streamed_nbytes / ranks / rate
