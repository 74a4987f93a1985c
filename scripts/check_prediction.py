"""Hold the predictions of `dejavubench plan --from` against measurement, on held-out points alone.

A point is one arm of one run at one point of its sweep. It is predicted from records that lack it:
from a run over a link of another rate, from other prompt lengths of its run, or from other levels;
then from all runs of the machine together that lack its rate, its prompt length, or its level. The
link's speed is the one that the point's own run measured.

    mkdir -p runs/cpu runs/h200
    tar -xf results/epyc-bf16-2core/links-three-prompts.tar.xz -C runs/cpu
    tar -xf results/h200/links.tar.xz -C runs/h200
    python scripts/check_prediction.py runs/cpu runs/h200

Each argument is a series. Runs of two series are neither compared nor put together: a machine can
be slower on another day.

Points whose interval is wider than ±2 % of TOTAL are left out. A prediction is within the bound if
it differs from the measured overhead by at most the interval's half-width, 10 % of the overhead, or
0.5 % of TOTAL, whichever is largest.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click

from dejavubench.analysis.find_runs import find
from dejavubench.analysis.prediction.compute import compute_times
from dejavubench.analysis.prediction.forecast import predict
from dejavubench.analysis.prediction.inputs import ArmInputs, RunInputs
from dejavubench.analysis.prediction.join_runs import join_runs
from dejavubench.analysis.prediction.run_inputs import NoPredictionError, read_inputs
from dejavubench.analysis.prediction.table import widen_by_own_error
from dejavubench.analysis.prediction.target import Target
from dejavubench.records import PointInfo

LARGEST_HALF_WIDTH = 0.02
"""Half-width of a measured overhead from which on its point is left out."""

BOUND_OF_OVERHEAD = 0.1
"""Share of the measured overhead that an error may have."""

BOUND_OF_TOTAL = 0.005
"""Share of TOTAL that an error may have."""

LARGEST_RATE_DIFFERENCE = 0.1
"""Relative difference up to which two links count as equally fast."""

TOGETHER = ", runs together"
"""Ends the kind of a prediction from all runs that lack what is held out, as one."""

SIZES = ("model", "data_type", "kv_layout", "ubatch_size", "output_len")


@dataclass(frozen=True)
class HeldPrediction:
    """One prediction held against one measured point, overheads as fractions of TOTAL.

    Attributes:
        kind: what was held out: rate, prompt, rate and prompt, or level; with :data:`TOGETHER` from
            all runs of the machine.
        source: the run that was predicted from.
        low, high: the predicted interval.
        of_own_none: predicted from the target's own times without streaming, to tell errors of the
            model from differences of the machine between two runs.
    """

    kind: str
    source: str
    source_rate: float
    target: ArmInputs
    predicted: float
    low: float
    high: float
    of_own_none: float

    @property
    def measured(self) -> float:
        """Median of the measured overhead."""
        return self.target.overhead.median

    @property
    def error(self) -> float:
        """Difference of the predicted overhead from the measured one."""
        return self.predicted - self.measured

    @property
    def bound(self) -> float:
        """Largest error that counts as right: the noise, or a share of the overhead or of TOTAL."""
        overhead = self.target.overhead
        return max(overhead.half_width, BOUND_OF_OVERHEAD * abs(overhead.median), BOUND_OF_TOTAL)

    @property
    def width(self) -> float:
        """Half-width of the measured overhead, as a fraction of TOTAL without streaming."""
        return self.target.overhead.half_width

    @property
    def own_width(self) -> float:
        """The same as a fraction of the arm's own TOTAL."""
        return self.width / (1 + self.measured)

    @property
    def within(self) -> bool:
        """Whether the error is within the bound."""
        return abs(self.error) <= self.bound

    @property
    def within_of_own_none(self) -> bool:
        """Whether the prediction from the target's own times is within the bound."""
        return abs(self.of_own_none - self.measured) <= self.bound

    @property
    def overlaps(self) -> bool:
        """Whether the predicted and the measured interval have a value in common."""
        return self.low <= self.target.overhead.high and self.target.overhead.low <= self.high


def held_out(runs: list[RunInputs]) -> Iterator[tuple[str, RunInputs, ArmInputs]]:
    """Yield what is held out, the run or the runs together to predict from, and the arm."""
    for run in runs:
        for target in run.arms:
            yield "level", _without_level(run, target), target
            if own_lengths := _without_length(run, target):
                yield "prompt", own_lengths, target
            # By what differs, the runs that the arm can be compared with.
            others = [
                (difference, other_run)
                for other_run in runs
                if other_run is not run
                and (difference := _describe_difference(run, other_run, target))
            ]
            for difference, other_run in others:
                yield difference, other_run, target
            like_runs = [run, *(other_run for _, other_run in others)]
            lengths = [_without_length(like_run, target) for like_run in like_runs]
            runs_by_kind = {
                "level": [_without_level(like_run, target) for like_run in like_runs],
                "prompt": [part for part in lengths if part is not None],
                "rate": [other_run for difference, other_run in others if difference == "rate"],
            }
            for kind, runs_together in runs_by_kind.items():
                if runs_together:
                    yield f"{kind}{TOGETHER}", join_runs(runs_together), target


def _without_level(run: RunInputs, target: ArmInputs) -> RunInputs:
    return _keep_arms(run, [arm for arm in run.arms if arm.level != target.level])


def _without_length(run: RunInputs, target: ArmInputs) -> RunInputs | None:
    """Return a run without the arm's prompt length; None if it has no other one of its sizes."""
    length = target.point.info.input_len
    arms = [arm for arm in run.arms if arm.point.info.input_len != length]
    return _keep_arms(run, arms) if any(_is_like(arm, target) for arm in arms) else None


