"""Whether runs may stand in one comparison: the same machine and, where it matters, the same model and sizes."""

from __future__ import annotations

from collections.abc import Sequence

from dejavubench.records import Run

MACHINE = ("cpu_model", "cores", "gpus")
"""Keys of the environment that make a machine; hosts of one kind may have any name."""


class NotComparableError(Exception):
    """Runs that were to be put in one comparison differ; the message says in what."""


def require_comparable(runs: Sequence[Run], sizes: Sequence[str] = ()) -> None:
    """Refuse runs of different machines, or whose points differ in any of ``sizes``.

    Raises:
        NotComparableError: naming each difference and the runs.
    """
    differences = []
    for key in MACHINE:
        differences += _difference(key, [(run, run.header.environment.get(key)) for run in runs])
    for name in sizes:
        values = [
            (run, sorted({getattr(point, name) for point in run.header.points})) for run in runs
        ]
        differences += _difference(name, values)
    if differences:
        raise NotComparableError(
            "these runs cannot be compared, they differ in " + "; ".join(differences)
        )


def _difference(name: str, values: Sequence[tuple[Run, object]]) -> list[str]:
    first = values[0][1]
    if all(value == first for _, value in values):
        return []
    return [f"{name}: " + ", ".join(f"{_shown(value)} ({run.path.name})" for run, value in values)]


def _shown(value: object) -> str:
    if isinstance(value, list):
        return "/".join(map(str, value))
    return "unknown" if value is None else str(value)
