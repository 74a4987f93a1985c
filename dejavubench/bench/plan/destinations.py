"""The destination that an arm streams to, and what a run records of its destinations."""

from __future__ import annotations

from collections.abc import Sequence

from dejavubench.config.arms import Arm
from dejavubench.dejavulib.destinations.registry import DESTINATIONS, DestinationEntry
from dejavubench.records.destinations import DestinationInfo
from dejavubench.transports.recorded import info, swapped_info
from dejavubench.transports.registry import transport


def destination_of(arm: Arm) -> str:
    """Return the name of the destination that a streaming arm streams, or swaps, to."""
    return arm.mode.removeprefix("swap-")


def entry_of(arm: Arm) -> DestinationEntry:
    """Return what the library knows of a streaming arm's destination."""
    return DESTINATIONS[destination_of(arm)]


def destinations_of(arms: Sequence[Arm], on_gpu: bool) -> dict[str, DestinationInfo]:
    """Return what analysis must know of the arms' destinations, by mode."""
    return {
        arm.mode: swapped_info(transport(destination_of(arm)))
        if arm.swaps
        else info(transport(arm.mode), on_gpu)
        for arm in arms
        if arm.role == "streaming"
    }
