"""Where the cache can go. Adding a destination: one file here and one line in ``DESTINATIONS``."""

from __future__ import annotations

DESTINATIONS = {
    "host": "dejavubench.dejavulib.destinations.host:HostDestination",
    "disk": "dejavubench.dejavulib.destinations.disk:DiskDestination",
    "mpi": "dejavubench.dejavulib.destinations.mpi:MPIDestination",
    "nixl": "dejavubench.dejavulib.destinations.nixl:NIXLDestination",
    "tcp": "dejavubench.dejavulib.destinations.tcp:TCPDestination",
}
