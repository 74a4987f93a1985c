"""Inputs of several runs of one machine → those of one run with all their rounds and links."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from dejavubench.analysis.facts.samples import RoundValues
from dejavubench.analysis.prediction.inputs import PointInputs, RunInputs


class DifferentMachinesError(Exception):
    """Runs cannot be joined. The message says why."""


def join_runs(runs: Sequence[RunInputs]) -> RunInputs:
    """Return the inputs of all runs together.

    Points of the same sizes become one with the rounds of all. Arms stay apart, since each has a
    link of its own.

    Raises:
        DifferentMachinesError: the runs are not of one machine, or not of one device.
    """
    first_run = runs[0]
    if len(runs) == 1:
        return first_run
    for other_run in runs[1:]:
        if (other_run.machine, other_run.on_gpu) != (first_run.machine, first_run.on_gpu):
            raise DifferentMachinesError(
                f"{first_run.name} and {other_run.name} are of different machines, so they cannot "
                "be predicted from together. Give the folder of one run"
            )
    points_by_sizes: dict[str, list[PointInputs]] = {}
    for run in runs:
        for point in run.points:
            points_by_sizes.setdefault(_sizes_of(point), []).append(point)
    joined_points = {
        sizes: _join_points(points, f"p{number:03d}")
        for number, (sizes, points) in enumerate(points_by_sizes.items())
    }
    return replace(
        first_run,
        name=", ".join(run.name for run in runs),
        run_count=len(runs),
        points=tuple(joined_points.values()),
        arms=tuple(
            replace(arm, point=joined_points[_sizes_of(arm.point)])
            for run in runs
            for arm in run.arms
        ),
    )


def _sizes_of(point: PointInputs) -> str:
    """Return all that a point is measured with, apart from its number in its run."""
    return point.info.model_dump_json(exclude={"id"})


def _join_points(points: Sequence[PointInputs], point_id: str) -> PointInputs:
    """Return one point with the rounds of all, and with the noise of the noisiest."""
    noise_reaches = [point.noise for point in points if point.noise is not None]
    return replace(
        points[0],
        info=points[0].info.model_copy(update={"id": point_id}),
        prompt_ms=_join_rounds(point.prompt_ms for point in points),
        tokens_ms=_join_rounds(point.tokens_ms for point in points),
        noise=max(noise_reaches, default=None),
    )


def _join_rounds(series: Iterable[RoundValues]) -> RoundValues:
    """Return the rounds of all runs, numbered anew."""
    return dict(enumerate(ms for ms_by_round in series for ms in ms_by_round.values()))
