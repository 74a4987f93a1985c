"""From the records of a run to one series a quantity, for each point and arm.

A series holds one value per measured round; warm-ups are left out. Within a round, times are the
median over a source's microbatches (and steps), then the maximum over sources. Bytes, copies and
CPU seconds are sums.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Literal, NamedTuple, TypeVar

from dejavubench.analysis.scenarios.handover import HandoverSamples
from dejavubench.analysis.scenarios.swap import SwapSamples
from dejavubench.records import (
    ArmFailure,
    ArmInfo,
    Handover,
    HandoverAtSink,
    Iteration,
    Microbatch,
    PointInfo,
    RecordError,
    Restart,
    RoundRecord,
    Run,
    SinkActivity,
    StreamAlone,
    Swapping,
    Verification,
)

RoundValues = dict[int, float]
"""Values by the number of the round."""

Quantity = Literal["total", "prompt", "token", "tokens"]
"""Series of :class:`PhaseTimes` that arms are compared by."""


@dataclass
class PhaseTimes:
    """Times by round, in ms.

    Attributes:
        total: the whole request; with several microbatches in flight, the makespan.
        prompt, token, tokens: the prompt, one step, and all steps together, from the begin of the
            first one to the last token.
        drain: the wait at the end of one microbatch.
        steps: every single step, one list for each source.
        prompt_event, token_event: times between CUDA events; empty on a CPU.
    """

    total: RoundValues = field(default_factory=dict)
    prompt: RoundValues = field(default_factory=dict)
    token: RoundValues = field(default_factory=dict)
    tokens: RoundValues = field(default_factory=dict)
    drain: RoundValues = field(default_factory=dict)
    steps: dict[int, list[list[float]]] = field(default_factory=dict)
    prompt_event: RoundValues = field(default_factory=dict)
    token_event: RoundValues = field(default_factory=dict)

    def series(self, quantity: Quantity) -> RoundValues:
        """Return the series of a quantity by its name."""
        series: RoundValues = getattr(self, quantity)
        return series


@dataclass
class Waits:
    """Times by round that the model waited for streaming, in ms.

    Attributes:
        stall: wait of a whole iteration, the drain apart.
        prompt, tokens: wait in one microbatch's prompt, and in all of its steps.
        drain: wait at the end, over all microbatches of a source.
    """

    stall: RoundValues = field(default_factory=dict)
    prompt: RoundValues = field(default_factory=dict)
    tokens: RoundValues = field(default_factory=dict)
    drain: RoundValues = field(default_factory=dict)


@dataclass
class StreamSamples:
    """Bytes and copies of one iteration, by round.

    Attributes:
        nbytes: bytes that all sources streamed.
        prompt_copies: copies or messages for one microbatch's prompt.
        token_copies: copies or messages for one step.
        lag_nbytes: largest lag of all rounds and sources.
    """

    nbytes: RoundValues = field(default_factory=dict)
    prompt_copies: RoundValues = field(default_factory=dict)
    token_copies: RoundValues = field(default_factory=dict)
    lag_nbytes: int = 0


@dataclass
class CpuSeconds:
    """CPU seconds of one iteration by round, summed over the ranks of a role."""

    model: RoundValues = field(default_factory=dict)
    helper: RoundValues = field(default_factory=dict)
    sink: RoundValues = field(default_factory=dict)


class StreamAloneTime(NamedTuple):
    """The arm's chunks at level 3 without compute: the slowest source's time, all bytes."""

    ms: float
    nbytes: int


@dataclass
class ArmSamples:
    """Measurements of one arm at one point, in groups.

    Attributes:
        restarts: one per source, of a run that resumes a killed one.
        warmups: iterations that were recorded as warm-up.
        checks: verifications in the order of the records.
        alone: T_alone, of the best pass of each source.
        failure: reason why the arm stopped while the run went on.
    """

    point_info: PointInfo
    info: ArmInfo
    times: PhaseTimes = field(default_factory=PhaseTimes)
    waits: Waits = field(default_factory=Waits)
    stream: StreamSamples = field(default_factory=StreamSamples)
    cpu: CpuSeconds = field(default_factory=CpuSeconds)
    handover: HandoverSamples = field(default_factory=HandoverSamples)
    swap: SwapSamples = field(default_factory=SwapSamples)
    restarts: list[Restart] = field(default_factory=list)
    warmups: int = 0
    checks: list[Verification] = field(default_factory=list)
    alone: StreamAloneTime | None = None
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
        """The first verification that found other bytes or other tokens; None without one."""
        return next(
            (check for check in self.checks if not check.ok or check.tokens_equal is False), None
        )


@dataclass
class PointSamples:
    """The arms of one point; arms that did not run are not in ``arms``."""

    info: PointInfo
    arms: dict[str, ArmSamples] = field(default_factory=dict)

    def baseline_arms(self) -> list[ArmSamples]:
        """Return ``none`` and its repeat, as far as they exist and are verified."""
        chosen = {arm.info.role: arm for arm in self.arms.values() if arm.info.role != "streaming"}
        arms = [chosen[role] for role in ("baseline", "repeat") if role in chosen]
        return [arm for arm in arms if arm.why_failed is None]

    def baselines(self, quantity: Quantity = "total") -> list[RoundValues]:
        """Return the series of the baselines that have this quantity."""
        all_series = [arm.times.series(quantity) for arm in self.baseline_arms()]
        return [series for series in all_series if series]


RoundT = TypeVar("RoundT", bound=RoundRecord)


class _Collector:
    def __init__(self, run: Run) -> None:
        self.run = run
        self.arms = {arm.name: arm for arm in run.header.arms}
        points = map(run.header.with_settings, run.header.points)
        self.points = {point.id: PointSamples(point) for point in points}

    def samples_of(self, point: str, arm: str) -> ArmSamples:
        if point not in self.points or arm not in self.arms:
            raise RecordError(f"a record of point {point}, arm {arm}, which run.json does not name")
        samples = self.points[point]
        return samples.arms.setdefault(arm, ArmSamples(samples.info, self.arms[arm]))

    def in_rounds(self, record_class: type[RoundT]) -> Iterator[tuple[ArmSamples, int, RoundT]]:
        """Yield the records of one kind in rounds that count, with the arm's samples and the round.

        Warm-ups do not count. Neither does an arm's round without rank 0's Iteration, as a kill
        leaves it.
        """
        for _, record in self.run.records_of(record_class):
            samples = self.samples_of(record.point, record.arm)
            if record.round is not None and record.round in samples.times.total:
                yield samples, record.round, record


def collect(run: Run) -> dict[str, PointSamples]:
    """Return the samples of every point of a run by its id, in the header's order.

    Raises:
        RecordError: a record names a point or an arm that the header does not have.
    """
    collector = _Collector(run)
    for _, item in run.records_of(Iteration):
        samples = collector.samples_of(item.point, item.arm)
        if item.round is None:
            samples.warmups += 1
        else:
            samples.times.total[item.round] = item.total_ms
    _add_microbatches(collector)
    _add_sinks(collector)
    _add_scenarios(collector)
    for _, check in run.records_of(Verification):
        collector.samples_of(check.point, check.arm).checks.append(check)
    _add_alone(collector)
    for _, failure in run.records_of(ArmFailure):
        collector.samples_of(failure.point, failure.arm).failure = failure
    # Records come in the shuffled order of rounds; tables show the header's order.
    for point in collector.points.values():
        point.arms = {name: point.arms[name] for name in collector.arms if name in point.arms}
    return collector.points


def _add_microbatches(collector: _Collector) -> None:
    """Add microbatches, except those of a round in which the run was killed."""
    rounds: dict[tuple[str, str, int], dict[int, list[Microbatch]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for rank, item in collector.run.records_of(Microbatch):
        if item.round is not None:
            rounds[item.point, item.arm, item.round][rank].append(item)
    for (point, arm, number), sources in rounds.items():
        samples = collector.samples_of(point, arm)
        # Rank 0 writes the iteration last: a round without it was cut short on some source.
        if number in samples.times.total:
            _add_round(samples, number, list(sources.values()))


def _add_round(samples: ArmSamples, number: int, sources: list[list[Microbatch]]) -> None:
    """Add one round.

    Args:
        sources: the microbatches in flight [source, microbatch], equally many for each source.
    """
    everything = [item for source in sources for item in source]
    in_flight = max(len(source) for source in sources)
    steps = max(len(item.token_ms) for item in everything)
    times, waits, stream = samples.times, samples.waits, samples.stream

    # The slowest source: the others wait for it, in collectives or for its hidden states.
    times.prompt[number] = max(median(item.prompt_ms for item in source) for source in sources)
    times.drain[number] = max(median(item.drain_ms for item in source) for source in sources)
    # A source computes its microbatches one after another, so their stalls add up.
    waits.stall[number] = max(
        sum(item.prompt.stall_ms + item.tokens.stall_ms for item in source) for source in sources
    )
    waits.prompt[number] = max(median(i.prompt.stall_ms for i in source) for source in sources)
    # Drains come one after another as well, when all tokens are known.
    waits.drain[number] = max(sum(item.drain_ms for item in source) for source in sources)
    if steps:
        times.steps[number] = [
            [ms for item in source for ms in item.token_ms] for source in sources
        ]
        times.tokens[number] = max(median(i.all_token_ms for i in source) for source in sources)
        times.token[number] = max(map(median, times.steps[number]))
        waits.tokens[number] = max(median(i.tokens.stall_ms for i in source) for source in sources)
        # Each source copies its own part of a step's keys and values, so copies add up over
        # sources; over microbatches and steps they are an average.
        copies = sum(item.tokens.copies for item in everything)
        stream.token_copies[number] = copies / (steps * in_flight)
    _add_events(times, number, sources)
    # What is still under way after the last token is counted in the drain.
    stream.nbytes[number] = sum(
        item.prompt.nbytes + item.tokens.nbytes + item.drain.nbytes for item in everything
    )
    stream.prompt_copies[number] = sum(item.prompt.copies for item in everything) / in_flight
    samples.cpu.model[number] = sum(item.cpu_model_s for item in everything)
    samples.cpu.helper[number] = sum(item.cpu_helper_s for item in everything)
    lag = max(
        phase.lag_nbytes for item in everything for phase in (item.prompt, item.tokens, item.drain)
    )
    stream.lag_nbytes = max(stream.lag_nbytes, lag)


def _add_events(times: PhaseTimes, number: int, sources: list[list[Microbatch]]) -> None:
    prompts = [
        [i.prompt_event_ms for i in source if i.prompt_event_ms is not None] for source in sources
    ]
    tokens = [[ms for item in source for ms in item.token_event_ms] for source in sources]
    # Only if every source has events: a maximum over some of them would be too small.
    if all(prompts):
        times.prompt_event[number] = max(map(median, prompts))
    if all(tokens):
        times.token_event[number] = max(map(median, tokens))


def _add_sinks(collector: _Collector) -> None:
    for samples, number, item in collector.in_rounds(SinkActivity):
        # Without bytes the rank was idle: the destination is no rank.
        if item.nbytes:
            samples.cpu.sink[number] = samples.cpu.sink.get(number, 0.0) + item.cpu_s


def _add_scenarios(collector: _Collector) -> None:
    for samples, number, handover in collector.in_rounds(Handover):
        samples.handover.add_source(number, handover)
    for samples, number, record in collector.in_rounds(HandoverAtSink):
        samples.handover.add_sink(number, record)
    for samples, number, swapping in collector.in_rounds(Swapping):
        samples.swap.add(number, swapping)
    for _, restart in collector.run.records_of(Restart):
        collector.samples_of(restart.point, restart.arm).restarts.append(restart)


def _add_alone(collector: _Collector) -> None:
    best: dict[tuple[str, str], dict[int, StreamAlone]] = defaultdict(dict)
    for rank, item in collector.run.records_of(StreamAlone):
        # The best pass of each source: the link alone, without what disturbed it once.
        known = best[item.point, item.arm].get(rank)
        if known is None or item.ms < known.ms:
            best[item.point, item.arm][rank] = item
    for (point, arm), sources in best.items():
        items = sources.values()
        collector.samples_of(point, arm).alone = StreamAloneTime(
            max(item.ms for item in items), sum(item.nbytes for item in items)
        )
