"""Tools for the faults of mpi/faulty.py: replace a function in the right phase and note it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpi4py import MPI

from dejavubench.bench.recording import recorder

RANK = MPI.COMM_WORLD.rank
ITERATION = 2
"""The iteration that a fault strikes in."""

FAULTS: dict[str, Callable[..., None]] = {}


def fault(prepare: Callable[..., None]) -> Callable[..., None]:
    """A fault is a function that puts itself in place; its name is that on the command line."""
    FAULTS[prepare.__name__.replace("_", "-")] = prepare
    return prepare


class CurrentPhase:
    """Which phase this rank is in, as it records it; all None until the first is marked."""

    phase: str | None = None
    arm: str | None = None
    iteration: int | None = None

    @classmethod
    def follow(cls) -> None:
        original = recorder.Recorder.phase

        def phase(self: recorder.Recorder, phase: str, **place: Any) -> None:
            original(self, phase, **place)
            cls.phase, cls.arm, cls.iteration = phase, place.get("arm"), place.get("iteration")

        recorder.Recorder.phase = phase  # type: ignore[method-assign]


def note_strike() -> None:
    """Tell the test that the fault has happened."""
    Path(f"struck-{RANK}").touch()


def replace_call(
    owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    """Replace ``owner.name`` by what ``make`` makes of it."""
    original = getattr(owner, name)
    setattr(owner, name, functools.wraps(original)(make(original)))


def is_struck_in(phase: str) -> bool:
    return CurrentPhase.phase == phase and (
        CurrentPhase.iteration is None or CurrentPhase.iteration >= ITERATION
    )
