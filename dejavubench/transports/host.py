"""``host``: the source's own memory."""

from __future__ import annotations

from dejavubench.dejavulib.destinations.registry import HOST
from dejavubench.transports.base import ProbeNames, Style, Transport


class HostTransport(Transport):
    entry = HOST
    order = 10
    help = "this rank's memory"
    style = Style("#56B4E9", "//")
    copy_s = 1e-6
    swapped_label = "swapped to host memory"
    probe_names = ProbeNames(ceiling="memory-copy", ceiling_on_gpu="pcie-d2h")


TRANSPORT = HostTransport()
