"""Pieces that the probes of all destinations share. Loads neither torch nor MPI."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dejavubench.dejavulib.destinations.base import Stream

MESSAGE_NBYTES = 16 << 20
"""Bytes of a probe's message, on a link that is fast enough for it."""

WINDOW = 4
"""Messages that are under way at the same time."""

MESSAGE_COUNT = 16
"""Messages of one measurement of a link."""

DISK_CHUNK_COUNT = 8
"""Chunks of one measurement of a disk, each of :data:`MESSAGE_NBYTES` bytes."""

LEAST_MESSAGE_NBYTES = 64 << 10
"""Least bytes of a message, however slow the link is."""

PROBE_S = 1.0
"""Seconds that one measurement of a link may take: on a slow link its messages are smaller."""

PACING_NBYTES = 4 << 20
"""Bytes that are sent to find out how fast a link is."""

Sample = tuple[float, str]
"""(value, shape): what one shape of a probe gave."""


@dataclass
class Probe:
    """One thing to measure, and what it has given.

    Attributes:
        name: the probe's name in records.
        unit: ``GB/s``, ``GFLOP/s`` or ``us``.
        run: measures once; returns the samples of all its shapes, none on a sink.
        durability: the durability option in force, on storage.
        may_fail: an error is reported and the run goes on, as where a disk is full. Errors of other
            probes end the run: on a link the other side would wait for ever.
        samples: the samples of each measurement.
        problem: the first reason why a disk could not be measured.
    """

    name: str
    unit: str
    run: Callable[[], list[Sample]]
    durability: str | None = None
    may_fail: bool = False
    samples: list[list[Sample]] = field(default_factory=list)
    problem: str | None = None

    def __call__(self) -> str | None:
        """Measure; return what keeps the disk from being measured, the first time."""
        from dejavubench.dejavulib.destinations.base import StorageError

        try:
            self.samples.append(self.run())
        except (OSError, StorageError) as error:
            if not self.may_fail:
                raise
            reason = getattr(error, "strerror", None) or error
            # A full disk stays full: said once, and not after each of the rounds.
            earlier_problem = self.problem
            self.problem = f"{self.name} ({self.durability}): {reason}"
            return None if earlier_problem else self.problem
        return None


def time_call(work: Callable[[], object]) -> float:
    """Return the seconds that ``work`` takes."""
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def choose_message_nbytes(bytes_per_s: float, message_count: int) -> int:
    """Return the bytes of a message of which ``message_count`` take at most :data:`PROBE_S`.

    A window of small messages fills a slow link as well as one of large ones fills a fast link.

    Args:
        bytes_per_s: the speed of the link.
    """
    # Halved, not computed: powers of two, so that two sessions over one link measure one size.
    nbytes = MESSAGE_NBYTES
    while nbytes > LEAST_MESSAGE_NBYTES and message_count * nbytes > bytes_per_s * PROBE_S:
        nbytes //= 2
    return nbytes


def make_message_stream(
    message_count: int, peer: int | None = None, nbytes: int = MESSAGE_NBYTES
) -> Stream:
    """Return a stream whose chunks are whole messages: only flush and fetch are left to measure."""
    from dejavubench.dejavulib.destinations.base import Stream
    from dejavubench.dejavulib.kv_cache import KVGeometry
    from dejavubench.dejavulib.schedule import StreamSchedule

    # One layer is a chunk: 2 (K and V) · positions · width · 4 bytes make `nbytes`.
    width = 256
    geometry = KVGeometry(
        layers=message_count,
        requests=1,
        heads=1,
        positions=nbytes // (2 * 4 * width),
        head_size=width,
        itemsize=4,
    )
    return Stream(
        0,
        StreamSchedule(
            geometry=geometry,
            region=geometry.whole,
            input_len=geometry.positions,
            steps=0,
            slot_nbytes=nbytes,
        ),
        peer,
    )


def format_size(nbytes: int) -> str:
    """Return a size in words: ``16 MiB``, ``512 KiB``."""
    return f"{nbytes >> 20} MiB" if nbytes >> 20 else f"{nbytes >> 10} KiB"
