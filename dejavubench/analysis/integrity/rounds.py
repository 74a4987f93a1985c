"""Rules for iterations as a whole: their numbers, their order and their verification."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from dejavubench.analysis.facts.arm_destinations import run_destinations
from dejavubench.records import (
    ArmFailure,
    End,
    Iteration,
    IterationRecord,
    Microbatch,
    PointStart,
    RankLog,
    Restart,
    RoundRecord,
    Run,
    Verification,
)
from dejavubench.records.destination_info import NO_STREAMING

Key = tuple[str, str, int]
"""Point, arm and iteration."""

GIVEN_UP_KINDS = ("skipped", "arm-failure")
"""Kinds of records of arms that have fewer iterations than others, or none."""


def key_of(record: IterationRecord) -> Key:
    """Return point, arm and iteration of a record."""
    return record.point, record.arm, record.iteration


def describe_key(key: Key) -> str:
    """Return an iteration's name in messages."""
    return f"iteration {key[2]} of {key[0]} {key[1]}"


def log_of(run: Run, rank: int) -> RankLog | None:
    """Return the records of a rank; None if it has no file."""
    return next((log for log in run.ranks if log.rank == rank), None)


def ended_well(run: Run) -> bool:
    """Return whether rank 0 wrote its End record with status ok, and no rank's records are cut."""
    rank_0 = log_of(run, 0)
    has_ok_end = rank_0 is not None and any(end.status == "ok" for end in rank_0.records_of(End))
    return has_ok_end and run.last_place is None


def compute_expected_nbytes(run: Run) -> dict[tuple[str, str], int]:
    """Return, by point and arm, the bytes that all sources together stream in one iteration."""
    return {
        (point.id, arm.name): 0
        if arm.mode == NO_STREAMING
        else point.streamed_nbytes * point.pipeline_para_size
        for point in run.header.points
        for arm in run.header.arms
    }


def find_abandoned_arms(run: Run) -> set[tuple[str, str | None]]:
    """Return the points (arm None) and arms that were skipped or that stopped early."""
    starts = run.session.starts if run.session is not None else []
    return {(start.point, arm_name) for start in starts for arm_name in start.without} | {
        (getattr(record, "point", ""), getattr(record, "arm", None))
        for log in run.ranks
        for _, record in log.all_with_places()
        if record.kind in GIVEN_UP_KINDS
    }


def list_remote_arms(run: Run) -> set[str]:
    """Return the arms whose chunks other ranks receive."""
    destinations = run_destinations(run)
    return {
        arm.name
        for arm in run.header.arms
        if arm.mode in destinations and destinations[arm.mode].remote
    }


def list_arms_without_cache(run: Run) -> set[str]:
    """Return the arms that move no cache, so that nothing of theirs is verified."""
    destinations = run_destinations(run)
    return {
        arm.name
        for arm in run.header.arms
        if arm.mode in destinations and not destinations[arm.mode].moves_cache
    }


def _check_names(run: Run) -> Iterator[str]:
    point_ids = {point.id for point in run.header.points}
    arm_names = {arm.name for arm in run.header.arms}
    for log in run.ranks:
        for place, record in log.all_with_places():
            point_id = getattr(record, "point", None)
            arm_name = getattr(record, "arm", None)
            # Records of a rank as a whole name neither.
            if point_id not in point_ids | {None} or arm_name not in arm_names | {None}:
                yield (
                    f"{place}: a record of point {point_id}, arm {arm_name}, which run.json does "
                    "not name"
                )


def _check_duplicates(run: Run) -> Iterator[str]:
    """Check that a rank has one record of each kind per iteration, or per microbatch of it."""
    for log in run.ranks:
        known_identities: set[tuple[str, Key, int]] = set()
        for place, record in log.all_with_places():
            if isinstance(record, IterationRecord):
                identity = (
                    record.kind,
                    key_of(record),
                    record.ubatch if isinstance(record, Microbatch) else 0,
                )
                if identity in known_identities:
                    iteration_name = describe_key(key_of(record))
                    yield f"{place}: a second {record.kind} record of {iteration_name}"
                known_identities.add(identity)


