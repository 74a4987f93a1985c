"""Rules for the microbatches of an iteration: their number, and sums of times and bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from dejavubench.analysis.integrity.rank_files import RankPlaces
from dejavubench.analysis.integrity.rounds import (
    Key,
    describe_key,
    ended_well,
    expected_nbytes,
    given_up,
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

LONGER, PAUSE_MS = 1.5, 100.0
"""A time may exceed the sum of its parts by this factor and this much more before it is noted."""

MicrobatchKey = tuple[int, str, str, int]
"""Rank, point, arm and number of a microbatch in flight."""


def _by_iteration(run: Run) -> dict[Key, dict[int, list[Microbatch]]]:
    microbatches: dict[Key, dict[int, list[Microbatch]]] = defaultdict(lambda: defaultdict(list))
    for rank, item in run.records_of(Microbatch):
        microbatches[key_of(item)][rank].append(item)
    return microbatches


def _sources(run: Run) -> list[RankLog]:
    """Return the files of the sources; a killed run lacks those of its other hosts."""
    sources = RankPlaces.of_run(run).sources
    return [log for log in run.ranks if log.rank < sources and log.records]


def _in_flight(run: Run) -> int:
    return run.header.points[0].pipeline_para_size


def _may_lack(log: RankLog, key: Key, last: Key) -> bool:
    """Return whether a killed rank may lack its records of an iteration: only of the last one."""
    return not log.ended and key == last


def _check_missing(run: Run) -> Iterator[str]:
    microbatches, wanted = _by_iteration(run), list(range(_in_flight(run)))
    iterations = [key_of(item) for _, item in run.records_of(Iteration)]
    for key in iterations:
        for log in _sources(run):
            # A pipeline of depth d has d microbatches in flight, numbered 0 … d − 1 on every
            # source.
            numbers = sorted(item.ubatch for item in microbatches[key][log.rank])
            if numbers != wanted and not _may_lack(log, key, iterations[-1]):
                yield (
                    f"{log.path.name}: {describe_key(key)} has {_plural(len(numbers))} {numbers}, "
                    f"but {len(wanted)} must be in flight"
                )


def _plural(count: int) -> str:
    return f"{count} microbatch{'' if count == 1 else 'es'}"


def _check_unfinished(run: Run) -> Iterator[str]:
    """Allow microbatches without an iteration only of killed runs and skipped arms."""
    iterations, skipped = {key_of(item) for _, item in run.records_of(Iteration)}, given_up(run)
    # A run that still goes on is read rank by rank, the later ranks a little later.
    ended = ended_well(run)
    unfinished = {
        key_of(item): None
        for rank, item in run.records_of(Microbatch)
        if key_of(item) not in iterations
        and (ended or rank == 0)
        and (item.point, item.arm) not in skipped
    }
    # A killed run may hold one iteration that had no time to be completed.
    for key in list(unfinished)[0 if ended else 1 :]:
        which = describe_key(key)
        yield f"rank-0000.jsonl: microbatches of {which} exist, but its record is missing"


def _check_sums(run: Run) -> Iterator[str]:
    points = {point.id: point for point in run.header.points}
    for log in run.ranks:
        for where, item in log.with_places(Microbatch):
            yield from (f"{where}: {what}" for what in _check_bounds(item, points[item.point]))


def _check_bounds(item: Microbatch, point: PointInfo) -> Iterator[str]:
    steps = (point.handed_over or point.output_len) - 1
    if len(item.token_ms) != steps:
        yield _count("token_ms", item.token_ms, steps)
    if len(item.token_event_ms) not in (0, steps):
        yield _count("token_event_ms", item.token_event_ms, steps)
    parts_ms = item.prompt_ms + item.all_token_ms + item.drain_ms
    if abs(item.total_ms - parts_ms) > TOLERANCE * parts_ms:
        yield (
            f"total_ms is {item.total_ms:g}, but prompt_ms, all_token_ms and drain_ms together are "
            f"{parts_ms:g}"
        )
    # Steps may leave gaps, never overlap: clocks of one microbatch follow each other.
    if sum(item.token_ms) > item.all_token_ms * (1 + TOLERANCE) + TOLERANCE:
        yield (
            f"all_token_ms is {item.all_token_ms:g}, but the steps in token_ms together are "
            f"{sum(item.token_ms):g}"
        )
    if not steps and item.all_token_ms:
        yield f"all_token_ms is {item.all_token_ms:g}, but a request of one new token has no step"


def _count(name: str, times: list[float], steps: int) -> str:
    return f"{name} has {len(times)} times, but a request of {steps + 1} new tokens has {steps}"


def _check_events(run: Run) -> Iterator[str]:
    """Check times between CUDA events: all microbatches of a GPU or none have them."""
    for log in run.ranks:
        items = list(log.with_places(Microbatch))
        timed = [item.prompt_event_ms is not None for _, item in items]
        # Only a device has events; a CPU's record with some was altered.
        on_cpu = any(info.device is None for info in log.records_of(RankInfo))
        if any(timed) and (on_cpu or not all(timed)):
            yield (
                f"{log.path.name}: {sum(timed)} of {len(timed)} microbatches have times of CUDA "
                "events"
            )
        for where, item in items:
            if bool(item.token_event_ms) != bool(
                item.token_ms and item.prompt_event_ms is not None
            ):
                yield f"{where}: CUDA events timed only the prompt, or only the steps"


def _check_bytes(run: Run) -> Iterator[str]:
    """Check that all sources together streamed the whole cache of an iteration."""
    layout, in_flight = RankPlaces.of_run(run), _in_flight(run)
    points = {point.id: point for point in run.header.points}
    nbytes = expected_nbytes(run)
    for key, ranks in _by_iteration(run).items():
        items = [item for each in ranks.values() for item in each]
        # Incomplete iterations are another rule's business, or a killed run's.
        if len(items) != layout.sources * in_flight:
            continue
        streamed = sum(
            phase.nbytes for item in items for phase in (item.prompt, item.tokens, item.drain)
        )
        expected = nbytes[key[0], key[1]]
        if streamed != expected:
            yield f"{describe_key(key)} streamed {streamed} bytes, but its cache has {expected}"
        lag = max(
            phase.lag_nbytes for item in items for phase in (item.prompt, item.tokens, item.drain)
        )
        if lag > (points[key[0]].streamed_nbytes * in_flight if expected else 0):
            yield f"{describe_key(key)} has a lag of {lag} bytes, but its cache has {expected}"


def _check_totals(run: Run) -> Iterator[str]:
    """Check that TOTAL is the slowest source's or, with several microbatches, no less."""
    microbatches, layout, in_flight = _by_iteration(run), RankPlaces.of_run(run), _in_flight(run)
    for log in run.ranks:
        for where, item in log.with_places(Iteration):
            ranks = microbatches[key_of(item)]
            totals = [each.total_ms for items in ranks.values() for each in items]
            if len(totals) != layout.sources * in_flight:
                continue
            # With several in flight TOTAL is a makespan: no less than any microbatch, but of
            # unknown length.
            slowest = max(totals)
            if item.total_ms < slowest * (1 - TOLERANCE) or (
                in_flight == 1 and item.total_ms > slowest * (1 + TOLERANCE)
            ):
                yield (
                    f"{where}: total_ms is {item.total_ms:g}, but its microbatches give {slowest:g}"
                )