def _describe_difference(run: RunInputs, other_run: RunInputs, target: ArmInputs) -> str | None:
    """Return what differs between another run and an arm; None if they cannot be compared."""
    like_arms = [arm for arm in other_run.arms if arm.mode == target.mode and _is_like(arm, target)]
    # Another machine differs in more than its link.
    if not like_arms or other_run.machine != run.machine:
        return None
    differences = []
    if abs(like_arms[0].link.rate / target.link.rate - 1) > LARGEST_RATE_DIFFERENCE:
        differences.append("rate")
    if all(arm.point.info.input_len != target.point.info.input_len for arm in like_arms):
        differences.append("prompt")
    return " and ".join(differences) or None


def _is_like(arm: ArmInputs, target: ArmInputs) -> bool:
    """Return whether two arms differ in destination, level or prompt length alone."""
    return _sizes(arm.point.info) == _sizes(target.point.info)


def _sizes(point: PointInfo) -> tuple[object, ...]:
    return tuple(getattr(point, key) for key in SIZES)


def _keep_arms(run: RunInputs, arms: Sequence[ArmInputs]) -> RunInputs:
    """Return a run with some of its arms alone, and with the points that these have."""
    point_ids = {arm.point.info.id for arm in arms}
    points = tuple(point for point in run.points if point.info.id in point_ids)
    return replace(run, arms=tuple(arms), points=points)


def hold(kind: str, run: RunInputs, arm: ArmInputs) -> HeldPrediction | None:
    """Predict an arm; None if the run tells nothing of its level."""
    target = Target(arm.point.info, arm.staging.flush_interval, burst_nbytes=arm.link.burst_nbytes)
    prediction = predict(run, arm.mode, arm.level, target)
    if prediction is None:
        return None
    overheads = prediction.predict_overhead_pct(arm.link.rate)
    low_overhead, high_overhead = widen_by_own_error(overheads)
    own_times = compute_times([arm.point], arm.point, arm.point.info)
    own_prediction = predict(run, arm.mode, arm.level, target, own_times)
    assert own_prediction is not None
    return HeldPrediction(
        kind,
        run.name,
        prediction.arm.link.rate,
        arm,
        predicted=float(overheads[0]) / 100,
        low=low_overhead / 100,
        high=high_overhead / 100,
        of_own_none=float(own_prediction.predict_overhead_pct(arm.link.rate)[0]) / 100,
    )


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--all", "shows_all", is_flag=True, help="Print each prediction.")
@click.option(
    "--own-total",
    "by_own_total",
    is_flag=True,
    help="Leave points out by half-widths relative to the arm's own TOTAL.",
)
def main(paths: tuple[Path, ...], shows_all: bool, by_own_total: bool) -> None:
    """Print points kept, points left out with the reason, and the share within the bound."""
    kept_predictions: list[HeldPrediction] = []
    left_out: Counter[str] = Counter()
    cases = (case for path in paths for case in held_out(_read_inputs([path])))
    for kind, inputs, arm in cases:
        prediction = hold(kind, inputs, arm)
        if prediction is None:
            left_out[f"{kind}: no measured level to predict level {arm.level} from"] += 1
        elif not (prediction.own_width if by_own_total else prediction.width) <= LARGEST_HALF_WIDTH:
            left_out[f"{kind}: half-width above {100 * LARGEST_HALF_WIDTH:g} % of TOTAL"] += 1
        else:
            kept_predictions.append(prediction)
    if shows_all:
        for prediction in kept_predictions:
            _print_prediction(prediction)
    for reason, count in sorted(left_out.items()):
        click.echo(f"left out {count:5}: {reason}")
    groups: dict[str, list[HeldPrediction]] = defaultdict(list)
    for prediction in kept_predictions:
        arm_name = f"{prediction.target.mode}@{prediction.target.level}"
        together = TOGETHER if prediction.kind.endswith(TOGETHER) else ", one run"
        for name in (f"all{together}", prediction.kind, f"{prediction.kind}, {arm_name}"):
            groups[name].append(prediction)
    for name, group in sorted(groups.items()):
        _print_counts(name, group)
    if not kept_predictions:
        click.echo("no point was kept")


def _read_inputs(paths: Iterable[Path]) -> list[RunInputs]:
    """Return the inputs of all runs; name on stderr those that give none."""
    found_runs = find(paths)
    for message in found_runs.bad:
        click.echo(f"left out: {message}", err=True)
    inputs = []
    for run in found_runs.runs:
        try:
            inputs.append(read_inputs(run))
        except NoPredictionError as error:
            click.echo(f"left out: {error}", err=True)
    return inputs


def _print_counts(name: str, group: list[HeldPrediction]) -> None:
    within_count = sum(prediction.within for prediction in group)
    own_none = sum(prediction.within_of_own_none for prediction in group)
    overlap = sum(prediction.overlaps for prediction in group)
    click.echo(
        f"{name}: {within_count} of {len(group)} within the bound "
        f"({100 * within_count / len(group):.1f} %), "
        f"{own_none} with the point's own none; {overlap} intervals overlap"
    )


def _print_prediction(prediction: HeldPrediction) -> None:
    target = prediction.target
    click.echo(
        f"{'ok ' if prediction.within else 'OUT'} {prediction.kind:15} {target.name:7} "
        f"P={target.point.info.input_len:<5} {prediction.source_rate / 1e6:8.1f} → "
        f"{target.link.rate / 1e6:8.1f} MB/s  predicted {100 * prediction.predicted:+8.2f} "
        f"own none {100 * prediction.of_own_none:+8.2f} "
        f"measured {100 * prediction.measured:+8.2f} ± {100 * prediction.width:.2f}"
    )


if __name__ == "__main__":
    sys.exit(main())
