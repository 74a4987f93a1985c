"""The conditions of the hosts while a run measured: a part of a report, and its marked rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from statistics import median
from typing import NamedTuple

from dejavubench.analysis.facts.host_rounds import HostRound, HostRounds, format_round_numbers
from dejavubench.analysis.tables.host_columns import find_median_of_known
from dejavubench.analysis.tables.report_part import RunPart, make_notes_alone
from dejavubench.records import Note, NoteKind
from dejavubench.records.conditions import Window
from dejavubench.units import format_count_of

DISTURBED = NoteKind("disturbed", "warning")
"""Kind of the notes on rounds in which other programs or the hypervisor took CPU time."""

THROTTLED = NoteKind("throttled", "warning")
"""Kind of the notes on rounds in which a limit held a GPU's clock down."""

CONDITIONS = NoteKind("conditions", "info")
"""Kind of the note on a host's conditions in the median round."""

UNREADABLE = NoteKind("conditions-unreadable", "info")
"""Kind of the note on conditions that could not be read, with the reasons."""

MARKED_TEXT = "which are marked and still count"
"""End of the last note on marked rounds, for all of them."""

LONGEST_NUMBERS = 60
"""Characters of the numbers of rounds that a note names; longer lists are left out."""


class _Finding(NamedTuple):
    """A sentence on one host."""

    kind: NoteKind
    text: str


def note_disturbances(hosts: list[HostRounds]) -> list[Note]:
    """Return the causes of marked rounds. If there are several hosts, each note names its own.

    The last one says what marks mean, for all of them.
    """
    notes = _make_host_notes(hosts, _find_disturbances)
    return [
        *notes[:-1],
        *(replace(note, text=f"{note.text}, {MARKED_TEXT}") for note in notes[-1:]),
    ]


def describe_other_processes(hosts: list[HostRounds]) -> str | None:
    """Describe how little other processes took; None if the run has recorded nothing of it."""
    busiest_rounds = [
        (max(cores), host) for host in hosts if (cores := _list_cores_of_others(host))
    ]
    if not busiest_rounds:
        return None
    # The busiest host in its busiest round, to tell a reader that nobody else is to blame.
    most_cores, host = max(busiest_rounds, key=lambda cores_and_host: cores_and_host[0])
    return f"other processes took at most {most_cores:.2f} of {_format_cores(host)} in any round"


def _make_host_notes(
    hosts: list[HostRounds], find: Callable[[HostRounds], Iterable[_Finding]]
) -> list[Note]:
    return [
        kind.note(f"{host.name}: {text}" if len(hosts) > 1 else text)
        for host in hosts
        for kind, text in find(host)
    ]


def _find_disturbances(host: HostRounds) -> Iterable[_Finding]:
    """Yield the findings that qualify the numbers measured on one host."""
    others_text = _describe_others(host)
    if others_text is not None:
        yield _Finding(DISTURBED, others_text)
    stolen_rounds = _choose_rounds(host, lambda host_round: host_round.is_disturbed_by_hypervisor)
    if stolen_rounds:
        cores_taken = median(
            host_round.steal_core_count or 0.0 for host_round in stolen_rounds.values()
        )
        yield _Finding(
            DISTURBED,
            f"the hypervisor took {cores_taken:.2g} of {_format_cores(host)} in "
            f"{_format_rounds(host, stolen_rounds)}",
        )
    limits = Counter(name for host_round in host.rounds.values() for name in host_round.limits)
    if limits:
        throttled_rounds = _choose_rounds(host, lambda host_round: host_round.limits)
        limit_texts = ", ".join(f"{name} in {count}" for name, count in limits.items())
        yield _Finding(
            THROTTLED,
            f"limits ({limit_texts}) held a GPU's clock down in "
            f"{_format_rounds(host, throttled_rounds)}",
        )


def _describe_conditions(host: HostRounds) -> Iterable[_Finding]:
    if texts := [*_describe_cpus(host), *_describe_gpus(host)]:
        yield _Finding(CONDITIONS, "; ".join(texts))


def _describe_others(host: HostRounds) -> str | None:
    disturbed_rounds = _choose_rounds(host, lambda host_round: host_round.is_disturbed_by_others)
    if not disturbed_rounds:
        return None
    cores_taken = median(
        host_round.other_core_count or 0.0 for host_round in disturbed_rounds.values()
    )
    return (
        f"other processes took {cores_taken:.2g} of {_format_cores(host)} in "
        f"{_format_rounds(host, disturbed_rounds)}"
    )


def _list_cores_of_others(host: HostRounds) -> list[float]:
    return [
        core_count
        for host_round in host.rounds.values()
        if (core_count := host_round.other_core_count) is not None
    ]