def _check_rounds(run: Run) -> Iterator[str]:
    """Check that warm-ups come first, and that each later iteration is the next round."""
    warmup = run.header.warmup
    starts = _starts_of(run)
    for log in run.ranks:
        for place, record in log.all_with_places():
            if isinstance(record, RoundRecord):
                start = starts[record.point]
                # A session's iterations count on from its start with warm-ups, its rounds after.
                from_start = record.iteration - warmup - (start.iteration if start else 0)
                expected_round = (
                    from_start + (start.round if start else 0) if from_start >= 0 else None
                )
                if record.round != expected_round:
                    yield (
                        f"{place}: {describe_key(key_of(record))} has round {record.round}, after "
                        f"{warmup} warm-ups"
                    )


def _starts_of(run: Run) -> dict[str, PointStart | None]:
    """Return the session's start at each point; None where it leaves the point out."""
    return {point.id: run.start_of(point.id) for point in run.header.points}


def _list_iteration_numbers(run: Run) -> dict[str, dict[str, list[int]]]:
    """Return point → arm → numbers of its iterations, in the order of the records."""
    numbers_by_arm: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for _, iteration in run.records_of(Iteration):
        numbers_by_arm[iteration.point][iteration.arm].append(iteration.iteration)
    return numbers_by_arm


def _check_gaps(run: Run) -> Iterator[str]:
    """Check that each arm's iterations follow each other from the session's start on."""
    starts = _starts_of(run)
    for point_id, arms in _list_iteration_numbers(run).items():
        start = starts[point_id]
        if start is None:
            yield f"rank-0000.jsonl: {point_id} was measured, which its session was to leave out"
            continue
        for arm_name, found_numbers in arms.items():
            expected_numbers = range(start.iteration, start.iteration + len(found_numbers))
            # In the order of the file: a line that was moved is found like one that was lost.
            if found_numbers != list(expected_numbers):
                missing_number = next(
                    (iteration for iteration in expected_numbers if iteration not in found_numbers),
                    expected_numbers.stop,
                )
                iteration_name = describe_key((point_id, arm_name, missing_number))
                yield f"rank-0000.jsonl: the record of {iteration_name} is missing or out of order"


def _check_completeness(run: Run) -> Iterator[str]:
    """Check that all arms of a point have equally many iterations, unless the run was killed."""
    # A restarted request goes through each arm once, from its middle on: it has no rounds.
    if any(True for _ in run.records_of(Restart)) or run.header.experiment.get("resume"):
        return
    numbers_by_arm = _list_iteration_numbers(run)
    has_ended_well = ended_well(run)
    skipped_arms = find_abandoned_arms(run)
    starts = _starts_of(run)
    points = [
        point
        for point in run.header.points
        if not point.skipped and (point.id, None) not in skipped_arms and starts[point.id]
    ]
    reached_points = [point for point in points if point.id in numbers_by_arm]
    for point in points if has_ended_well else reached_points:
        iteration_counts = {
            arm.name: len(numbers_by_arm[point.id][arm.name])
            for arm in run.header.arms
            if (point.id, arm.name) not in skipped_arms
        }
        fewest_iterations, most_iterations = (
            min(iteration_counts.values(), default=0),
            max(iteration_counts.values(), default=0),
        )
        # A killed run was in the middle of a round at its last point: some arms have one iteration
        # more, and none needs to have all of them.
        is_cut_off = bool(reached_points) and point is reached_points[-1] and not has_ended_well
        is_uneven = most_iterations - fewest_iterations > is_cut_off
        start = starts[point.id]
        # With --precision the rounds of a start are the least number of rounds.
        iterations = run.header.warmup + (start.rounds if start else 0)
        has_too_few = not is_cut_off and fewest_iterations < max(iterations, 1)
        if is_uneven or has_too_few:
            counts_text = ", ".join(
                f"{count} of {arm_name}" for arm_name, count in iteration_counts.items()
            )
            yield f"rank-0000.jsonl: iterations are missing at {point.id}: it holds {counts_text}"


