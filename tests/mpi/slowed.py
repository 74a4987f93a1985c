"""Delays at one place of a chunk's way, in every other iteration of an arm; for faulty.py."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from injection import CurrentPhase, fault, replace_call

from dejavubench.dejavulib.destinations.mpi import MPISinkEndpoint
from dejavubench.dejavulib.packing import Packing
from dejavubench.models.gpt import GPT

DELAY_S = 5e-3
STEP_S = 20e-3
"""Added to each step of the model, so that a chunk is complete before the next one is ready."""

PLACES: dict[str, tuple[Any, str]] = {
    "host": (Packing, "gather"),
    "disk": (os, "fdatasync"),
    "mpi": (MPISinkEndpoint, "acknowledge"),
}
"""The function that is slow in the arms of a destination."""


def _is_delayed(destination: str) -> bool:
    """Return whether an injected iteration of the destination is under way."""
    injected = CurrentPhase.iteration is not None and CurrentPhase.iteration % 2 == 1
    return injected and (CurrentPhase.arm or "").startswith(f"{destination}@")


@fault
def slowed() -> None:
    """A slow gather in the arms of host, a slow disk in those of disk, a late sink in mpi's."""
    for destination, (owner, name) in PLACES.items():
        replace_call(owner, name, _with_delay(destination))
    replace_call(GPT, "forward", _slow_step)


def _with_delay(destination: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def work(*args: Any, **kwargs: Any) -> Any:
            if _is_delayed(destination):
                time.sleep(DELAY_S)
            return original(*args, **kwargs)

        return work

    return make


def _slow_step(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        time.sleep(STEP_S)
        return original(*args, **kwargs)

    return forward
