"""MPI's library, its launcher, and the software of this rank."""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dejavubench import __version__
from dejavubench.machine.launcher import Launcher, find_launcher, read_rank_count
from dejavubench.machine.mpi_library import find_foreign_library

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""File of the kernel whose content tells hosts of one machine from others."""

PACKAGES = ("mpi4py", "torch", "numpy", "numba")
"""Packages whose versions must be the same on all ranks."""


@dataclass(frozen=True)
class MPIFacts:
    """MPI as this rank sees it.

    Attributes:
        problem: why no MPI library could be loaded; None if one runs.
        library: first line of the library's own name, such as ``MPICH Version: 5.0.2``.
        vendor: the library's short name, such as ``MPICH``.
        device: the device that MPICH names, such as ``ch4:ucx ofi``.
        size: number of ranks that MPI knows.
        launcher: the program that started this rank, as its variables say.
        started: number of ranks that the launcher has started; None if it does not say.
        thread_level: level that MPI grants, as MPI's number; None if MPI was not started.
    """

    problem: str | None = None
    library: str = ""
    vendor: str = ""
    device: str = ""
    size: int = 1
    launcher: Launcher | None = None
    started: int | None = None
    thread_level: int | None = None


@dataclass(frozen=True)
class SoftwareFacts:
    """Software of a rank.

    Attributes:
        versions: of Python, this program and some packages, by name.
    """

    versions: Mapping[str, str] = field(default_factory=dict)


def make_facts_without_mpi(problem: str, environment: Mapping[str, str] = os.environ) -> MPIFacts:
    """Return the facts of a rank that has no MPI library."""
    return MPIFacts(
        problem=problem,
        launcher=find_launcher(environment),
        started=read_rank_count(environment),
    )


def read_foreign_mpi_facts(environment: Mapping[str, str] = os.environ) -> MPIFacts | None:
    """Return the facts of a rank whose launcher does not belong to its MPI library; else None.

    The library is not started: some end the process, others make each rank a world of its own.
    """
    foreign_mpi = find_foreign_library(environment)
    if foreign_mpi is None:
        return None
    return MPIFacts(
        vendor=f"{foreign_mpi.name} {foreign_mpi.version}",
        launcher=foreign_mpi.launcher,
        started=foreign_mpi.started,
    )


def read_mpi_facts(environment: Mapping[str, str] = os.environ) -> MPIFacts:
    """Ask the MPI library that runs."""
    from mpi4py import MPI

    lines = [line.strip() for line in MPI.Get_library_version().splitlines() if line.strip()]
    name, release = MPI.get_vendor()
    # MPICH names the network library that it was built for; other libraries have no such line.
    device = next((line for line in lines if line.startswith("MPICH Device:")), "")
    return MPIFacts(
        library=" ".join(lines[0].split()) if lines else "",
        vendor=f"{name} {'.'.join(map(str, release))}",
        device=" ".join(device.partition(":")[2].split()),
        size=MPI.COMM_WORLD.size,
        launcher=find_launcher(environment),
        started=read_rank_count(environment),
        thread_level=MPI.Query_thread(),
    )


def read_boot_id(file: Path = BOOT_ID) -> str:
    """Return the text by which a running kernel identifies itself; a random one without it."""
    return file.read_text().strip() if file.exists() else secrets.token_hex(16)


def read_software_facts() -> SoftwareFacts:
    """Return the versions; a package that is missing has ``missing``."""
    versions = {"dejavubench": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "missing"
    return SoftwareFacts(versions)
