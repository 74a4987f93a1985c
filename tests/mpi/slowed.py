"""Delays at one place of a chunk's way, in every other iteration of an arm; for faulty.py."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any

from injection import CurrentPhase, fault, inject

from dejavubench.dejavulib.destinations.mpi import MPISinkEndpoint
from dejavubench.dejavulib.packing import Packing
from dejavubench.models.gpt import GPT

DELAY_S = 5e-3
"""Added to each chunk, in the function that is slow."""

STEP_S = 20e-3
"""Added to each step of the model, so that a chunk is complete before the next one is ready."""

PLACES: dict[str, tuple[Any, str]] = {
    "host": (Packing, "gather"),
    "disk": (os, "fdatasync"),
    "mpi": (MPISinkEndpoint, "acknowledge"),
}
"""The function that is slow in the arms of a destination."""


@fault
def slowed() -> None:
    """Delay gathers in the arms of host, syncs in those of disk, acknowledgements in mpi's."""
    for destination, (owner, name) in PLACES.items():
        inject(owner, name, before=partial(_delay, destination))
    inject(GPT, "forward", before=lambda *_, **__: time.sleep(STEP_S))


def _delay(destination: str, *_: object, **__: object) -> None:
    """Sleep in odd iterations of the destination's arms."""
    is_injected = CurrentPhase.iteration is not None and CurrentPhase.iteration % 2 == 1
    if is_injected and (CurrentPhase.arm or "").startswith(f"{destination}@"):
        time.sleep(DELAY_S)
