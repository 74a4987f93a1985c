"""Staging memory: the slots that chunks pass through, and the bounce buffer of the naive levels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass

from dejavubench.config.plan import Plan
from dejavubench.config.points import Point
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.schedule import DEVICE_SLOT_COUNT, HOST_SLOT_COUNT
from dejavubench.units import MIB


@dataclass(frozen=True)
class Staging:
    """Bytes of staging memory of one rank.

    Attributes:
        host_nbytes: slots in host memory.
        bounce_nbytes: host memory that the extents of a prompt, or of tokens that move as one, pass
            through one by one, on their way from a GPU.
        device_nbytes: slots on the rank's GPU.
    """

    host_nbytes: int = 0
    bounce_nbytes: int = 0
    device_nbytes: int = 0

    @classmethod
    def largest_of(cls, stagings: Iterable[Staging]) -> Staging:
        """Return the memory that is enough for several points, one after the other."""
        return cls(*map(max, zip(*map(astuple, stagings), strict=True)))


def choose_slot_nbytes(point: Point) -> int:
    """Return the size of one staging slot."""
    return point.settings.staging_mib * MIB


def plan_source_staging(plan: Plan, point: Point, most_nbytes: int) -> Staging:
    """Return the staging memory of a source at a point, which all its arms share.

    Args:
        most_nbytes: most bytes that a naive level moves at a time: those of a microbatch's prompt,
            or of tokens that move as one.
    """
    on_cuda = plan.experiment.device == "cuda"
    ring_nbytes = point.settings.staging_slots * choose_slot_nbytes(point)
    used_destinations = [
        (arm, arm.transport.entry) for arm in plan.unskipped_arms if arm.transport is not None
    ]
    on_host = any(entry.uses_host_slots(on_cuda) for _, entry in used_destinations)
    from_gpu = any(entry.uses_device_memory(on_cuda) for _, entry in used_destinations)
    # What goes to the host is gathered on the GPU first, in slots of its own.
    by_host = on_cuda and any(not entry.device_memory for _, entry in used_destinations)
    has_naive_level = on_cuda and any(
        not LEVELS[arm.level].buffered and not entry.device_memory
        for arm, entry in used_destinations
        if arm.level is not None
    )
    return Staging(
        host_nbytes=ring_nbytes if on_host else 0,
        bounce_nbytes=most_nbytes if has_naive_level else 0,
        device_nbytes=ring_nbytes * sum((from_gpu, by_host)),
    )


def plan_sink_staging(plan: Plan, point: Point, stream_count: int) -> Staging:
    """Return the staging memory of a sink at a point.

    Args:
        stream_count: how many streams arrive.
    """
    on_cuda = plan.experiment.device == "cuda"
    remote_entries = [
        arm.transport.entry for arm in plan.unskipped_arms if arm.transport and arm.is_remote
    ]
    on_host = any(entry.uses_host_slots(on_cuda) for entry in remote_entries)
    on_device = any(entry.uses_device_memory(on_cuda) for entry in remote_entries)
    slots_nbytes = stream_count * choose_slot_nbytes(point)
    # Chunks that come in host memory go on to the sink's model through one slot on its GPU.
    uploads = on_cuda and on_host and point.handed_over is not None
    return Staging(
        host_nbytes=HOST_SLOT_COUNT * slots_nbytes if on_host else 0,
        device_nbytes=(DEVICE_SLOT_COUNT * slots_nbytes if on_device else 0)
        + (choose_slot_nbytes(point) if uploads else 0),
    )
