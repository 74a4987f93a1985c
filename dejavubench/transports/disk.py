"""``disk``: a file of each stream, as durable as a named option says."""

from __future__ import annotations

from dejavubench.dejavulib.destinations.registry import DISK
from dejavubench.transports.base import ProbeNames, Style, Transport


class DiskTransport(Transport):
    entry = DISK
    order = 20
    help = "a file"
    style = Style("#E69F00", "\\\\")
    options = ("durability",)
    copy_s = 3e-6
    sync_s = 4e-4
    swapped_label = "swapped to disk"
    resumes = True
    probe_names = ProbeNames(
        ceiling="disk-write",
        ceiling_on_gpu="disk-write",
        held_against={"disk-destination": "disk-write"},
        overhead_of={"disk-run-overhead": "disk-run"},
    )

    def waits_for_storage(self, durability: str | None) -> bool:
        return durability != "page-cache"


TRANSPORT = DiskTransport()
