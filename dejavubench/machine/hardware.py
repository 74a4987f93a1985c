"""Ground floor: what this machine's kernel says of its CPU and memory, and the CUDA driver of its devices.

Needs the standard library alone, and this package's errors.
"""

from __future__ import annotations

import ctypes
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dejavubench.errors import UsageError
from dejavubench.machine.cgroups import memory_room

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
"""Linux's names of the x86 extensions that multiply bf16; plain AVX-512 only emulates it."""

WITHOUT = "DEJAVUBENCH_WITHOUT"
"""Environment variable: features of this CPU to do without, e.g. ``bf16`` or ``amx,bf16``. It is for tests."""

FEATURES: dict[str, Callable[[str], bool]] = {
    "amx": lambda flag: flag.startswith("amx"),
    "bf16": BF16_FLAGS.__contains__,
    "avx512": lambda flag: flag.startswith(("avx512", "amx")),
}
"""Features that :data:`WITHOUT` may name, and Linux's flags of each. A feature can only be taken away."""


def flags_in(cpuinfo: str) -> frozenset[str]:
    """The instruction sets that the text of ``/proc/cpuinfo`` names; none where the CPU is no x86."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def has_bf16(cpuinfo: str) -> bool:
    """Whether the text of ``/proc/cpuinfo`` names a bf16 instruction set."""
    return not BF16_FLAGS.isdisjoint(flags_in(cpuinfo))


def features_left_out() -> tuple[str, ...]:
    """The features that :data:`WITHOUT` takes away.

    Raises:
        UsageError: it names something else.
    """
    named = tuple(word.strip() for word in os.environ.get(WITHOUT, "").split(",") if word.strip())
    for word in named:
        if word not in FEATURES:
            raise UsageError(f"{WITHOUT}={word}: it can name {', '.join(FEATURES)}")
    return named


@cache
def cpu_flags() -> frozenset[str]:
    """The instruction sets that this process uses, by Linux's names: the CPU's, less :func:`features_left_out`."""
    left_out = [FEATURES[name] for name in features_left_out()]
    try:
        found = flags_in(Path("/proc/cpuinfo").read_text())
    except OSError:
        return frozenset()
    return frozenset(flag for flag in found if not any(takes(flag) for takes in left_out))


def native_bf16() -> bool:
    """Whether this machine's CPU computes in bf16; false where there is no ``/proc/cpuinfo``."""
    return not BF16_FLAGS.isdisjoint(cpu_flags())


# ---- CUDA devices ----

CUDA_DRIVER = "libcuda.so.1"
NO_DEVICE = frozenset({34, 100})
"""What cuInit answers where there is nothing to use: a stub in the driver's place, no device."""


@dataclass(frozen=True)
class CudaDevice:
    """One CUDA device that this process may use.

    Attributes:
        name: e.g. ``NVIDIA H200``.
        nbytes: all of its memory, whoever uses it now.
        uuid: the same for every process, whatever number the device has there.
    """

    name: str
    nbytes: int
    uuid: str


@cache
def cuda_devices(load: Callable[[str], Any] = ctypes.CDLL) -> tuple[CudaDevice, ...]:
    """The CUDA devices in the driver's order; none where the driver or a device is missing. No context is made.

    Args:
        load: gives the driver's library by name, or raises OSError.

    Raises:
        RuntimeError: the driver is there and does not work; the message says at which call.
    """
    try:
        driver = load(CUDA_DRIVER)
    except OSError:
        return ()
    if (error := driver.cuInit(0)) in NO_DEVICE:
        return ()
    _check("cuInit", error)
    count = ctypes.c_int()
    _ask(driver, "cuDeviceGetCount", ctypes.byref(count))
    return tuple(_cuda_device(driver, number) for number in range(count.value))


def _cuda_device(driver: Any, number: int) -> CudaDevice:
    device, nbytes = ctypes.c_int(), ctypes.c_size_t()
    name, identity = ctypes.create_string_buffer(256), ctypes.create_string_buffer(16)
    _ask(driver, "cuDeviceGet", ctypes.byref(device), number)
    _ask(driver, "cuDeviceGetName", name, len(name), device)
    _ask(driver, "cuDeviceTotalMem_v2", ctypes.byref(nbytes), device)
    _ask(driver, "cuDeviceGetUuid_v2", identity, device)
    return CudaDevice(name.value.decode(), nbytes.value, f"GPU-{uuid.UUID(bytes=identity.raw)}")


def _ask(driver: Any, call: str, *arguments: Any) -> None:
    _check(call, getattr(driver, call)(*arguments))


def _check(call: str, error: int) -> None:
    if error:
        raise RuntimeError(f"the CUDA driver does not work: {call} gives error {error}")


# ---- NIXL ----


def has_nixl() -> bool:
    """Whether NIXL's Python package is installed here; it is not imported."""
    from importlib.util import find_spec

    return find_spec("nixl") is not None


# ---- memory ----


HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""torch's own environment variable."""


def prefer_huge_pages() -> None:
    """Have torch ask the kernel for huge pages, where it has allocated nothing yet; 0 in the variable says no.

    Models and caches are read and copied faster: a decode step took 0.85 of the time where the kernel gives them to
    who asks.
    """
    os.environ.setdefault(HUGE_PAGES, "1")


PRIMITIVE_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Environment variables of oneDNN and of torch: compiled products that each keeps, by shape; both default to 1024."""

KEPT_PRIMITIVES = 64
"""One point of a sweep needs about ten: its linears, their activations, and two numbers of rows."""


def bound_primitive_caches() -> None:
    """Have oneDNN and torch keep few compiled products, where neither has multiplied yet; a variable that is set wins.

    Each product takes 0.3 MB in either cache. Prompts of another length need products of their own, so with 1024 a
    sweep of prompt lengths grows by 2 MB a point, up to 600 MB.
    """
    for name in PRIMITIVE_CACHES:
        os.environ.setdefault(name, str(KEPT_PRIMITIVES))


def available_nbytes(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may still take: the least of MemAvailable and its control groups' room.

    Args:
        root: where ``proc`` and ``sys`` are.

    Raises:
        OSError: there is no ``/proc/meminfo``.
    """
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
            break
    else:
        raise OSError("/proc/meminfo has no MemAvailable")
    return min([free, *memory_room(root)])