def _describe_cpus(host: HostRounds) -> Iterable[str]:
    """Yield words on a host's processors in the median round; what was not recorded is left out."""
    rounds = host.rounds.values()
    windows = [window for host_round in rounds for window in host_round.windows]
    if other_cores := _list_cores_of_others(host):
        yield (
            f"other processes took {median(other_cores):.2f} of {_format_cores(host)} (at most "
            f"{max(other_cores):.2f})"
        )
    steal = find_median_of_known(host_round.steal_core_count for host_round in rounds)
    if steal:
        yield f"the hypervisor {steal:.2f}"
    cpu_wait = find_median_of_known(
        host_round.per_second(lambda window: window.cpu_wait_s) for host_round in rounds
    )
    if cpu_wait is not None:
        yield f"some thread waited for a core {100 * min(1.0, cpu_wait):.0f} % of the time"
    load = find_median_of_known(window.load for window in windows)
    mhz = find_median_of_known(window.cpu_mhz for window in windows)
    if load is not None:
        yield f"load {load:.2f}"
    if mhz is not None:
        yield f"{mhz:.0f} MHz"


def _describe_gpus(host: HostRounds) -> Iterable[str]:
    """Yield words on each GPU in the median iteration; what was not recorded is left out."""
    windows = [window for host_round in host.rounds.values() for window in host_round.windows]
    # A busy and an idle GPU have little in common, so each has words of its own.
    identifiers = dict.fromkeys(identifier for window in windows for identifier in window.gpus)
    for gpu_index, identifier in enumerate(identifiers):
        gpu_windows = [window for window in windows if identifier in window.gpus]
        gpus = [window.gpus[identifier] for window in gpu_windows]
        readings = [
            ("{:.0f} MHz after the iteration", find_median_of_known(gpu.clock_mhz for gpu in gpus)),
            ("{:.0f} W", find_median_of_known(gpu.power_w for gpu in gpus)),
            ("{:.0f} °C", find_median_of_known(gpu.temperature_c for gpu in gpus)),
            ("clock limited {:.0f} % of the time", _find_limited_pct(gpu_windows, identifier)),
        ]
        if texts := [text.format(value) for text, value in readings if value is not None]:
            yield f"GPU {gpu_index}: {', '.join(texts)}"


def _find_limited_pct(windows: list[Window], identifier: str) -> float | None:
    """Return the percentage of the time in which one limit, the longest, held a GPU's clock."""
    seconds: Counter[str] = Counter()
    wall_s = 0.0
    for window in windows:
        if (limited_s := window.gpus[identifier].limited_s) is not None:
            seconds.update(limited_s)
            wall_s += window.wall_s
    # Limits can hold at the same time, so their sum would be too long.
    return 100 * min(1.0, max(seconds.values(), default=0.0) / wall_s) if wall_s else None


def _choose_rounds(
    host: HostRounds, is_marked: Callable[[HostRound], object]
) -> dict[tuple[str, int], HostRound]:
    return {key: host_round for key, host_round in host.rounds.items() if is_marked(host_round)}


def _format_rounds(host: HostRounds, marked_rounds: dict[tuple[str, int], HostRound]) -> str:
    """Return ``7 of 10 rounds (1–5, 9, 10)``; with several points, the numbers of each point."""
    round_count = len(host.rounds)
    points = dict.fromkeys(point_id for point_id, _ in host.rounds)
    text_by_point = {
        point_id: format_round_numbers(
            [round_number for marked_id, round_number in marked_rounds if marked_id == point_id]
        )
        for point_id in points
    }
    texts = [
        f"{point_id} {text}" if len(points) > 1 else text
        for point_id, text in text_by_point.items()
        if text
    ]
    marked_text = "; ".join(texts)
    # All rounds need no numbers; a long list would bury the sentence.
    suffix = (
        f" ({marked_text})"
        if len(marked_rounds) < round_count and len(marked_text) <= LONGEST_NUMBERS
        else ""
    )
    return f"{len(marked_rounds)} of {format_count_of(round_count, 'round')}{suffix}"


def _format_cores(host: HostRounds) -> str:
    return format_count_of(host.core_count, "core")


def _note_conditions(hosts: list[HostRounds]) -> list[Note]:
    notes = _make_host_notes(hosts, _describe_conditions)
    return [
        *(CONDITIONS.note(f"conditions, median round: {note.text}") for note in notes),
        *_note_unreadable(hosts),
    ]


def _note_unreadable(hosts: list[HostRounds]) -> list[Note]:
    reasons: dict[str, None] = {}
    for host in hosts:
        for unreadable_reasons in (
            host.log.host.unreadable,
            *(window.unreadable for window in host.log.windows),
        ):
            reasons |= {
                f"{condition}: {reason}": None for condition, reason in unreadable_reasons.items()
            }
    text = f"conditions not readable: {'; '.join(reasons)}"
    return [UNREADABLE.note(text)] if reasons else []


# ---- the part ----

HOST_CONDITIONS = RunPart(
    "conditions",
    "conditions of the hosts",
    make_notes_alone(lambda run_data: _note_conditions(run_data.session_hosts)),
    (CONDITIONS, UNREADABLE),
    is_long=True,
)
