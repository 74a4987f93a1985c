"""``disk``: a file of each stream, as durable as a named option says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dejavubench.dejavulib.destinations.registry import DISK
from dejavubench.transports.base import Crossing, PlotStyle, ProbeNames, Transport
from dejavubench.transports.connector import Connector
from dejavubench.transports.contexts import ProbeContext, RankContext, SourceContext
from dejavubench.transports.probe import DISK_CHUNK_COUNT, MESSAGE_NBYTES, Probe

if TYPE_CHECKING:
    from dejavubench.dejavulib.destinations.base import Destination, Stream


class DiskConnector(Connector):
    """One source's files, in the folder that its context names."""

    def open_source(self, context: SourceContext) -> Destination:
        """Return a destination with one file per stream; they are created as streams begin."""
        from dejavubench.dejavulib.destinations.disk import DiskDestination
        from dejavubench.dejavulib.destinations.disk.block_file import parse_durability

        files = context.files
        assert files is not None  # the entry has durability options
        return DiskDestination(
            directory=files.folder,
            name=files.name,
            durability=parse_durability(files.durability),
            keep=files.keep,
            identity=files.identity,
        )

    def stored_nbytes(self, stream: Stream) -> int:
        """Return the size of the stream's file: header, watermark and all records."""
        from dejavubench.dejavulib.destinations.disk.stream_file import count_file_nbytes

        return count_file_nbytes(stream.schedule)

    def check(self, destination: Destination, stream: Stream) -> None:
        """Read the stream's file back and compare its checksums."""
        from dejavubench.dejavulib.destinations.disk import DiskDestination

        assert isinstance(destination, DiskDestination)
        destination.check(stream)

    def probes(self, context: ProbeContext) -> Iterable[Probe]:
        """Return the probes of each durability; one that has no room on the disk is left out."""
        from dejavubench.dejavulib.destinations.base import StorageError
        from dejavubench.dejavulib.destinations.disk.block_file import parse_durability
        from dejavubench.transports.loops.disk import DiskLoops, time_write_overhead

        probes: list[Probe] = []
        for files in context.files if context.is_source else ():
            durability = parse_durability(files.durability)
            try:
                loops = DiskLoops(files.folder, files.name, durability)
            except (OSError, StorageError) as error:
                reason = getattr(error, "strerror", None) or error
                context.say(f"dejavubench: no ceiling of disk ({durability}): {reason}")
                continue
            context.open_probes.callback(loops.close)
            probes += loops.probes()
        # The loop's own cost is the same whatever the durability is, so it is measured once.
        return [*probes, Probe("disk-run-overhead", "us", time_write_overhead)] if probes else []


class DiskTransport(Transport):
    """Streaming to files of each source. An option names how durable a complete chunk is."""

    entry = DISK
    order = 20
    help = "a file"
    style = PlotStyle("#E69F00", "\\\\")
    options = ("durability",)
    copy_s = 3e-6  # a write into the page cache
    sync_s = 4e-4  # fdatasync on an NVMe SSD
    swapped_label = "swapped to disk"
    allows_restart = True
    probe_names = ProbeNames(
        ceiling="disk-write",
        ceiling_on_gpu="disk-write",
        held_against={"disk-destination": "disk-write"},
        overhead_of={"disk-run-overhead": "disk-run"},
    )

    # Both the raw loop and the destination have a file of this many chunks, and a little more.
    probe_nbytes = 2 * DISK_CHUNK_COUNT * MESSAGE_NBYTES + (1 << 20)
    crossing = Crossing(on_one_host=False)  # a file system of a network is a case of its own

    def connector(self, rank: RankContext) -> Connector:
        """Return this rank's part; nothing is opened yet."""
        return DiskConnector(rank)

    def waits_for_storage(self, durability: str | None) -> bool:
        """Whether a chunk waits for the device: always, except with ``page-cache``."""
        return durability != "page-cache"


TRANSPORT = DiskTransport()
