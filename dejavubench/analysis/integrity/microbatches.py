"""Rules for the microbatches of an iteration: their number, and sums of times and bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from dejavubench.analysis.integrity.rank_files import RankPlaces
from dejavubench.analysis.integrity.rounds import (
    Key,
    compute_expected_nbytes,
    describe_key,
    ended_well,
    find_abandoned_arms,
    key_of,
)
from dejavubench.records import (
    Iteration,
    Microbatch,
    Note,
    NoteKind,
    PointInfo,
    RankInfo,
    RankLog,
    Run,
)
from dejavubench.records.notes import CHANGED

LONG_TIME = NoteKind("long-time", "warning")
"""Kind of the notes on a time that is far longer than its parts."""

TOLERANCE = 1e-6
"""Largest relative difference of sums that should be equal."""

LARGEST_RATIO = 1.5
"""Factor by which a time may exceed the sum of its parts, beside :data:`LONGEST_PAUSE_MS`."""

LONGEST_PAUSE_MS = 100.0
"""Pause in ms beside the parts of a time that is not noted: a busy machine stops a rank so long."""

MicrobatchKey = tuple[int, str, str, int]
"""Rank, point, arm and number of a microbatch in flight."""


def _group_by_iteration(run: Run) -> dict[Key, dict[int, list[Microbatch]]]:
    microbatches: dict[Key, dict[int, list[Microbatch]]] = defaultdict(lambda: defaultdict(list))
    for rank, microbatch in run.records_of(Microbatch):
        microbatches[key_of(microbatch)][rank].append(microbatch)
    return microbatches


def _list_source_logs(run: Run) -> list[RankLog]:
    """Return the files of the sources; a killed run lacks those of its other hosts."""
    source_count = RankPlaces.of_run(run).source_count
    return [log for log in run.ranks if log.rank < source_count and log.records]


def _count_in_flight(run: Run) -> int:
    return run.header.points[0].pipeline_para_size


def _may_lack(log: RankLog, key: Key, last_key: Key) -> bool:
    """Return whether a killed rank may lack its records of an iteration: only of the last one."""
    return not log.has_ended and key == last_key


def _check_missing(run: Run) -> Iterator[str]:
    """Check that every source has all microbatches of each iteration that rank 0 recorded."""
    microbatches = _group_by_iteration(run)
    expected_numbers = list(range(_count_in_flight(run)))
    iterations = [key_of(iteration) for _, iteration in run.records_of(Iteration)]
    for key in iterations:
        for log in _list_source_logs(run):
            # A pipeline of depth d has d microbatches in flight, numbered 0 … d − 1 on every
            # source.
            microbatch_numbers = sorted(
                microbatch.ubatch for microbatch in microbatches[key][log.rank]
            )
            if microbatch_numbers != expected_numbers and not _may_lack(log, key, iterations[-1]):
                yield (
                    f"{log.path.name}: {describe_key(key)} has "
                    f"{_format_count(len(microbatch_numbers))} {microbatch_numbers}, but "
                    f"{len(expected_numbers)} must be in flight"
                )


def _format_count(count: int) -> str:
    return f"{count} microbatch{'' if count == 1 else 'es'}"


def _check_unfinished(run: Run) -> Iterator[str]:
    """Allow microbatches without an iteration only of killed runs and skipped arms."""
    iterations = {key_of(iteration) for _, iteration in run.records_of(Iteration)}
    given_up_arms = find_abandoned_arms(run)
    # A run that still goes on is read rank by rank, the later ranks a little later.
    has_ended_well = ended_well(run)
    unfinished_keys = {
        key_of(microbatch): None
        for rank, microbatch in run.records_of(Microbatch)
        if key_of(microbatch) not in iterations
        and (has_ended_well or rank == 0)
        and (microbatch.point, microbatch.arm) not in given_up_arms
    }
    # A killed run may hold one iteration that had no time to be completed.
    for key in list(unfinished_keys)[0 if has_ended_well else 1 :]:
        iteration_name = describe_key(key)
        yield f"rank-0000.jsonl: microbatches of {iteration_name} exist, but its record is missing"


def _check_sums(run: Run) -> Iterator[str]:
    points = {point.id: point for point in run.header.points}
    for log in run.ranks:
        for place, microbatch in log.with_places(Microbatch):
            yield from (
                f"{place}: {finding}"
                for finding in _check_bounds(microbatch, points[microbatch.point])
            )


def _check_bounds(microbatch: Microbatch, point: PointInfo) -> Iterator[str]:
    """Check one microbatch: a time per step, and parts that sum to its whole."""
    step_count = (point.handed_over or point.output_len) - 1
    if len(microbatch.token_ms) != step_count:
        yield _describe_count("token_ms", microbatch.token_ms, step_count)
    if len(microbatch.token_event_ms) not in (0, step_count):
        yield _describe_count("token_event_ms", microbatch.token_event_ms, step_count)
    parts_ms = microbatch.prompt_ms + microbatch.all_token_ms + microbatch.drain_ms
    if abs(microbatch.total_ms - parts_ms) > TOLERANCE * parts_ms:
        yield (
            f"total_ms is {microbatch.total_ms:g}, but prompt_ms, all_token_ms and drain_ms "
            f"together are {parts_ms:g}"
        )
    # Steps may leave gaps, never overlap: clocks of one microbatch follow each other.
    if sum(microbatch.token_ms) > microbatch.all_token_ms * (1 + TOLERANCE) + TOLERANCE:
        yield (
            f"all_token_ms is {microbatch.all_token_ms:g}, but the steps in token_ms together are "
            f"{sum(microbatch.token_ms):g}"
        )
    if not step_count and microbatch.all_token_ms:
        yield (
            f"all_token_ms is {microbatch.all_token_ms:g}, but a request of one new token has no "
            "step"
        )


def _describe_count(name: str, times: list[float], step_count: int) -> str:
    token_count = step_count + 1
    return (
        f"{name} has {len(times)} times, but a request of {token_count} new tokens has {step_count}"
    )


def _check_events(run: Run) -> Iterator[str]:
    """Check times between CUDA events: all microbatches of a GPU or none have them."""
    for log in run.ranks:
        microbatches = list(log.with_places(Microbatch))
        have_events = [microbatch.prompt_event_ms is not None for _, microbatch in microbatches]
        # Only a device has events; a CPU's record with some was altered.
        on_cpu = any(info.device is None for info in log.records_of(RankInfo))
        if any(have_events) and (on_cpu or not all(have_events)):
            yield (
                f"{log.path.name}: {sum(have_events)} of {len(have_events)} microbatches have "
                "times of CUDA events"
            )
        for place, microbatch in microbatches:
            if bool(microbatch.token_event_ms) != bool(
                microbatch.token_ms and microbatch.prompt_event_ms is not None
            ):
                yield f"{place}: CUDA events timed only the prompt, or only the steps"


def _check_bytes(run: Run) -> Iterator[str]:
    """Check that all sources together streamed the whole cache of an iteration."""
    rank_places = RankPlaces.of_run(run)
    in_flight = _count_in_flight(run)
    points = {point.id: point for point in run.header.points}
    nbytes_by_arm = compute_expected_nbytes(run)
    for key, microbatches_by_rank in _group_by_iteration(run).items():
        microbatches = [
            microbatch
            for rank_microbatches in microbatches_by_rank.values()
            for microbatch in rank_microbatches
        ]
        # Incomplete iterations are another rule's business, or a killed run's.
        if len(microbatches) != rank_places.source_count * in_flight:
            continue
        streamed_nbytes = sum(
            phase.nbytes
            for microbatch in microbatches
            for phase in (microbatch.prompt, microbatch.tokens, microbatch.drain)
        )
        cache_nbytes = nbytes_by_arm[key[0], key[1]]
        if streamed_nbytes != cache_nbytes:
            yield (
                f"{describe_key(key)} streamed {streamed_nbytes} bytes, but its cache has "
                f"{cache_nbytes}"
            )
        lag_nbytes = max(
            phase.lag_nbytes
            for microbatch in microbatches
            for phase in (microbatch.prompt, microbatch.tokens, microbatch.drain)
        )
        if lag_nbytes > (points[key[0]].streamed_nbytes * in_flight if cache_nbytes else 0):
            yield (
                f"{describe_key(key)} has a lag of {lag_nbytes} bytes, but its cache has "
                f"{cache_nbytes}"
            )


def _check_totals(run: Run) -> Iterator[str]:
    """Check that TOTAL is the slowest source's or, with several microbatches, no less."""
    microbatches = _group_by_iteration(run)
    rank_places = RankPlaces.of_run(run)
    in_flight = _count_in_flight(run)
    for log in run.ranks:
        for place, iteration in log.with_places(Iteration):
            microbatches_by_rank = microbatches[key_of(iteration)]
            totals_ms = [
                microbatch.total_ms
                for rank_microbatches in microbatches_by_rank.values()
                for microbatch in rank_microbatches
            ]
            if len(totals_ms) != rank_places.source_count * in_flight:
                continue
            # With several in flight TOTAL is a makespan: no less than any microbatch, but of
            # unknown length.
            slowest_ms = max(totals_ms)
            if iteration.total_ms < slowest_ms * (1 - TOLERANCE) or (
                in_flight == 1 and iteration.total_ms > slowest_ms * (1 + TOLERANCE)
            ):
                yield (
                    f"{place}: total_ms is {iteration.total_ms:g}, but its microbatches give "
                    f"{slowest_ms:g}"
                )


