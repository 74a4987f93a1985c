"""Where a run takes place: what a reader needs to judge its numbers."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from mpi4py import MPI

from dejavubench import __version__
from dejavubench.machine import available_nbytes, native_bf16

PACKAGES = ("torch", "numpy", "mpi4py", "pandas", "matplotlib", "xxhash", "mpich", "openmpi")
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "UCX_TLS", "DEJAVULIB_BASELINE", "SLURM_JOB_ID")


def cpu_model() -> str:
    """The processor's name as the kernel gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def source_revision() -> str | None:
    """The commit of the checkout this runs from, with ``+`` if it is changed; None outside of one."""
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def of_rank() -> dict[str, Any]:
    """What may differ from rank to rank."""
    return {
        "cpu_model": cpu_model(),
        "cpus": os.cpu_count(),
        "cores": sorted(os.sched_getaffinity(0)),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "native_bf16": native_bf16(),
        "memory_available": available_nbytes(),
        "kernel": platform.release(),
        "mpi_thread_level": MPI.Query_thread(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def of_run(hosts: list[str], threads: int, cores: int) -> dict[str, Any]:
    """What rank 0 says for all; ``cores`` were granted to it before the program confined it to fewer."""
    versions = {"dejavubench": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        **of_rank(),
        "cores": cores,
        "hostnames": sorted(set(hosts)),
        "ranks": len(hosts),
        "threads": threads,
        "versions": versions,
        "mpi_library": MPI.Get_library_version().splitlines()[0].strip(),
        "source_revision": source_revision(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def hostname() -> str:
    return socket.gethostname()
