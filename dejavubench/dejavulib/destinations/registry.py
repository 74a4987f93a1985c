"""The destinations that the library knows, as data. Importing this loads neither torch nor MPI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..chunk_times import LatencyPart

# Each part ends at a stamp of chunk_times.STAMPS, and begins where the one before it ends.
QUEUE = LatencyPart("queue", "begun")
GATHER = LatencyPart("gather", "gathered")
POST = LatencyPart("post", "posted")
WIRE_THEN_ACKNOWLEDGEMENT = (
    LatencyPart("wire", "received"),
    LatencyPart("acknowledgement", "complete"),
)
NOTICE = LatencyPart("notice", "seen")
"""From the end of a chunk's copy to host memory until the helper thread has found it ended."""
WIRE_WITH_ACKNOWLEDGEMENT = LatencyPart("wire + acknowledgement", "complete")
"""The rest of a chunk's latency where the sink's acknowledgement carries no duration."""


@dataclass(frozen=True)
class DestinationEntry:
    """Abilities of one destination, known before its code is imported.

    Attributes:
        name: the destination's name in ``--streaming`` and in records.
        remote: other ranks receive what is streamed.
        external_sink: the receiver is a program of its own, not a rank of the MPI job.
        device_memory: chunks leave from, and arrive in, the memory of a CUDA device where the cache
            is there.
        staged: chunks go through staging slots on the source. False: they are gathered straight
            into their place.
        in_host_memory: the whole stream stays in the source's host memory.
        durabilities: names of the durability options, the default first. Not empty for a
            destination on a storage device, whose failure ends its arm alone.
        readable: the source can read complete chunks back, so its class is a
            ``ReadableDestination``. Without that, no source can verify what has arrived.
        parts: parts of a packed chunk's latency that can be told apart, in order.
        extent_parts: the same for a chunk whose extents move one by one.
        issues_groups: at ``0-batched``, extents are issued in groups, so that none has a time of
            its own.
        moves_cache: its chunks hold keys and values. False for a yardstick: its chunks have the
            sizes of the others', but nothing is gathered, and there is nothing to verify.
    """

    name: str
    remote: bool = False
    external_sink: bool = False
    device_memory: bool = False
    staged: bool = True
    in_host_memory: bool = False
    durabilities: tuple[str, ...] = ()
    readable: bool = False
    parts: tuple[LatencyPart, ...] = (QUEUE, GATHER, POST, WIRE_WITH_ACKNOWLEDGEMENT)
    extent_parts: tuple[LatencyPart, ...] = (QUEUE, LatencyPart("move", "complete"))
    issues_groups: bool = False
    moves_cache: bool = True

    @property
    def on_storage(self) -> bool:
        """Whether chunks are written to a storage device."""
        return bool(self.durabilities)

    @property
    def copied_parts(self) -> tuple[LatencyPart, ...]:
        """Parts of the latency of a packed chunk after its copy from a device to host memory."""
        if not self.staged:  # the copy has brought it into its place: nothing is posted
            return (NOTICE._replace(until="complete"),)
        _, _, *later_parts = self.parts
        return (NOTICE, *later_parts)

    def bounced_parts(self, each_complete: bool) -> tuple[LatencyPart, ...]:
        """Return the parts of a chunk whose extents leave a device through a bounce buffer.

        Args:
            each_complete: each extent is passed on before the next one is copied, so that the two
                copies alternate and no stamp tells them apart.
        """
        if each_complete:
            return self.extent_parts
        queue, move, *later_parts = self.extent_parts
        passed_on = "copy into place" if self.in_host_memory else move.name
        return (
            queue,
            LatencyPart("copy to host", "gathered"),
            LatencyPart(passed_on, move.until),
            *later_parts,
        )

    def uses_host_slots(self, on_cuda: bool) -> bool:
        """Whether staging slots are in host memory, for a cache on a CUDA device or on the CPU."""
        return self.staged and not self.uses_device_memory(on_cuda)

    def uses_device_memory(self, on_cuda: bool) -> bool:
        """Whether chunks move from device memory to device memory."""
        return on_cuda and self.device_memory


_entries: dict[str, DestinationEntry] = {}

DESTINATIONS: Mapping[str, DestinationEntry] = MappingProxyType(_entries)
"""Every registered destination by its name."""


def register(entry: DestinationEntry) -> DestinationEntry:
    """Add a destination and return it.

    Raises:
        ValueError: another destination has this name.
    """
    # An equal entry is no conflict: a module may be imported under two names.
    if _entries.setdefault(entry.name, entry) != entry:
        raise ValueError(f"there is a destination {entry.name!r} already")
    return entry


HOST = register(
    DestinationEntry(
        "host",
        staged=False,
        in_host_memory=True,
        readable=True,
        parts=(QUEUE, GATHER, LatencyPart("post", "complete")),
    )
)
DISK = register(
    DestinationEntry(
        "disk",
        durabilities=("fdatasync", "direct", "page-cache"),
        readable=True,
        parts=(QUEUE, GATHER, LatencyPart("write", "moved"), LatencyPart("sync", "complete")),
    )
)
# Between processes, the sink's acknowledgement says how long it had the chunk. So the wire is told
# apart from the sink's own work, by durations alone: no two clocks are compared.
_ACKNOWLEDGED = (QUEUE, GATHER, POST, *WIRE_THEN_ACKNOWLEDGEMENT)
_MOVED_SINGLY = (QUEUE, LatencyPart("move", "posted"), WIRE_WITH_ACKNOWLEDGEMENT)
MPI = register(
    DestinationEntry("mpi", remote=True, parts=_ACKNOWLEDGED, extent_parts=_MOVED_SINGLY)
)
NCCL = register(
    DestinationEntry(
        "nccl",
        remote=True,
        device_memory=True,
        issues_groups=True,
        parts=_ACKNOWLEDGED,
        extent_parts=_MOVED_SINGLY,
    )
)
NIXL = register(
    DestinationEntry(
        "nixl",
        remote=True,
        device_memory=True,
        issues_groups=True,
        parts=_ACKNOWLEDGED,
        extent_parts=_MOVED_SINGLY,
    )
)
CUDA_IPC = register(
    DestinationEntry(
        "cuda-ipc",
        remote=True,
        device_memory=True,
        parts=_ACKNOWLEDGED,
        extent_parts=_MOVED_SINGLY,
    )
)
TCP = register(
    DestinationEntry(
        "tcp",
        external_sink=True,
        readable=True,
        parts=_ACKNOWLEDGED,
        extent_parts=_MOVED_SINGLY,
    )
)
