"""Comparison of rank 0's records with the text logs, for runs whose files have no digest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import zip_longest

from dejavubench.analysis.integrity.rounds import (
    Key,
    ended_well,
    find_abandoned_arms,
    key_of,
    log_of,
)
from dejavubench.records import (
    End,
    Iteration,
    Microbatch,
    Note,
    RankLog,
    Run,
    format_all_token_line,
    format_prompt_line,
    format_token_line,
    format_total_line,
    name_text_log_file,
)
from dejavubench.records.notes import CHANGED

ANY_LINE = ""
"""Placeholder for a line that the records do not determine."""


def _note_other_times(run: Run) -> Iterator[Note]:
    """Note a text log that differs from the records; a killed run may lack its last iteration."""
    rank_0 = log_of(run, 0)
    if rank_0 is None or any(end.digest is not None for end in rank_0.records_of(End)):
        return
    # An iteration whose check failed has no lines.
    has_ended_well = ended_well(run)
    given_up_arms = find_abandoned_arms(run)
    for (point_id, arm_name), expected_lines in _make_lines(rank_0).items():
        path = run.path / name_text_log_file(
            point_id, arm_name, len(run.header.points) > 1, run.number
        )
        if not path.is_file():
            continue
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for line_number, (line, expected_line) in enumerate(
            zip_longest(lines, expected_lines), start=1
        ):
            if expected_line is None and run.last_place is not None:
                break  # a cut leaves out records that do not count; their lines stay in the log
            is_missing = line is None or (
                line_number == len(lines)
                and expected_line is not None
                and expected_line.startswith(line)
            )
            if (
                line != expected_line
                and expected_line != ANY_LINE
                and not (
                    is_missing and (not has_ended_well or (point_id, arm_name) in given_up_arms)
                )
            ):
                yield CHANGED.note(
                    f"CHANGED: {rank_0.path.name} and {path.name}, line {line_number}, have "
                    f"different times of {point_id} {arm_name}"
                )
                break


def _make_lines(log: RankLog) -> dict[tuple[str, str], list[str]]:
    """Return the lines of each point and arm."""
    microbatches_by_iteration: dict[Key, list[Microbatch]] = defaultdict(list)
    for microbatch in log.records_of(Microbatch):
        microbatches_by_iteration[key_of(microbatch)].append(microbatch)
    lines_by_arm: dict[tuple[str, str], list[str]] = defaultdict(list)
    for iteration in log.records_of(Iteration):
        lines = lines_by_arm[iteration.point, iteration.arm]
        microbatches = microbatches_by_iteration[key_of(iteration)]
        for microbatch in microbatches:
            microbatch_number = microbatch.iteration * len(microbatches) + microbatch.ubatch
            lines.append(format_prompt_line(log.rank, microbatch_number, microbatch.prompt_ms))
            lines += [
                format_token_line(log.rank, microbatch_number, ms) for ms in microbatch.token_ms
            ]
            lines.append(
                format_all_token_line(log.rank, microbatch_number, microbatch.all_token_ms)
            )
        if microbatches:
            lines.append(_make_total_line(log.rank, iteration, microbatches))
    return lines_by_arm


def _make_total_line(rank: int, iteration: Iteration, microbatches: list[Microbatch]) -> str:
    """Return the TOTAL line; that of several microbatches is a makespan that no record has."""
    if len(microbatches) > 1:
        return ANY_LINE
    return format_total_line(rank, iteration.iteration, microbatches[0].total_ms)


NOTING_RULES = (_note_other_times,)
