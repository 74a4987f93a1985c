"""Rules for other records than microbatches: sinks, hand-overs, swaps, restarts, ceilings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from dejavubench.analysis.facts.raw_loops import map_own_raw_loops
from dejavubench.analysis.integrity.rank_files import RankPlaces
from dejavubench.analysis.integrity.rounds import (
    Key,
    compute_expected_nbytes,
    describe_key,
    key_of,
    list_remote_arms,
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
    SourceAlone,
    StreamAlone,
    Swapping,
)


def _list_sink_logs(run: Run) -> list[RankLog]:
    return [
        log for log in run.ranks if any(info.role == "sink" for info in log.records_of(RankInfo))
    ]


def _find_missing_records(
    run: Run, logs: list[RankLog], record_class: type[RoundRecord], keys: list[Key]
) -> Iterator[str]:
    """Yield iterations without a rank's record, except the last one of a killed rank."""
    last_key = [key_of(iteration) for _, iteration in run.records_of(Iteration)][-1:]
    for log in logs:
        recorded_keys = set(map(key_of, log.records_of(record_class)))
        for key in keys:
            # Rank 0 may have written the last iteration before this rank was killed.
            if key not in recorded_keys and (log.has_ended or [key] != last_key):
                name = record_class.model_fields["kind"].default
                yield f"{log.path.name}: {describe_key(key)} has no {name} record of this rank"


def _check_received_bytes(run: Run) -> Iterator[str]:
    """Check that the sinks together received what the sources streamed, and nothing of others."""
    keys = [key_of(iteration) for _, iteration in run.records_of(Iteration)]
    sinks = _list_sink_logs(run)
    rank_places = RankPlaces.of_run(run)
    remote_names = list_remote_arms(run)
    yield from _find_missing_records(run, sinks, SinkActivity, keys)
    received_nbytes: dict[Key, list[int]] = defaultdict(list)
    for _, activity in run.records_of(SinkActivity):
        received_nbytes[key_of(activity)].append(activity.nbytes)
    streamed_nbytes = compute_expected_nbytes(run)
    for key, nbytes_of_sinks in received_nbytes.items():
        # Sinks of a local arm take part in its rounds and receive nothing.
        due_nbytes = streamed_nbytes[key[0], key[1]] if key[1] in remote_names else 0
        # Sums count only when every sink has written its part of the iteration.
        if len(nbytes_of_sinks) == rank_places.sink_count and sum(nbytes_of_sinks) != due_nbytes:
            yield (
                f"{describe_key(key)}: the sinks received {sum(nbytes_of_sinks)} of {due_nbytes} "
                "bytes"
            )


def _check_handovers(run: Run) -> Iterator[str]:
    """Check that one source hands each iteration over, and that each sink took all its steps."""
    points = {point.id: point for point in run.header.points}
    handovers = [
        key_of(iteration)
        for _, iteration in run.records_of(Iteration)
        if points[iteration.point].handed_over and iteration.arm in list_remote_arms(run)
    ]
    yield from _find_missing_records(
        run, _list_sink_logs(run) if handovers else [], HandoverAtSink, handovers
    )
    sent_keys = [key_of(handover) for _, handover in run.records_of(Handover)]
    # One source sends the sinks the tokens so far, once for each iteration.
    if len(set(sent_keys)) < len(sent_keys):
        yield "several sources handed over the same iteration"
    for log in run.ranks:
        for place, sink_record in log.with_places(HandoverAtSink):
            # The sink's first token is first_ms; token_ms has the ones after it.
            step_count = (
                points[sink_record.point].output_len - points[sink_record.point].handed_over - 1
            )
            if len(sink_record.token_ms) != max(step_count, 0):
                yield (
                    f"{place}: token_ms has {len(sink_record.token_ms)} times, but the sink took "
                    f"{max(step_count, 0)} steps"
                )


