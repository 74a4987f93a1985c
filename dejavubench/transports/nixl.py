"""``nixl``: NVIDIA's NIXL, from host memory to host memory or from GPU to GPU."""

from __future__ import annotations

from dejavubench.dejavulib.destinations.registry import NIXL
from dejavubench.machine.hardware import has_nixl
from dejavubench.transports.base import Missing, Options, ProbeNames, Style, Transport

NOT_INSTALLED = "nixl is not installed: pip install 'dejavubench[nixl]'"


class NIXLTransport(Transport):
    entry = NIXL
    order = 50
    label = "NIXL"
    help = "by NVIDIA's NIXL: a remote CPU, or GPU to GPU"
    style = Style("#0072B2", "++")
    copy_s = 1.5e-5
    probe_names = ProbeNames(
        ceiling="nixl-raw",
        ceiling_on_gpu="nixl-raw",
        held_against={"nixl-destination": "nixl-raw"},
    )

    def missing(self, options: Options) -> Missing | None:
        return None if has_nixl() else Missing(NOT_INSTALLED, f"streaming nixl: {NOT_INSTALLED}")


TRANSPORT = NIXLTransport()
