"""``mpi``: messages to a sink's host memory."""

from __future__ import annotations

from dejavubench.dejavulib.destinations.registry import MPI
from dejavubench.transports.base import ProbeNames, Style, Transport


class MPITransport(Transport):
    entry = MPI
    order = 30
    help = "a remote CPU"
    style = Style("#009E73", "..")
    copy_s = 1e-5
    hands_over = True
    probe_names = ProbeNames(
        ceiling="mpi-windowed",
        ceiling_on_gpu="mpi-windowed",
        link_rate="mpi-windowed",
        message="mpi-message",
        held_against={"mpi-destination": "mpi-windowed"},
        overhead_of={"mpi-message-overhead": "mpi-message"},
    )


TRANSPORT = MPITransport()