def _check_failed_arms(run: Run) -> Iterator[str]:
    """Check that only arms on storage fail, at most once per point, and none goes on after it."""
    destinations = run_destinations(run)
    disk_arms = {
        arm.name
        for arm in run.header.arms
        if arm.mode in destinations and destinations[arm.mode].on_storage
    }
    numbers_by_arm = _list_iteration_numbers(run)
    failed_arms = set()
    for log in run.ranks:
        for place, failure in log.with_places(ArmFailure):
            failed_arm = failure.point, failure.arm
            if failure.arm not in disk_arms:
                yield (
                    f"{place}: a storage failure of arm {failure.arm}, which does not stream to "
                    "disk"
                )
            if failed_arm in failed_arms:
                yield f"{place}: a second failure of arm {failure.arm} at {failure.point}"
            failed_arms.add(failed_arm)
            later_numbers = [
                iteration
                for iteration in numbers_by_arm[failure.point][failure.arm]
                if iteration > failure.iteration
            ]
            if later_numbers:
                iteration_name = describe_key((*failed_arm, later_numbers[0]))
                yield f"{place}: {iteration_name} was measured after the arm had failed"


def _check_orders(run: Run) -> Iterator[str]:
    """Check that no two arms have the same place in a round."""
    # A round is a permutation of the arms, so each place is taken once.
    places_taken: Counter[tuple[str, int, int]] = Counter(
        (record.point, record.iteration, record.order) for _, record in run.records_of(Iteration)
    )
    for (point_id, iteration, order), times in places_taken.items():
        if times > 1 or order >= len(run.header.arms):
            yield (
                f"rank-0000.jsonl: at {point_id}, {times} arms are number {order} in iteration "
                f"{iteration}"
            )


def _check_verifications(run: Run) -> Iterator[str]:
    """Check that verifications agree with themselves, and that none is missing if any was made."""
    rank_0 = log_of(run, 0)
    if rank_0 is None:
        return
    # A restarted request is verified as iteration 0, which has a Restart record and no Iteration.
    restarts = {(restart.point, restart.arm, 0) for _, restart in run.records_of(Restart)}
    iterations = {key_of(iteration): None for iteration in rank_0.records_of(Iteration)}
    checks_by_key = {key_of(check): check for check in rank_0.records_of(Verification)}
    nbytes_by_arm = compute_expected_nbytes(run)
    for place, check in rank_0.with_places(Verification):
        due_nbytes = nbytes_by_arm[check.point, check.arm]
        has_no_record = key_of(check) not in iterations and key_of(check) not in restarts
        # tokens_equal is None where no tokens were compared, which is no difference.
        has_difference = check.where is not None or check.tokens_equal is False
        if has_no_record:
            yield f"{place}: a verification of {describe_key(key_of(check))}, which has no record"
        if check.ok and has_difference:
            iteration_name = describe_key(key_of(check))
            yield f"{place}: the verification of {iteration_name} is ok, with a difference"
        if check.ok and check.nbytes != due_nbytes:
            yield (
                f"{place}: {check.nbytes} bytes of {describe_key(key_of(check))} were verified, "
                f"but {due_nbytes} must have arrived"
            )
    if not checks_by_key and not run.header.experiment.get("verify"):
        return
    skipped_arms = find_abandoned_arms(run)
    yardstick_arms = list_arms_without_cache(run)
    unchecked_keys = [
        key
        for key in iterations
        if key not in checks_by_key and key[:2] not in skipped_arms and key[1] not in yardstick_arms
    ]
    # An iteration is recorded before it is verified, so a kill in between leaves its record alone.
    was_killed_before_check = not rank_0.has_ended and unchecked_keys == list(iterations)[-1:]
    if unchecked_keys and not was_killed_before_check:
        yield f"rank-0000.jsonl: the verification of {describe_key(unchecked_keys[0])} is missing"


NAME_RULES = (_check_names,)
"""Rules on names alone, which the other rules take for granted."""

RULES = (
    _check_duplicates,
    _check_rounds,
    _check_gaps,
    _check_failed_arms,
    _check_completeness,
    _check_orders,
    _check_verifications,
)
