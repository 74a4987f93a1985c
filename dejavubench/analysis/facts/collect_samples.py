"""From the records of a run to its samples: :func:`collect`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from statistics import median
from typing import TypeVar

from dejavubench.analysis.facts.samples import (
    ArmSamples,
    PhaseTimes,
    PointSamples,
    SourceAloneTimes,
    StreamAloneTime,
    StreamSamples,
)
from dejavubench.records import (
    ArmFailure,
    Handover,
    HandoverAtSink,
    Iteration,
    Microbatch,
    RecordError,
    Restart,
    RoundRecord,
    Run,
    SinkActivity,
    SourceAlone,
    StreamAlone,
    Swapping,
    Verification,
)

RoundT = TypeVar("RoundT", bound=RoundRecord)


class _Collector:
    """The samples of a run while its records are read, by point and arm."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.arms = {arm.name: arm for arm in run.header.arms}
        points = map(run.header.with_settings, run.header.points)
        self.points = {point.id: PointSamples(point) for point in points}

    def samples_of(self, point_id: str, arm_name: str) -> ArmSamples:
        if point_id not in self.points or arm_name not in self.arms:
            raise RecordError(
                f"a record of point {point_id}, arm {arm_name}, which run.json does not name"
            )
        samples = self.points[point_id]
        return samples.arms.setdefault(arm_name, ArmSamples(samples.info, self.arms[arm_name]))

    def records_in_rounds(
        self, record_class: type[RoundT]
    ) -> Iterator[tuple[ArmSamples, int, RoundT]]:
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
    for _, iteration in run.records_of(Iteration):
        samples = collector.samples_of(iteration.point, iteration.arm)
        if iteration.round is None:
            samples.warmup_count += 1
        else:
            samples.times.total[iteration.round] = iteration.total_ms
    _add_microbatches(collector)
    _add_sinks(collector)
    _add_scenarios(collector)
    for _, check in run.records_of(Verification):
        collector.samples_of(check.point, check.arm).checks.append(check)
    _add_streams_alone(collector)
    _add_sources_alone(collector)
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
    for rank, microbatch in collector.run.records_of(Microbatch):
        if microbatch.round is not None:
            rounds[microbatch.point, microbatch.arm, microbatch.round][rank].append(microbatch)
    for (point_id, arm_name, round_number), sources in rounds.items():
        samples = collector.samples_of(point_id, arm_name)
        # Rank 0 writes the iteration last: a round without it was cut short on some source.
        if round_number in samples.times.total:
            _add_round(samples, round_number, list(sources.values()))


def _add_round(samples: ArmSamples, round_number: int, sources: list[list[Microbatch]]) -> None:
    """Add one round's times, stalls, bytes and copies of an arm.

    Args:
        sources: the microbatches in flight [source, microbatch], equally many for each source.
    """
    microbatches = [microbatch for source in sources for microbatch in source]
    in_flight = max(len(source) for source in sources)
    steps = max(len(microbatch.token_ms) for microbatch in microbatches)
    times = samples.times
    stalls = samples.stalls
    stream = samples.stream

    # The slowest source: the others wait for it, in collectives or for its hidden states.
    times.prompt[round_number] = _find_largest(
        sources, median, lambda microbatch: microbatch.prompt_ms
    )
    times.drain[round_number] = _find_largest(
        sources, median, lambda microbatch: microbatch.drain_ms
    )
    # A source computes its microbatches one after another, so their stalls add up.
    stalls.iteration[round_number] = _find_largest(
        sources, sum, lambda microbatch: microbatch.prompt.stall_ms + microbatch.tokens.stall_ms
    )
    stalls.prompt[round_number] = _find_largest(
        sources, median, lambda microbatch: microbatch.prompt.stall_ms
    )
    # Drains come one after another as well, when all tokens are known.
    stalls.drain[round_number] = _find_largest(sources, sum, lambda microbatch: microbatch.drain_ms)
    if steps:
        times.steps[round_number] = [
            [ms for microbatch in source for ms in microbatch.token_ms] for source in sources
        ]
        times.tokens[round_number] = _find_largest(
            sources, median, lambda microbatch: microbatch.all_token_ms
        )
        times.token[round_number] = max(map(median, times.steps[round_number]))
        stalls.tokens[round_number] = _find_largest(
            sources, median, lambda microbatch: microbatch.tokens.stall_ms
        )
        # Each source copies its own part of a step's keys and values, so copies add up over
        # sources; over microbatches and steps they are an average.
        copy_count = sum(microbatch.tokens.copies for microbatch in microbatches)
        stream.token_copies[round_number] = copy_count / (steps * in_flight)
    _add_events(times, round_number, sources)
    # What is still under way after the last token is counted in the drain.
    stream.nbytes[round_number] = sum(
        microbatch.prompt.nbytes + microbatch.tokens.nbytes + microbatch.drain.nbytes
        for microbatch in microbatches
    )
    stream.prompt_copies[round_number] = (
        sum(microbatch.prompt.copies for microbatch in microbatches) / in_flight
    )
    samples.cpu.model[round_number] = sum(microbatch.cpu_model_s for microbatch in microbatches)
    samples.cpu.helper[round_number] = sum(microbatch.cpu_helper_s for microbatch in microbatches)
    _add_lag(stream, round_number, sources)


