"""The answers of one run: the cost and the limit of each arm, and the pairs of arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from dejavubench.analysis.answers.judgement import Difference, Judgement, estimate_cost
from dejavubench.analysis.answers.limits.collect_evidence import make_evidence
from dejavubench.analysis.answers.limits.rules import NOT_LOOKED_FOR, Limit, find_limit
from dejavubench.analysis.answers.pairs import Pair, compare_pairs
from dejavubench.analysis.breakdown.chunk_bill import Bill
from dejavubench.analysis.breakdown.overhead_parts import Phase
from dejavubench.analysis.facts.host_rounds import HostRounds, is_busy
from dejavubench.analysis.facts.samples import ArmSamples, PointSamples
from dejavubench.analysis.facts.source_ranks import count_ranks
from dejavubench.analysis.numbers import stats
from dejavubench.records import Run
from dejavubench.records.sessions import continue_command

NO_COST = Limit(NOT_LOOKED_FOR, "no cost is shown", "")
"""Limit of an arm whose cost is not told from noise."""

LEAST_TURNED_COST = 0.01
"""Least cost, and difference of medians, as fractions, whose signs are compared: below it, noise
alone turns signs."""

NOT_SHOWN = (Judgement.WITHIN_NOISE, Judgement.OPEN)
"""Judgements that there may be no difference at all."""


@dataclass(frozen=True)
class ArmAnswer:
    """Answer about one streaming arm at one point.

    Attributes:
        cost: its overhead; None without a baseline.
        token_cost: the overhead of its median token; None without a baseline or a token.
        limit: what limits it; None where nothing is decided about its cost.
        target: the largest overhead that was asked for, as a fraction.
        median_totals_ms: median TOTAL of the first none and of the arm; None without a none.
        others_text: what other processes took, in words, if a host was busy; else None.
    """

    point_id: str
    arm_name: str
    cost: Difference | None
    token_cost: Difference | None = None
    limit: Limit | None = None
    target: float | None = None
    median_totals_ms: tuple[float, float] | None = None
    others_text: str | None = None

    @property
    def median(self) -> float:
        """The cost as a fraction; 0 where it is unknown."""
        return 0.0 if self.cost is None else self.cost.estimate.median

    @property
    def is_turned_by_drift(self) -> bool:
        """Whether the medians of the times show a difference of the other sign than the cost.

        Both must be large enough to catch the eye.
        """
        if self.median_totals_ms is None:
            return False
        none_ms, arm_ms = self.median_totals_ms
        median_change = arm_ms / none_ms - 1
        return (
            self.median * median_change < 0
            and min(abs(self.median), abs(median_change)) >= LEAST_TURNED_COST
        )

    @property
    def judgement(self) -> Judgement | None:
        """Judgement of the arm's cost; None without a cost."""
        return None if self.cost is None else self.cost.judgement

    @property
    def has_token_cost(self) -> bool:
        """Whether the request shows no cost, but its tokens do.

        A long prompt, or its noise, can hide the cost of the tokens after it.
        """
        return (
            self.judgement in NOT_SHOWN
            and self.token_cost is not None
            and self.token_cost.judgement is Judgement.SLOWER
        )

    @property
    def verdict(self) -> stats.Verdict | None:
        """Whether the target is met; None without a cost."""
        return None if self.cost is None else stats.judge_overhead(self.cost.estimate, self.target)


@dataclass(frozen=True)
class RunAnswers:
    """All answers of a run, point by point, in the order of its arms.

    Attributes:
        round_ms: time of the requests of one round, over all points and arms.
        continue_command: the command that goes on with the run.
    """

    arms: list[ArmAnswer] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    round_ms: float = 0.0
    continue_command: str = ""

    @property
    def point_ids(self) -> list[str]:
        """Ids of the points that have arms, in their order."""
        return list(dict.fromkeys(answer.point_id for answer in self.arms))


def find_answers(
    run: Run,
    points: Mapping[str, PointSamples],
    hosts: Sequence[HostRounds],
    bills: Sequence[Bill],
) -> RunAnswers:
    """Answer from the samples of a run; arms without a measured round have no answer."""
    arms = []
    pairs = []
    for point in points.values():
        for samples in point.arms.values():
            if samples.info.is_streaming and samples.why_failed is None and samples.times.total:
                key = _name_point_and_arm(samples)
                arm_bills = [bill for bill in bills if (bill.point_id, bill.arm_name) == key]
                arms.append(_answer_arm(run, hosts, point, samples, arm_bills))
        pairs.extend(compare_pairs(point))
    round_ms = sum(
        stats.median_of(samples.times.total) or 0.0
        for point in points.values()
        for samples in point.arms.values()
    )
    return RunAnswers(arms, pairs, round_ms, continue_command(run.path, count_ranks(run)))


def _name_point_and_arm(samples: ArmSamples) -> tuple[str, str]:
    return samples.point_info.id, samples.info.name


def _answer_arm(
    run: Run,
    hosts: Sequence[HostRounds],
    point: PointSamples,
    samples: ArmSamples,
    bills: Sequence[Bill],
) -> ArmAnswer:
    """Answer about one arm; its limit is looked for only where a cost is shown."""
    answer = ArmAnswer(
        *_name_point_and_arm(samples),
        cost=estimate_cost(point, samples),
        token_cost=estimate_cost(point, samples, "token"),
        target=run.header.experiment.get("target_overhead"),
        median_totals_ms=_compute_median_totals_ms(point, samples),
        others_text=_describe_others(hosts, samples),
    )
    phase: Phase | None = "tokens" if answer.has_token_cost else None
    if answer.judgement is Judgement.SLOWER:
        phase = "total"
    if phase is not None:
        evidence = make_evidence(run, hosts, point, samples, bills, phase)
        return answer if evidence is None else replace(answer, limit=find_limit(evidence))
    return replace(answer, limit=NO_COST) if answer.judgement in NOT_SHOWN else answer


def _describe_others(hosts: Sequence[HostRounds], samples: ArmSamples) -> str | None:
    """Describe what others took of the busiest host; None without one that was busy."""
    point_id, arm_name = _name_point_and_arm(samples)
    busy_hosts = []
    for host in hosts:
        iterations = host.iterations_of_arm(point_id, arm_name)
        taken_core_count = (iterations.other_core_count or 0.0) + (
            iterations.steal_core_count or 0.0
        )
        disturbed_count = sum(
            host_round.is_disturbed
            for (disturbed_id, _), host_round in host.rounds.items()
            if disturbed_id == point_id
        )
        if is_busy(disturbed_count, len(samples.times.total), taken_core_count, host.core_count):
            busy_hosts.append((taken_core_count, host.core_count))
    if not busy_hosts:
        return None
    taken_core_count, core_count = max(busy_hosts)
    return f"other processes took {taken_core_count:.2g} of {core_count} cores"


def _compute_median_totals_ms(
    point: PointSamples, samples: ArmSamples
) -> tuple[float, float] | None:
    baselines = point.baselines()
    arm_ms = stats.median_of(samples.times.total)
    none_ms = stats.median_of(baselines[0]) if baselines else None
    return (none_ms, arm_ms) if none_ms and arm_ms else None
