"""Refusal of runs that cannot be compared: other machines or, where it matters, other sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dejavubench.records import Run, RunEnvironment

MACHINE: dict[str, Callable[[RunEnvironment], object]] = {
    "cpu_model": lambda environment: environment.cpu_model,
    # An empty value was not recorded. None makes it unknown, and unequal to any known one.
    "cores": lambda environment: environment.cores or None,
    "gpus": lambda environment: environment.gpus or None,
}
"""Facts that make a machine; hosts of one kind may have any name."""


class NotComparableError(Exception):
    """Runs that cannot be compared; the message names the differences."""


def require_comparable(runs: Sequence[Run], sizes: Sequence[str] = ()) -> None:
    """Refuse runs of different machines, or whose points differ in any of ``sizes``.

    Raises:
        NotComparableError: naming each difference and the runs.
    """
    differences = []
    for key, read_fact in MACHINE.items():
        differences += _describe_difference(
            key, [(run, read_fact(run.header.facts)) for run in runs]
        )
    for size in sizes:
        differences += _describe_difference(size, [(run, _values_of(run, size)) for run in runs])
    refuse(differences)


def _values_of(run: Run, name: str) -> list[object]:
    points = map(run.header.with_settings, run.header.points)
    # Settings that an older record lacks are None, which has no order.
    return sorted({getattr(point, name) for point in points}, key=str)


def refuse(differences: Sequence[str]) -> None:
    """Raise NotComparableError if there is a difference."""
    if differences:
        raise NotComparableError(
            "these runs cannot be compared. They differ in " + "; ".join(differences)
        )


def _describe_difference(name: str, values: Sequence[tuple[Run, object]]) -> list[str]:
    first_value = values[0][1]
    if all(value == first_value for _, value in values):
        return []
    # A figure may be of many runs, so each value is named once.
    names_by_value: dict[str, list[str]] = {}
    for run, value in values:
        names_by_value.setdefault(format_value(value), []).append(run.path.name)
    texts = [
        f"{text} ({names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''})"
        for text, names in names_by_value.items()
    ]
    return [f"{name}: {', '.join(texts)}"]


def format_value(value: object) -> str:
    """Return a fact as text; one that was not recorded is unknown."""
    if isinstance(value, list):
        return "/".join(map(str, value))
    return "unknown" if value is None else str(value)