def _add_lag(stream: StreamSamples, round_number: int, sources: list[list[Microbatch]]) -> None:
    """Add one round's bytes that were in place and not complete, as :func:`_add_round`."""
    lag = max(
        phase.lag_nbytes
        for source in sources
        for microbatch in source
        for phase in (microbatch.prompt, microbatch.tokens, microbatch.drain)
    )
    stream.lag_nbytes = max(stream.lag_nbytes, lag)
    # A drain begins when the last token is known; its lag is of one microbatch's cache.
    stream.left_nbytes[round_number] = _find_largest(
        sources, sum, lambda microbatch: microbatch.drain.lag_nbytes
    )


def _find_largest(
    sources: list[list[Microbatch]],
    summary: Callable[[Iterable[float]], float],
    quantity: Callable[[Microbatch], float],
) -> float:
    """Return the largest summary, median or sum, of a quantity over a source's microbatches."""
    return max(summary(map(quantity, source)) for source in sources)


def _add_events(times: PhaseTimes, round_number: int, sources: list[list[Microbatch]]) -> None:
    """Add one round's times between CUDA events: the slowest source's, as :func:`_add_round`."""
    prompts = [
        [
            microbatch.prompt_event_ms
            for microbatch in source
            if microbatch.prompt_event_ms is not None
        ]
        for source in sources
    ]
    tokens = [
        [ms for microbatch in source for ms in microbatch.token_event_ms] for source in sources
    ]
    # Only if every source has events: a maximum over some of them would be too small.
    if all(prompts):
        times.prompt_event[round_number] = max(map(median, prompts))
    if all(tokens):
        times.token_event[round_number] = max(map(median, tokens))


def _add_sinks(collector: _Collector) -> None:
    for samples, round_number, activity in collector.records_in_rounds(SinkActivity):
        # Without bytes the rank was idle: the destination is no rank.
        if activity.nbytes:
            samples.cpu.sink[round_number] = (
                samples.cpu.sink.get(round_number, 0.0) + activity.cpu_s
            )


def _add_scenarios(collector: _Collector) -> None:
    for samples, round_number, handover in collector.records_in_rounds(Handover):
        samples.handover.add_source(round_number, handover)
    for samples, round_number, record in collector.records_in_rounds(HandoverAtSink):
        samples.handover.add_sink(round_number, record)
    for samples, round_number, swapping in collector.records_in_rounds(Swapping):
        samples.swap.add(round_number, swapping)
    for _, restart in collector.run.records_of(Restart):
        collector.samples_of(restart.point, restart.arm).restarts.append(restart)


def _add_streams_alone(collector: _Collector) -> None:
    """Add T_alone of each arm: of the slowest source, from the best pass of each."""
    best_passes: dict[tuple[str, str], dict[int, StreamAlone]] = defaultdict(dict)
    for rank, stream_alone in collector.run.records_of(StreamAlone):
        # A slower pass was disturbed: the fastest one is the link alone.
        best_pass = best_passes[stream_alone.point, stream_alone.arm].get(rank)
        if best_pass is None or stream_alone.ms < best_pass.ms:
            best_passes[stream_alone.point, stream_alone.arm][rank] = stream_alone
    for (point_id, arm_name), sources in best_passes.items():
        passes = sources.values()
        collector.samples_of(point_id, arm_name).stream_alone = StreamAloneTime(
            max(stream_alone.ms for stream_alone in passes),
            sum(stream_alone.nbytes for stream_alone in passes),
        )


def _add_sources_alone(collector: _Collector) -> None:
    """Add the streams of each source alone, from the best pass of each kind."""
    for rank, source_alone in collector.run.records_of(SourceAlone):
        by_source = collector.samples_of(source_alone.point, source_alone.arm).sources_alone
        times = SourceAloneTimes(
            source_alone.isolated_ms, source_alone.together_ms, source_alone.nbytes
        )
        earlier_times = by_source.get(rank, times)
        by_source[rank] = SourceAloneTimes(
            min(times.isolated_ms, earlier_times.isolated_ms),
            min(times.together_ms, earlier_times.together_ms),
            times.nbytes,
        )