def _note_changed_copies(run: Run) -> Iterator[Note]:
    """Note a number of copies that differs between iterations of one arm."""
    known: dict[MicrobatchKey, tuple[int, int, int]] = {}
    for log in run.ranks:
        for where, item in log.with_places(Microbatch):
            place = log.rank, item.point, item.arm, item.ubatch
            copies = item.prompt.copies, item.tokens.copies, item.drain.copies
            if known.setdefault(place, copies) != copies:
                yield CHANGED.note(
                    f"CHANGED: {where}: {describe_key(key_of(item))} was streamed in {sum(copies)} "
                    f"copies, but an earlier one in {sum(known[place])}"
                )


def _note_long_times(run: Run) -> Iterator[Note]:
    """Note times far longer than their parts: a busy machine stops a rank only for a moment."""
    microbatches = _by_iteration(run)
    for log in run.ranks:
        for where, item in log.with_places(Microbatch):
            pairs = [
                (item.tokens.stall_ms, item.all_token_ms, "stall"),
                (item.drain.stall_ms, item.drain_ms, "stall"),
            ]
            pairs += [(sum(item.token_event_ms), item.all_token_ms, "time between CUDA events")]
            if _in_flight(run) == 1:
                pairs.append((item.all_token_ms, sum(item.token_ms), "ALL-TOKEN"))
            yield from (
                LONG_TIME.note(f"{where}: {words}")
                for long, short, what in pairs
                for words in _longer(long, short, what)
            )
        for where, iteration in log.with_places(Iteration):
            totals = sum(
                item.total_ms
                for items in microbatches[key_of(iteration)].values()
                for item in items
            )
            yield from (
                LONG_TIME.note(f"{where}: {words}")
                for words in _longer(iteration.total_ms, totals, "TOTAL")
                if totals
            )


def _longer(long_ms: float, short_ms: float, what: str) -> Iterator[str]:
    if long_ms > LONGER * short_ms + PAUSE_MS:
        yield f"{what} of {long_ms:g} ms, but at most {short_ms:g} ms were expected"


RULES = (_check_missing, _check_unfinished, _check_sums, _check_events, _check_bytes, _check_totals)
NOTED = (_note_changed_copies, _note_long_times)
