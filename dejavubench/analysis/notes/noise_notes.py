"""Part of a report: noise, and what disturbed the rounds. People read all of it on one line."""

from __future__ import annotations

from collections.abc import Sequence

from dejavubench.analysis.facts.host_rounds import HostRounds
from dejavubench.analysis.notes.condition_notes import (
    DISTURBED,
    THROTTLED,
    describe_other_processes,
    note_disturbances,
)
from dejavubench.analysis.number_texts import (
    format_noise_range,
    format_signed_percent,
    format_unsigned_percent,
)
from dejavubench.analysis.numbers import stats
from dejavubench.analysis.tables.process_columns import Row
from dejavubench.analysis.tables.report_part import RunData, RunPart, make_notes_alone
from dejavubench.records import Note, NoteKind

NOISY_PCT = 5.0
"""Noise floor, in percent, above which a report warns."""

NOISY = NoteKind("noisy", "warning")
"""Kind of the note on a noise floor above :data:`NOISY_PCT`."""

NOISE_FLOOR = NoteKind("noise-floor", "info")
"""Kind of the note on any other noise floor."""

IDENTICAL_TEXT = "two identical baselines (none, none#2) differ by"


def _make_notes(run_data: RunData) -> list[Note]:
    """Return the noise floor, then the rounds that are marked."""
    floors = {row.point: row for row in run_data.rows if row.overhead.noise_floor_pct is not None}
    floor = [_note_floor(floors, run_data.hosts)] if floors else []
    return [*floor, *note_disturbances(run_data.session_hosts)]


def _note_floor(floors: dict[str | None, Row], hosts: Sequence[HostRounds]) -> Note:
    """Return the noise at the noisiest point; as a warning where it hides common overheads.

    Args:
        hosts: conditions of the hosts over all sessions; empty for older records.
    """
    worst_id = max(floors, key=lambda point_id: _reach_of(floors[point_id]))
    text = f"{IDENTICAL_TEXT} {_format_range(floors[worst_id])}"
    other_points = [str(point_id) for point_id in floors if point_id != worst_id]
    if other_points:
        others_text = (
            other_points[0] if len(other_points) == 1 else f"the other {len(other_points)} points"
        )
        text += f" at {worst_id}, by less at {others_text}"
    if _reach_of(floors[worst_id]) <= NOISY_PCT:
        return NOISE_FLOOR.note(text)
    reach = format_unsigned_percent(_reach_of(floors[worst_id]))
    hidden_text = f"overheads below {reach} % cannot be told from noise"
    # Another point may have been measured in another session, beside other programs.
    hosts_at_point = [host.select_point(worst_id) for host in hosts if worst_id is not None]
    return NOISY.note(f"{text}; {hidden_text}{_describe_cause(hosts_at_point, other_points)}")


def _describe_cause(hosts: list[HostRounds], other_points: Sequence[str]) -> str:
    """Describe what can have made two equal arms differ, unless the line goes on to say it."""
    disturbance_notes = note_disturbances(hosts)
    if disturbance_notes and not other_points:
        return ""
    prefix = "there " if other_points else ""
    if disturbance_notes:
        # The rounds follow, with those of all points.
        return f" ({prefix}{disturbance_notes[0].text.rpartition(' in ')[0]})"
    calm_text = describe_other_processes(hosts)
    if calm_text is None:
        return " (look whether another program is running)"
    return f" ({prefix}{calm_text}, so look for another cause)"


def _reach_of(row: Row) -> float:
    """Return the farther end of a noise floor: that is how far equal arms were apart."""
    floor = row.overhead
    floor_values = (floor.noise_floor_pct, floor.noise_floor_low_pct, floor.noise_floor_high_pct)
    # With a single round there is a median, but no interval.
    return max(abs(value) for value in floor_values if value is not None)


def _format_range(row: Row) -> str:
    """Return ``−1.20 to +2.00 %``, the interval of the noise floor, as the table shows it."""
    floor = row.overhead
    floor_pct = floor.noise_floor_pct
    low, high = floor.noise_floor_low_pct, floor.noise_floor_high_pct
    if low is None or high is None:
        assert floor_pct is not None
        return f"{format_signed_percent(floor_pct)} % in a single round"
    samples = row.times.samples or 0
    few_text = f" over only {samples} rounds" if samples < stats.COVERING_ROUND_COUNT else ""
    return f"{format_noise_range(low, high)} %{few_text}"


NOISE = RunPart(
    "noise",
    "the noise floor, and rounds in which others took time or a limit held a GPU's clock down",
    make_notes_alone(_make_notes),
    (NOISY, NOISE_FLOOR, DISTURBED, THROTTLED),
    first_word="noise",
)