def _note_changed_copies(run: Run) -> Iterator[Note]:
    """Note a number of copies that differs between iterations of one arm."""
    first_copies: dict[MicrobatchKey, tuple[int, int, int]] = {}
    for log in run.ranks:
        for place, microbatch in log.with_places(Microbatch):
            identity = log.rank, microbatch.point, microbatch.arm, microbatch.ubatch
            copies = microbatch.prompt.copies, microbatch.tokens.copies, microbatch.drain.copies
            if first_copies.setdefault(identity, copies) != copies:
                yield CHANGED.note(
                    f"CHANGED: {place}: {describe_key(key_of(microbatch))} was streamed in "
                    f"{sum(copies)} copies, but an earlier one in {sum(first_copies[identity])}"
                )


def _note_long_times(run: Run) -> Iterator[Note]:
    """Note times far longer than their parts: a busy machine stops a rank only for a moment."""
    microbatches = _group_by_iteration(run)
    for log in run.ranks:
        for place, microbatch in log.with_places(Microbatch):
            times_and_bounds = [
                (microbatch.tokens.stall_ms, microbatch.all_token_ms, "stall"),
                (microbatch.drain.stall_ms, microbatch.drain_ms, "stall"),
            ]
            events_ms = sum(microbatch.token_event_ms)
            times_and_bounds.append(
                (events_ms, microbatch.all_token_ms, "time between CUDA events")
            )
            if _count_in_flight(run) == 1:
                times_and_bounds.append(
                    (microbatch.all_token_ms, sum(microbatch.token_ms), "ALL-TOKEN")
                )
            yield from (
                LONG_TIME.note(f"{place}: {text}")
                for long_ms, short_ms, noun in times_and_bounds
                for text in _describe_excess(long_ms, short_ms, noun)
            )
        for place, iteration in log.with_places(Iteration):
            summed_ms = sum(
                microbatch.total_ms
                for rank_microbatches in microbatches[key_of(iteration)].values()
                for microbatch in rank_microbatches
            )
            yield from (
                LONG_TIME.note(f"{place}: {text}")
                for text in _describe_excess(iteration.total_ms, summed_ms, "TOTAL")
                if summed_ms
            )


def _describe_excess(long_ms: float, short_ms: float, noun: str) -> Iterator[str]:
    if long_ms > LARGEST_RATIO * short_ms + LONGEST_PAUSE_MS:
        yield f"{noun} of {long_ms:g} ms, but at most {short_ms:g} ms were expected"


RULES = (_check_missing, _check_unfinished, _check_sums, _check_events, _check_bytes, _check_totals)
NOTING_RULES = (_note_changed_copies, _note_long_times)
