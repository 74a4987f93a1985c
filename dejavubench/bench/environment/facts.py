"""The machine, the software and the settings that a reader needs to judge a run's numbers.

The keys are documented in :mod:`dejavubench.records.environment`.
"""

from __future__ import annotations

import ctypes
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
from dejavubench.dejavulib.destinations.tcp.handshake import hash_machine
from dejavubench.machine.cpu import WITHOUT_VARIABLE, has_native_bf16, read_cpu_model
from dejavubench.machine.memory import (
    HUGE_PAGES_VARIABLE,
    PRIMITIVE_CACHE_VARIABLES,
    measure_available_nbytes,
)
from dejavubench.parallel.mps import is_mps_running

PACKAGES = (
    "torch",
    "numpy",
    "mpi4py",
    "numba",
    "llvmlite",
    "pandas",
    "matplotlib",
    "xxhash",
    "mpich",
    "openmpi",
    "cupy-cuda13x",
    "triton",
    "nvidia-nccl-cu13",
    "nixl",
    "nvidia-ml-py",
)
VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "DEJAVULIB_BASELINE",
    "SLURM_JOB_ID",
    HUGE_PAGES_VARIABLE,
    WITHOUT_VARIABLE,
    *PRIMITIVE_CACHE_VARIABLES,
)
"""Recorded with all variables that begin with ``UCX_``."""
DEVICE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_MAX_CONNECTIONS")
"""Recorded, where there is a GPU, with all that begin with ``NCCL_`` or ``CUDA_MPS_``."""

DRIVER_FACTS = {
    "driver": "driver_version",
    "pcie_generation": "pcie.link.gen.max",
    "pcie_width": "pcie.link.width.max",
}
"""Our keys, and the names by which ``nvidia-smi`` is asked for them."""


def read_source_revision() -> str | None:
    """Return the commit of this checkout, with ``+`` if it is changed; None outside of one."""
    folder = Path(__file__).resolve().parent
    try:
        git = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return git.stdout.strip()


def is_mpi_cuda_aware() -> bool:
    """Return whether the loaded MPI library says that it takes pointers to device memory."""
    maps = Path("/proc/self/maps")
    # Names of files may hold any bytes, so they are not decoded as UTF-8.
    text = os.fsdecode(maps.read_bytes()) if maps.exists() else ""
    loaded_files = {line.split()[-1] for line in text.splitlines()}
    # The library that is loaded is asked, and not one that happens to lie in the search path.
    for path in sorted(name for name in loaded_files if Path(name).name.startswith("libmpi")):
        query = getattr(ctypes.CDLL(path), "MPIX_Query_cuda_support", None)
        if query is not None:
            return bool(query())
    return False


def describe_device(device: int) -> dict[str, Any]:
    """Describe the CUDA device of a rank and the software that drives it."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "uuid": str(properties.uuid),
        "memory_nbytes": properties.total_memory,
        "l2_nbytes": properties.L2_cache_size,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "mps": is_mps_running(),
        **query_driver(str(properties.uuid)),
    }


def query_driver(uuid: str) -> dict[str, str]:
    """Ask ``nvidia-smi`` for :data:`DRIVER_FACTS`; none if it is missing or lacks the device."""
    query = [
        "nvidia-smi",
        f"--id=GPU-{uuid.removeprefix('GPU-')}",
        f"--query-gpu={','.join(DRIVER_FACTS.values())}",
    ]
    try:
        smi = subprocess.run(
            [*query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in smi.stdout.strip().split(",")]
    return dict(zip(DRIVER_FACTS, values, strict=True)) if len(values) == len(DRIVER_FACTS) else {}


def _list_device_variables() -> dict[str, str]:
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name in DEVICE_VARIABLES or name.startswith(("NCCL_", "CUDA_MPS_"))
    }


def describe_rank(device: int | None = None) -> dict[str, Any]:
    """Return the facts that may differ from rank to rank.

    Args:
        device: number of the rank's CUDA device, if it uses one.
    """
    variables = {
        name: value
        for name, value in os.environ.items()
        if name in VARIABLES or name.startswith("UCX_")
    }
    rank_facts = {
        # Hosts of one digest are containers of one machine, or emulated there.
        "machine": hash_machine().hex()[:16],
        "cpu_model": read_cpu_model(),
        "cpus": os.cpu_count(),
        "cores": sorted(os.sched_getaffinity(0)),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "native_bf16": has_native_bf16(),
        "memory_available": measure_available_nbytes(),
        "kernel": platform.release(),
        "mpi_thread_level": MPI.Query_thread(),
        "variables": variables,
    }
    if device is not None:
        rank_facts["gpu"] = describe_device(device)
        rank_facts["cuda_aware_mpi"] = is_mpi_cuda_aware()
        variables |= _list_device_variables()
    return rank_facts


def describe_run(
    hosts: list[str], thread_count: int, core_count: int, device: int | None = None
) -> dict[str, Any]:
    """Return the facts that rank 0 records for the whole run.

    Args:
        core_count: number of cores granted to rank 0 before the program confined it to fewer.
        device: number of its CUDA device. Runs on different GPUs are not compared.
    """
    versions = {"dejavubench": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    # Cores are taken from the argument below: by now this rank may be confined to one.
    own_facts = describe_rank(device)
    if device is not None:
        own_facts["gpus"] = [own_facts["gpu"]["name"]]
    return {
        **own_facts,
        "cores": core_count,
        "hostnames": sorted(set(hosts)),
        "ranks": len(hosts),
        "threads": thread_count,
        "versions": versions,
        "mpi_library": MPI.Get_library_version().splitlines()[0].strip(),
        "source_revision": read_source_revision(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def read_hostname() -> str:
    """Return the name that the kernel gives this host, as records have it."""
    return socket.gethostname()
