"""The first words of a run on rank 0's stderr, and the bar that follows them."""

from __future__ import annotations

from dejavubench.bench.assignment.runnable import RunnablePlan
from dejavubench.bench.ceiling_rounds import (
    CEILING_ROUND_COUNT,
    CEILINGS_S,
    LATER_CEILING_ROUND_COUNT,
)
from dejavubench.bench.recording.measured_so_far import MeasuredSoFar
from dejavubench.bench.recording.progress_bar import ProgressBar
from dejavubench.bench.recording.time_left import PointWork, TimeLeft
from dejavubench.bench.startup.context import RunContext
from dejavubench.config.points import Point
from dejavubench.planning.duration import Rates, estimate_compute_s
from dejavubench.units import format_count_of

CPU_RATES = Rates(matmul=5e10, read=1e10)
"""Rough rates of one core: only the relation of two points' times is used."""

GPU_RATES = Rates(matmul=2e14, read=3e12)
"""Rough rates of one GPU, for the same use."""


def count_ceiling_rounds(point_index: int) -> int:
    """Return how many rounds of the run's n-th point, from 0, are followed by ceilings."""
    return LATER_CEILING_ROUND_COUNT if point_index else CEILING_ROUND_COUNT


def make_progress_bar(runnable: RunnablePlan, is_shown: bool) -> ProgressBar:
    """Return the bar over all points and arms, with its estimate of the time left.

    Args:
        is_shown: draw the bar; else it only keeps count.
    """
    experiment, points = runnable.experiment, runnable.points
    rounds_of_points = [runnable.plan.starts[point.id].rounds for point in points]
    precision = experiment.precision
    works_of_points = [
        PointWork(
            size=_estimate_seconds(point, experiment.device),
            round_count=point_rounds,
            ceiling_count=count_ceiling_rounds(point_index),
        )
        for point_index, (point, point_rounds) in enumerate(
            zip(points, rounds_of_points, strict=True)
        )
    ]
    time_left = TimeLeft(
        works_of_points,
        warmup=experiment.warmup,
        ceilings_s=CEILINGS_S,
        precision=precision,
        max_time=experiment.max_time,
    )
    arms = [arm.name for arm in runnable.arms]
    # With a precision nobody knows how many rounds there will be, so the bar has no end.
    pass_count = experiment.warmup * len(points) + sum(rounds_of_points)
    iteration_count = None if precision is not None else len(arms) * pass_count
    measured_so_far = MeasuredSoFar(
        {
            point.id: point_rounds
            for point, point_rounds in zip(points, rounds_of_points, strict=True)
        },
        arms,
    )
    return ProgressBar(iteration_count, time_left, measured_so_far, is_shown)


def _estimate_seconds(point: Point, device: str) -> float:
    """Return roughly the time of one request at a point, to compare points with."""
    on_cuda = device == "cuda"
    core_count = 1 if on_cuda else point.settings.busy_core_count
    prompt_s, token_s = estimate_compute_s(point, GPU_RATES if on_cuda else CPU_RATES, core_count)
    return prompt_s + (point.output_len - 1) * token_s


def print_start(context: RunContext, progress_bar: ProgressBar) -> None:
    """Print what is measured, where records go, and what a reader of the numbers must know."""
    runnable = context.runnable
    progress_bar.print_line(
        f"{format_count_of(len(runnable.points), 'point')}, "
        f"{format_count_of(len(runnable.arms), 'arm')}, "
        f"{format_count_of(context.ranks.world.size, 'rank')}; records: {context.workspace.folder}"
    )
    if len(runnable.arms) == 1 and len(runnable.points) > 1:
        progress_bar.print_line(
            "text lines of several points are not mixed on stdout: "
            "each has a .log in the run's folder"
        )
    if context.workspace.session > 1:
        measured_text = ", ".join(
            f"{start.point} {format_count_of(start.rounds, 'round')}"
            for start in runnable.plan.starts.values()
        )
        progress_bar.print_line(
            f"session {context.workspace.session} measures what is missing: {measured_text}"
        )
    for point_id, reason in runnable.skipped.items():
        progress_bar.print_line(f"{point_id} SKIPPED: {reason}")
    for note in context.conditions.notes():
        progress_bar.print_line(f"note: {note}")
