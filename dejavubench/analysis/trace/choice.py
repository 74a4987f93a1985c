"""The iteration that a trace shows: a point, an arm and a measured round."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dejavubench.analysis.facts.samples import ArmSamples, PointSamples, RoundValues, collect
from dejavubench.analysis.number_texts import signed_percent
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
        how: how it was chosen, in words.
    """

    point: str
    arm: str
    round: int
    iteration: int
    total_ms: float
    overhead: float | None
    how: str

    def __str__(self) -> str:
        over = (
            ""
            if self.overhead is None
            else f", {signed_percent(100 * self.overhead)} % over none in that round"
        )
        return (
            f"{self.point} {self.arm}, round {self.round + 1} ({self.how}): "
            f"TOTAL {self.total_ms:.1f} ms{over}"
        )


def choose(run: Run, point: str | None, arm: str | None, which: str) -> ChosenIteration:
    """Choose an iteration.

    Args:
        point: its id; None: the first point with measured rounds.
        arm: its name; None: the arm with the largest overhead, or the only one.
        which: ``median``, ``worst``, or the round's number, counted from 1.

    Raises:
        TraceError: there is no such point, arm or round, or the arm failed.
        RecordError: the records do not fit together.
    """
    # A killed run may have points without a whole round.
    points = {id_: each for id_, each in collect(run).items() if _select_measured(each)}
    if not points:
        raise TraceError(f"{run.path} has no measured rounds")
    samples = points[_find_name("point", point, points) or next(iter(points))]
    arms = _select_measured(samples)
    chosen = arms[_find_name("arm", arm, arms) or _costliest(samples, arms)]
    if chosen.why_failed is not None:
        raise TraceError(f"{chosen.info.name} failed in {chosen.why_failed}")
    overheads = _overheads(samples, chosen)
    number, how = _round(chosen, overheads, which)
    iteration = next(
        each.iteration
        for _, each in run.records_of(Iteration)
        if (each.point, each.arm, each.round) == (samples.info.id, chosen.info.name, number)
    )
    return ChosenIteration(
        point=samples.info.id,
        arm=chosen.info.name,
        round=number,
        iteration=iteration,
        total_ms=chosen.times.total[number],
        overhead=overheads.get(number),
        how=how,
    )


def _select_measured(samples: PointSamples) -> dict[str, ArmSamples]:
    return {name: each for name, each in samples.arms.items() if each.times.total}


def _find_name(kind: str, name: str | None, known: Iterable[str]) -> str | None:
    if name is not None and name not in known:
        raise TraceError(f"there is no measured {kind} {name!r}. There is: {', '.join(known)}")
    return name


def _costliest(samples: PointSamples, arms: dict[str, ArmSamples]) -> str:
    """Return the streaming arm with the largest median overhead; the first one without baselines.

    Arms that failed count only if no other is there.
    """
    fine = [name for name, each in arms.items() if each.why_failed is None] or list(arms)
    streaming = [name for name in fine if arms[name].info.streams]

    def cost(name: str) -> float:
        overhead = stats.paired_overhead(arms[name].times.total, samples.baselines())
        return float("-inf") if overhead is None else overhead.median

    return max(streaming, key=cost) if streaming else fine[0]


def _overheads(samples: PointSamples, chosen: ArmSamples) -> RoundValues:
    """Return the chosen arm's overhead of each round over the baselines of the same round."""
    baselines = samples.baselines()
    if not baselines or not chosen.info.streams:
        return {}
    means = stats.geometric_mean(baselines)
    return {n: ms / means[n] - 1 for n, ms in chosen.times.total.items() if n in means}


def _round(chosen: ArmSamples, overheads: RoundValues, which: str) -> tuple[int, str]:
    ordered = sorted(chosen.times.total, key=lambda n: (chosen.times.total[n], n))
    if which == "median":
        # Of an even number of rounds the lower one: a mean of two is no iteration.
        return ordered[(len(ordered) - 1) // 2], f"median TOTAL of {len(ordered)} rounds"
    if which == "worst" and overheads:
        # By overhead, not TOTAL: a slow round of all arms is the machine's, not the stream's.
        worst = max(overheads, key=lambda n: (overheads[n], n))
        return worst, f"largest overhead of {len(overheads)} rounds"
    if which == "worst":
        return ordered[-1], f"largest TOTAL of {len(ordered)} rounds, as none has a baseline"
    # People count rounds from 1, records from 0.
    number = int(which) - 1
    if number not in chosen.times.total:
        rounds = ", ".join(str(n + 1) for n in sorted(chosen.times.total))
        raise TraceError(f"{chosen.info.name} has no measured round {which}. It has: {rounds}")
    return number, "as asked"
