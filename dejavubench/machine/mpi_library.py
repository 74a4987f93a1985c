"""The MPI library of this rank, and whether it belongs to the launcher that started the rank.

Some libraries end their process as they start under another MPI's launcher, with a text of their
own. So the library is asked in a process of its own, which does not start it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from dejavubench.machine.launcher import Launcher, find_launcher, read_rank_count
from dejavubench.machine.probe_process import ProbeError, run_probe

PROBE_MODULE = "dejavubench.machine.mpi_probe"
PROBE_S = 20.0
"""The probe's module, and the seconds that it may take."""


@dataclass(frozen=True)
class ForeignLibrary:
    """An MPI library whose ranks were started by another MPI's launcher.

    Attributes:
        name: the library's short name, such as ``MPICH``.
        version: its version, such as ``5.0.2``.
        started: number of ranks that the launcher has started; None if it does not say.
    """

    name: str
    version: str
    launcher: Launcher
    started: int | None

    @property
    def message(self) -> str:
        """The mismatch in words, with the launcher to use instead."""
        return (
            f"{self.launcher.name} started this rank, but mpi4py uses {self.name} {self.version}, "
            f"which that launcher cannot connect. Start the ranks with {self.name}'s mpirun"
        )


def find_foreign_library(environment: Mapping[str, str] = os.environ) -> ForeignLibrary | None:
    """Return the MPI library if it does not belong to this rank's launcher, else None.

    The library is not started.
    """
    launcher = find_launcher(environment)
    if launcher is None or not launcher.vendors:
        return None
    try:
        library = run_probe(PROBE_MODULE, timeout_s=PROBE_S)
    except ProbeError:
        return None  # the import of MPI will say what is wrong
    if library["name"] in launcher.vendors:
        return None
    return ForeignLibrary(
        name=library["name"],
        version=library["version"],
        launcher=launcher,
        started=read_rank_count(environment),
    )


def find_ending_library(environment: Mapping[str, str] = os.environ) -> ForeignLibrary | None:
    """Return the MPI library if it would end this process as it starts, else None."""
    launcher = find_launcher(environment)
    # Asking takes 0.1 s. Under other launchers a foreign library starts, each rank as a world of
    # its own, and the number of ranks tells.
    if launcher is None or not launcher.ends_foreign:
        return None
    return find_foreign_library(environment)
