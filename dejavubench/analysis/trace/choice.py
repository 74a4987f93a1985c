"""The iteration that a trace shows: a point, an arm and a measured round."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dejavubench.analysis.facts.collect_samples import collect
from dejavubench.analysis.facts.samples import ArmSamples, PointSamples, RoundValues
from dejavubench.analysis.number_texts import format_signed_percent
from dejavubench.analysis.numbers import stats
from dejavubench.records import Iteration, Run


class TraceError(Exception):
    """An iteration that cannot be traced. The message says why, and what can be."""


@dataclass(frozen=True)
class ChosenIteration:
    """One measured iteration.

    Attributes:
        round: counted from 0, as in the records.
        overhead: of its TOTAL over the baselines of its own round; None without baselines.
        way_chosen: how it was chosen, in words.
    """

    point_id: str
    arm_name: str
    round: int
    iteration: int
    total_ms: float
    overhead: float | None
    way_chosen: str

    def __str__(self) -> str:
        over_text = (
            ""
            if self.overhead is None
            else f", {format_signed_percent(100 * self.overhead)} % over none in that round"
        )
        return (
            f"{self.point_id} {self.arm_name}, round {self.round + 1} ({self.way_chosen}): "
            f"TOTAL {self.total_ms:.1f} ms{over_text}"
        )


def choose(
    run: Run, point_id: str | None, arm_name: str | None, wanted_round: str
) -> ChosenIteration:
    """Choose an iteration.

    Args:
        point_id: its id; None: the first point with measured rounds.
        arm_name: its name; None: the arm with the largest overhead, or the only one.
        wanted_round: ``median``, ``worst``, or the round's number, counted from 1.

    Raises:
        TraceError: there is no such point, arm or round, or the arm failed.
        RecordError: the records do not fit together.
    """
    # A killed run may have points without a whole round.
    points = {
        measured_id: point_samples
        for measured_id, point_samples in collect(run).items()
        if _select_measured(point_samples)
    }
    if not points:
        raise TraceError(f"{run.path} has no measured rounds")
    chosen_point = points[_find_name("point", point_id, points) or next(iter(points))]
    arms = _select_measured(chosen_point)
    chosen_arm = arms[_find_name("arm", arm_name, arms) or _find_costliest_name(chosen_point, arms)]
    if chosen_arm.why_failed is not None:
        raise TraceError(f"{chosen_arm.info.name} failed in {chosen_arm.why_failed}")
    overheads = _compute_overheads(chosen_point, chosen_arm)
    round_number, way_chosen = _choose_round(chosen_arm, overheads, wanted_round)
    iteration = next(
        record.iteration
        for _, record in run.records_of(Iteration)
        if (record.point, record.arm, record.round)
        == (chosen_point.info.id, chosen_arm.info.name, round_number)
    )
    return ChosenIteration(
        point_id=chosen_point.info.id,
        arm_name=chosen_arm.info.name,
        round=round_number,
        iteration=iteration,
        total_ms=chosen_arm.times.total[round_number],
        overhead=overheads.get(round_number),
        way_chosen=way_chosen,
    )


def _select_measured(point: PointSamples) -> dict[str, ArmSamples]:
    return {name: samples for name, samples in point.arms.items() if samples.times.total}


def _find_name(kind: str, name: str | None, measured_names: Iterable[str]) -> str | None:
    if name is not None and name not in measured_names:
        raise TraceError(
            f"there is no measured {kind} {name!r}. There is: {', '.join(measured_names)}"
        )
    return name


def _find_costliest_name(point: PointSamples, arms: dict[str, ArmSamples]) -> str:
    """Return the streaming arm with the largest median overhead; the first one without baselines.

    Arms that failed count only if no other is there.
    """
    intact_names = [name for name, samples in arms.items() if samples.why_failed is None]
    candidates = intact_names or list(arms)
    streaming_names = [name for name in candidates if arms[name].info.is_streaming]

    def cost(name: str) -> float:
        overhead = stats.estimate_paired_overhead(arms[name].times.total, point.baselines())
        return float("-inf") if overhead is None else overhead.median

    return max(streaming_names, key=cost) if streaming_names else candidates[0]


def _compute_overheads(point: PointSamples, chosen_arm: ArmSamples) -> RoundValues:
    """Return the chosen arm's overhead of each round over the baselines of the same round."""
    baselines = point.baselines()
    if not baselines or not chosen_arm.info.is_streaming:
        return {}
    means = stats.compute_geometric_mean(baselines)
    return {
        round_number: ms / means[round_number] - 1
        for round_number, ms in chosen_arm.times.total.items()
        if round_number in means
    }


def _choose_round(
    chosen_arm: ArmSamples, overheads: RoundValues, wanted_round: str
) -> tuple[int, str]:
    """Return the number of the wanted round, from 0, and in words how it was chosen."""
    rounds_by_time = sorted(
        chosen_arm.times.total,
        key=lambda round_number: (chosen_arm.times.total[round_number], round_number),
    )
    if wanted_round == "median":
        # Of an even number of rounds the lower one: a mean of two is no iteration.
        median_round = rounds_by_time[(len(rounds_by_time) - 1) // 2]
        return median_round, f"median TOTAL of {len(rounds_by_time)} rounds"
    if wanted_round == "worst" and overheads:
        # By overhead, not TOTAL: a slow round of all arms is the machine's, not the stream's.
        worst_round = max(
            overheads, key=lambda round_number: (overheads[round_number], round_number)
        )
        return worst_round, f"largest overhead of {len(overheads)} rounds"
    if wanted_round == "worst":
        slowest_round = rounds_by_time[-1]
        reason = f"largest TOTAL of {len(rounds_by_time)} rounds, as none has a baseline"
        return slowest_round, reason
    # People count rounds from 1, records from 0.
    asked_round = int(wanted_round) - 1
    if asked_round not in chosen_arm.times.total:
        rounds = ", ".join(str(round_number + 1) for round_number in sorted(chosen_arm.times.total))
        raise TraceError(
            f"{chosen_arm.info.name} has no measured round {wanted_round}. It has: {rounds}"
        )
    return asked_round, "as asked"
