"""Tools for the faults of mpi/faulty.py: add code to a call in the right phase, and note it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpi4py import MPI

from dejavubench.bench.recording import recorder

RANK = MPI.COMM_WORLD.rank
ITERATION = 2
"""The iteration that a fault strikes in."""


@dataclass(frozen=True)
class Fault:
    """A way to make a run go wrong. ``prepare`` puts it in place before the run starts."""

    prepare: Callable[..., None]

    @property
    def name(self) -> str:
        """Its name on the command line."""
        return self.prepare.__name__.replace("_", "-")


def fault(prepare: Callable[..., None]) -> Fault:
    """Make a fault of the function that puts it in place."""
    return Fault(prepare)


def faults_of(*namespaces: Mapping[str, object]) -> dict[str, Fault]:
    """Return the faults that modules define, by their names on the command line."""
    values = (value for namespace in namespaces for value in namespace.values())
    return {value.name: value for value in values if isinstance(value, Fault)}


def inject(
    owner: Any,
    name: str,
    *,
    before: Callable[..., object] | None = None,
    around: Callable[..., object] | None = None,
    after: Callable[..., object] | None = None,
) -> None:
    """Add code to every call of ``owner.name``, which is a function or a method.

    Args:
        owner: module or class.
        before: called before the call, with its arguments. What it raises prevents the call.
        around: called in place of the call, with the original function and the arguments.
        after: called after the call, with its arguments.
    """
    original = getattr(owner, name)

    @functools.wraps(original)
    def injected(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before(*args, **kwargs)
        call = original if around is None else functools.partial(around, original)
        result = call(*args, **kwargs)
        if after is not None:
            after(*args, **kwargs)
        return result

    setattr(owner, name, injected)


class CurrentPhase:
    """The phase that this rank has recorded last; all None until the first is marked."""

    phase: str | None = None
    arm: str | None = None
    iteration: int | None = None

    @classmethod
    def follow(cls) -> None:
        """Note every phase that this rank records from now on."""
        inject(recorder.Recorder, "mark_phase", after=cls._note)

    @classmethod
    def _note(cls, _: recorder.Recorder, phase: str, **place: Any) -> None:
        cls.phase, cls.arm, cls.iteration = phase, place.get("arm"), place.get("iteration")


def note_strike() -> None:
    """Tell the test that the fault has happened."""
    Path(f"struck-{RANK}").touch()


def is_struck_in(phase: str) -> bool:
    """Return whether the rank is in this phase, of an iteration in which faults strike."""
    return CurrentPhase.phase == phase and (
        CurrentPhase.iteration is None or CurrentPhase.iteration >= ITERATION
    )
