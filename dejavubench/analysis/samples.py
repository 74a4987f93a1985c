"""From the records of a run to one series a quantity, for each point and arm.

A series holds one value per measured round; warm-ups are left out. Within a round, times are the
median over a source's microbatches (and steps), then the maximum over sources. Bytes, copies and
CPU seconds are sums.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from statistics import median

from dejavubench.records import (
    Alone,
    ArmFailure,
    ArmInfo,
    Handover,
    Iteration,
    Microbatch,
    PointInfo,
    RecordError,
    Restart,
    Run,
    SinkActivity,
    Swapping,
    TakeOver,
    Verification,
)

RoundValues = dict[int, float]


@dataclass
class ArmSamples:
    """Measurements of one arm at one point.

    Attributes:
        total, prompt, token, drain: ms by round; ``token`` is one step.
        tokens: ms by round of all steps together, from the first one's begin to the last token.
        steps: ms of every single step by round, one list for each source.
        stall: ms by round that the model waited for streaming, the drain apart.
        prompt_wait, tokens_wait: the same for one microbatch's prompt, and for all of its steps.
        drains: ms by round that a source waited at the end, over all its microbatches.
        prompt_event, token_event: ms by round between CUDA events; empty on a CPU.
        handover: ms by round, from the end of the sources' last computation until a sink's first
            token was reported to them.
        sink_waited, sink_first, sink_token: ms by round on the slowest sink; empty unless sinks
            take over.
        nbytes: bytes that all sources streamed in one iteration.
        prompt_copies: copies or messages for one microbatch's prompt.
        token_copies: copies or messages for one step.
        cpu_model, cpu_helper, cpu_sink: CPU seconds of one iteration, all ranks of that role.
        swap_nbytes: bytes that all sources brought back.
        swap_bring, swap_wait: ms by round, of the slowest source.
        resident: caches that were in place; None unless the arm swaps.
        restarts: one per source, of a run that resumes a killed one.
        lag_nbytes: largest lag of all rounds and sources.
        warmups: iterations that were recorded as warm-up.
        checks: verifications in the order of the records.
        alone: T_alone in ms (maximum over sources of their best) and its bytes (sum over sources).
        failure: reason why the arm stopped while the run went on.
    """

    point: PointInfo
    arm: ArmInfo
    total: RoundValues = field(default_factory=dict)
    prompt: RoundValues = field(default_factory=dict)
    token: RoundValues = field(default_factory=dict)
    drain: RoundValues = field(default_factory=dict)
    tokens: RoundValues = field(default_factory=dict)
    steps: dict[int, list[list[float]]] = field(default_factory=dict)
    stall: RoundValues = field(default_factory=dict)
    prompt_wait: RoundValues = field(default_factory=dict)
    tokens_wait: RoundValues = field(default_factory=dict)
    drains: RoundValues = field(default_factory=dict)
    prompt_event: RoundValues = field(default_factory=dict)
    token_event: RoundValues = field(default_factory=dict)
    handover: RoundValues = field(default_factory=dict)
    sink_waited: RoundValues = field(default_factory=dict)
    sink_first: RoundValues = field(default_factory=dict)
    sink_token: RoundValues = field(default_factory=dict)
    nbytes: RoundValues = field(default_factory=dict)
    prompt_copies: RoundValues = field(default_factory=dict)
    token_copies: RoundValues = field(default_factory=dict)
    cpu_model: RoundValues = field(default_factory=dict)
    cpu_helper: RoundValues = field(default_factory=dict)
    cpu_sink: RoundValues = field(default_factory=dict)
    swap_nbytes: RoundValues = field(default_factory=dict)
    swap_bring: RoundValues = field(default_factory=dict)
    swap_wait: RoundValues = field(default_factory=dict)
    resident: int | None = None
    restarts: list[Restart] = field(default_factory=list)
    lag_nbytes: int = 0
    warmups: int = 0
    checks: list[Verification] = field(default_factory=list)
    alone: tuple[float, int] | None = None
    failure: ArmFailure | None = None

    @property
    def why_failed(self) -> str | None:
        """Reason why the times cannot be shown; None if they can."""
        if self.failure is not None:
            failure = self.failure
            where = f"iteration {failure.iteration}, phase {failure.phase}, rank {failure.rank}"
            return f"{where}: {failure.error}"
        check = self.failed_check
        if check is None:
            return None
        what = check.where or (
            "tokens differ from none's" if check.tokens_equal is False else "bytes differ"
        )
        return f"iteration {check.iteration}: {what}"

    @property
    def failed_check(self) -> Verification | None:
        return next(
            (check for check in self.checks if not check.ok or check.tokens_equal is False), None
        )


@dataclass
class PointSamples:
    """The arms of one point; arms that did not run are not in ``arms``."""

    point: PointInfo
    arms: dict[str, ArmSamples] = field(default_factory=dict)

    def baseline_arms(self) -> list[ArmSamples]:
        """Return ``none`` and its repeat, as far as they exist and are verified."""
        chosen = {arm.arm.role: arm for arm in self.arms.values() if arm.arm.role != "streaming"}
        arms = [chosen[role] for role in ("baseline", "repeat") if role in chosen]
        return [arm for arm in arms if arm.why_failed is None]

    def baselines(self, quantity: str = "total") -> list[RoundValues]:
        """Return the series of the baselines that have this quantity."""
        series: list[RoundValues] = [getattr(arm, quantity) for arm in self.baseline_arms()]
        return [values_of_arm for values_of_arm in series if values_of_arm]


class _Collector:
    def __init__(self, run: Run) -> None:
        self.run = run
        self.arms = {arm.name: arm for arm in run.header.arms}
        self.points = {point.id: PointSamples(point) for point in run.header.points}

    def of(self, point: str, arm: str) -> ArmSamples:
        if point not in self.points or arm not in self.arms:
            raise RecordError(f"a record of point {point}, arm {arm}, which run.json does not name")
        samples = self.points[point]
        return samples.arms.setdefault(arm, ArmSamples(samples.point, self.arms[arm]))


def collect(run: Run) -> dict[str, PointSamples]:
    """Return the samples of every point of a run by its id, in the header's order.

    Raises:
        RecordError: a record names a point or an arm that the header does not have.
    """
    collector = _Collector(run)
    for _, item in run.of(Iteration):
        samples = collector.of(item.point, item.arm)
        if item.round is None:
            samples.warmups += 1
        else:
            samples.total[item.round] = item.total_ms
    _add_microbatches(collector)
    _add_sinks(collector)
    _add_hand_overs(collector)
    _add_swapping(collector)
    for _, restart in run.of(Restart):
        collector.of(restart.point, restart.arm).restarts.append(restart)
    for _, check in run.of(Verification):
        collector.of(check.point, check.arm).checks.append(check)
    _add_alone(collector)
    for _, failure in run.of(ArmFailure):
        collector.of(failure.point, failure.arm).failure = failure
    # Records come in the shuffled order of rounds; tables show the header's order.
    for point in collector.points.values():
        point.arms = {name: point.arms[name] for name in collector.arms if name in point.arms}
    return collector.points


def _add_microbatches(collector: _Collector) -> None:
    """Add microbatches, except those of a round in which the run was killed."""
    rounds: dict[tuple[str, str, int], dict[int, list[Microbatch]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for rank, item in collector.run.of(Microbatch):
        if item.round is not None:
            rounds[item.point, item.arm, item.round][rank].append(item)
    for (point, arm, number), sources in rounds.items():
        samples = collector.of(point, arm)
        # Rank 0 writes the iteration last: a round without it was cut short on some source.
        if number in samples.total:
            _add_round(samples, number, list(sources.values()))


def _add_round(samples: ArmSamples, number: int, sources: list[list[Microbatch]]) -> None:
    everything = [item for source in sources for item in source]
    in_flight = max(len(source) for source in sources)
    steps = max(len(item.token_ms) for item in everything)

    # The slowest source: the others wait for it, in collectives or for its hidden states.
    samples.prompt[number] = max(median(item.prompt_ms for item in source) for source in sources)
    samples.drain[number] = max(median(item.drain_ms for item in source) for source in sources)
    # A source computes its microbatches one after another, so their stalls add up.
    samples.stall[number] = max(
        sum(i.prompt.stall_ms + i.tokens.stall_ms for i in source) for source in sources
    )
    samples.prompt_wait[number] = max(median(i.prompt.stall_ms for i in s) for s in sources)
    # Drains come one after another as well, when all tokens are known.
    samples.drains[number] = max(sum(item.drain_ms for item in source) for source in sources)
    if steps:
        samples.steps[number] = [[ms for i in source for ms in i.token_ms] for source in sources]
        samples.tokens[number] = max(median(i.all_token_ms for i in s) for s in sources)
        samples.tokens_wait[number] = max(median(i.tokens.stall_ms for i in s) for s in sources)
        samples.token[number] = max(
            median(ms for item in source for ms in item.token_ms) for source in sources
        )
        samples.token_copies[number] = sum(item.tokens.copies for item in everything) / (
            steps * in_flight
        )
    _add_events(samples, number, sources)
    samples.nbytes[number] = sum(
        i.prompt.nbytes + i.tokens.nbytes + i.drain.nbytes for i in everything
    )
    samples.prompt_copies[number] = sum(item.prompt.copies for item in everything) / in_flight
    samples.cpu_model[number] = sum(item.cpu_model_s for item in everything)
    samples.cpu_helper[number] = sum(item.cpu_helper_s for item in everything)
    lag = max(
        phase.lag_nbytes for item in everything for phase in (item.prompt, item.tokens, item.drain)
    )
    samples.lag_nbytes = max(samples.lag_nbytes, lag)


def _add_events(samples: ArmSamples, number: int, sources: list[list[Microbatch]]) -> None:
    prompts = [
        [i.prompt_event_ms for i in source if i.prompt_event_ms is not None] for source in sources
    ]
    tokens = [[ms for item in source for ms in item.token_event_ms] for source in sources]
    # Only if every source has events: a maximum over some of them would be too small.
    if all(prompts):
        samples.prompt_event[number] = max(map(median, prompts))
    if all(tokens):
        samples.token_event[number] = max(map(median, tokens))


def _add_sinks(collector: _Collector) -> None:
    for _, item in collector.run.of(SinkActivity):
        samples = collector.of(item.point, item.arm)
        # Without bytes the rank was idle: the destination is no rank.
        if item.round in samples.total and item.nbytes:
            samples.cpu_sink[item.round] = samples.cpu_sink.get(item.round, 0.0) + item.cpu_s


def _add_hand_overs(collector: _Collector) -> None:
    for _, item in collector.run.of(Handover):
        samples = collector.of(item.point, item.arm)
        if item.round in samples.total:
            samples.handover[item.round] = item.ms
    for _, taken in collector.run.of(TakeOver):
        samples = collector.of(taken.point, taken.arm)
        if taken.round not in samples.total:
            continue
        of_sink = [(samples.sink_waited, taken.waited_ms), (samples.sink_first, taken.first_ms)]
        if taken.token_ms:
            of_sink.append((samples.sink_token, median(taken.token_ms)))
        for series, ms in of_sink:
            series[taken.round] = max(ms, series.get(taken.round, 0.0))


def _add_swapping(collector: _Collector) -> None:
    for _, item in collector.run.of(Swapping):
        samples = collector.of(item.point, item.arm)
        if item.round in samples.total:
            samples.resident = item.resident
            # Bytes add up over sources, which bring caches back side by side: times do not.
            samples.swap_nbytes[item.round] = samples.swap_nbytes.get(item.round, 0) + item.nbytes
            for series, ms in (
                (samples.swap_bring, item.bring_ms),
                (samples.swap_wait, item.wait_ms),
            ):
                series[item.round] = max(ms, series.get(item.round, 0.0))


def _add_alone(collector: _Collector) -> None:
    best: dict[tuple[str, str], dict[int, Alone]] = defaultdict(dict)
    for rank, item in collector.run.of(Alone):
        # The best pass of each source: the link alone, without what disturbed it once.
        known = best[item.point, item.arm].get(rank)
        if known is None or item.ms < known.ms:
            best[item.point, item.arm][rank] = item
    for (point, arm), sources in best.items():
        items = sources.values()
        collector.of(point, arm).alone = (
            max(item.ms for item in items),
            sum(item.nbytes for item in items),
        )