def _check_swapping(run: Run) -> Iterator[str]:
    swapping_arms = {arm.name for arm in run.header.arms if arm.is_swapping}
    keys = [
        key_of(iteration)
        for _, iteration in run.records_of(Iteration)
        if iteration.arm in swapping_arms
    ]
    source_count = RankPlaces.of_run(run).source_count
    yield from _find_missing_records(
        run, [log for log in run.ranks if log.rank < source_count and log.records], Swapping, keys
    )


def _check_restarts(run: Run) -> Iterator[str]:
    """Check that all sources restart the same request, each of them once."""
    restarts = [restart for _, restart in run.records_of(Restart)]
    # Sources differ in times and bytes alone: request and steps are those of the killed run.
    requests = {
        (
            restart.of,
            restart.run_id,
            restart.point,
            restart.arm,
            restart.first,
            len(restart.step_ms),
        )
        for restart in restarts
    }
    if len(requests) > 1:
        yield "the sources restart different requests: their records of restart differ"
    for log in run.ranks:
        if sum(1 for _ in log.records_of(Restart)) > 1:
            yield f"{log.path.name} holds two records of restart"


def _check_streams_alone(run: Run) -> Iterator[str]:
    """Check that a stream alone moves the bytes of one iteration."""
    nbytes: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
    for rank, stream_alone in run.records_of(StreamAlone):
        # Later passes overwrite earlier ones: each moves the same chunks.
        nbytes[stream_alone.point, stream_alone.arm][rank] = stream_alone.nbytes
    streamed_nbytes = compute_expected_nbytes(run)
    for (point_id, arm_name), by_rank in nbytes.items():
        cache_nbytes = streamed_nbytes[point_id, arm_name]
        if sum(by_rank.values()) != cache_nbytes:
            yield (
                f"{point_id} {arm_name}: its stream alone had {sum(by_rank.values())} bytes, "
                f"but an iteration has {cache_nbytes}"
            )


def _check_sources_alone(run: Run) -> Iterator[str]:
    """Check that the sources' own streams alone move the bytes of one iteration together."""
    nbytes: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
    for rank, source_alone in run.records_of(SourceAlone):
        nbytes[source_alone.point, source_alone.arm][rank] = source_alone.nbytes
    source_count = RankPlaces.of_run(run).source_count
    streamed_nbytes = compute_expected_nbytes(run)
    for (point_id, arm_name), by_rank in nbytes.items():
        cache_nbytes = streamed_nbytes[point_id, arm_name]
        # Each source writes its own record, so a killed run may lack some.
        if len(by_rank) == source_count and sum(by_rank.values()) != cache_nbytes:
            yield (
                f"{point_id} {arm_name}: its sources alone had {sum(by_rank.values())} bytes, "
                f"but an iteration has {cache_nbytes}"
            )


def _check_ceilings(run: Run) -> Iterator[str]:
    """Check that a ceiling is its best sample, with as many samples as its raw loop."""
    ceilings = {}
    for log in run.ranks:
        for place, ceiling in log.with_places(Ceiling):
            ceilings[log.rank, ceiling.point, ceiling.durability, ceiling.name] = place, ceiling
            # A latency is best when it is small, a rate when it is large.
            best_sample = min(ceiling.samples) if ceiling.unit == "us" else max(ceiling.samples)
            if ceiling.value != best_sample:
                yield (
                    f"{place}: ceiling {ceiling.name} is {ceiling.value:g}, but the best of its "
                    f"samples is {best_sample:g}"
                )
    loops = map_own_raw_loops(run)
    for (rank, point_id, durability, name), (place, ceiling) in ceilings.items():
        # Both loops take turns, so a ratio needs equally many samples of each.
        raw_loop = ceilings.get((rank, point_id, durability, loops.get(name, "")))
        if raw_loop is not None and len(raw_loop[1].samples) != len(ceiling.samples):
            yield (
                f"{place}: ceiling {name} has {len(ceiling.samples)} samples, its raw loop "
                f"{len(raw_loop[1].samples)}"
            )


RULES = (
    _check_received_bytes,
    _check_handovers,
    _check_swapping,
    _check_restarts,
    _check_streams_alone,
    _check_sources_alone,
    _check_ceilings,
)
