"""Rules for other records than microbatches: sinks, hand-overs, swaps, restarts, ceilings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from dejavubench.analysis.facts.raw_loops import raw_loops
from dejavubench.analysis.integrity.rank_files import RankPlaces
from dejavubench.analysis.integrity.rounds import (
    Key,
    describe_key,
    expected_nbytes,
    key_of,
    remote_arms,
)
from dejavubench.records import (
    Ceiling,
    Handover,
    HandoverAtSink,
    Iteration,
    RankInfo,
    RankLog,
    Restart,
    RoundRecord,
    Run,
    SinkActivity,
    StreamAlone,
    Swapping,
)


def _sinks(run: Run) -> list[RankLog]:
    return [
        log for log in run.ranks if any(info.role == "sink" for info in log.records_of(RankInfo))
    ]


def _lacking(
    run: Run, logs: list[RankLog], record_class: type[RoundRecord], keys: list[Key]
) -> Iterator[str]:
    """Yield iterations without a rank's record, except the last one of a killed rank."""
    last = [key_of(item) for _, item in run.records_of(Iteration)][-1:]
    for log in logs:
        recorded = set(map(key_of, log.records_of(record_class)))
        for key in keys:
            # Rank 0 may have written the last iteration before this rank was killed.
            if key not in recorded and (log.ended or [key] != last):
                name = record_class.model_fields["kind"].default
                yield f"{log.path.name}: {describe_key(key)} has no {name} record of this rank"


def _check_received_bytes(run: Run) -> Iterator[str]:
    keys = [key_of(item) for _, item in run.records_of(Iteration)]
    sinks, layout, remote = _sinks(run), RankPlaces.of_run(run), remote_arms(run)
    yield from _lacking(run, sinks, SinkActivity, keys)
    received: dict[Key, list[int]] = defaultdict(list)
    for _, item in run.records_of(SinkActivity):
        received[key_of(item)].append(item.nbytes)
    streamed = expected_nbytes(run)
    for key, nbytes in received.items():
        # Sinks of a local arm take part in its rounds and receive nothing.
        expected = streamed[key[0], key[1]] if key[1] in remote else 0
        # Sums count only when every sink has written its part of the iteration.
        if len(nbytes) == layout.sinks and sum(nbytes) != expected:
            yield f"{describe_key(key)}: the sinks received {sum(nbytes)} of {expected} bytes"


def _check_handovers(run: Run) -> Iterator[str]:
    points = {point.id: point for point in run.header.points}
    handovers = [
        key_of(i)
        for _, i in run.records_of(Iteration)
        if points[i.point].handed_over and i.arm in remote_arms(run)
    ]
    yield from _lacking(run, _sinks(run) if handovers else [], HandoverAtSink, handovers)
    sent = [key_of(item) for _, item in run.records_of(Handover)]
    # One source sends the sinks the tokens so far, once for each iteration.
    if len(set(sent)) < len(sent):
        yield "several sources handed over the same iteration"
    for log in run.ranks:
        for where, item in log.with_places(HandoverAtSink):
            # The sink's first token is first_ms; token_ms has the ones after it.
            steps = points[item.point].output_len - points[item.point].handed_over - 1
            if len(item.token_ms) != max(steps, 0):
                yield (
                    f"{where}: token_ms has {len(item.token_ms)} times, but the sink took "
                    f"{max(steps, 0)} steps"
                )


def _check_swapping(run: Run) -> Iterator[str]:
    swaps = {arm.name for arm in run.header.arms if arm.swaps}
    keys = [key_of(item) for _, item in run.records_of(Iteration) if item.arm in swaps]
    sources = RankPlaces.of_run(run).sources
    yield from _lacking(
        run, [log for log in run.ranks if log.rank < sources and log.records], Swapping, keys
    )


def _check_restarts(run: Run) -> Iterator[str]:
    restarts = [item for _, item in run.records_of(Restart)]
    # Sources differ in times and bytes alone: request and steps are those of the killed run.
    requests = {
        (item.of, item.run_id, item.point, item.arm, item.first, len(item.step_ms))
        for item in restarts
    }
    if len(requests) > 1:
        yield "the sources resume different requests: their records of restart differ"
    for log in run.ranks:
        if sum(1 for _ in log.records_of(Restart)) > 1:
            yield f"{log.path.name} holds two records of restart"


def _check_streams_alone(run: Run) -> Iterator[str]:
    nbytes: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
    for rank, item in run.records_of(StreamAlone):
        # Later passes overwrite earlier ones: each moves the same chunks.
        nbytes[item.point, item.arm][rank] = item.nbytes
    streamed = expected_nbytes(run)
    for (point, arm), by_rank in nbytes.items():
        expected = streamed[point, arm]
        if sum(by_rank.values()) != expected:
            yield (
                f"{point} {arm}: its stream alone had {sum(by_rank.values())} bytes, "
                f"but an iteration has {expected}"
            )


def _check_ceilings(run: Run) -> Iterator[str]:
    ceilings = {}
    for log in run.ranks:
        for where, item in log.with_places(Ceiling):
            ceilings[log.rank, item.point, item.durability, item.name] = where, item
            # A latency is best when it is small, a rate when it is large.
            best = min(item.samples) if item.unit == "us" else max(item.samples)
            if item.value != best:
                yield (
                    f"{where}: ceiling {item.name} is {item.value:g}, but the best of its samples "
                    f"is {best:g}"
                )
    loops = raw_loops(run)
    for (rank, point, durability, name), (where, ceiling) in ceilings.items():
        # Both loops take turns, so a ratio needs equally many samples of each.
        raw = ceilings.get((rank, point, durability, loops.get(name, "")))
        if raw is not None and len(raw[1].samples) != len(ceiling.samples):
            counts = len(ceiling.samples), len(raw[1].samples)
            yield f"{where}: ceiling {name} has {counts[0]} samples, its raw loop {counts[1]}"


RULES = (
    _check_received_bytes,
    _check_handovers,
    _check_swapping,
    _check_restarts,
    _check_streams_alone,
    _check_ceilings,
)
