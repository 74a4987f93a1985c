"""The CUDA devices of this machine, as the driver lists them, without torch."""

from __future__ import annotations

import ctypes
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Any

CUDA_DRIVER = "libcuda.so.1"
NO_DEVICE_ERRORS = frozenset({34, 100})
"""Errors of cuInit that mean "nothing to use": a stub in place of the driver, or no device."""


@dataclass(frozen=True)
class CudaDevice:
    """One CUDA device that this process may use.

    Attributes:
        name: e.g. ``NVIDIA H200``.
        nbytes: bytes of its whole memory, used or not.
        uuid: the same in every process, unlike the device's number.
    """

    name: str
    nbytes: int
    uuid: str


@cache
def list_cuda_devices(load: Callable[[str], Any] = ctypes.CDLL) -> tuple[CudaDevice, ...]:
    """Return the CUDA devices in the driver's order; none without a driver. Makes no context.

    Args:
        load: returns the driver's library by name, or raises OSError.

    Raises:
        RuntimeError: a call of the driver failed; the message names the call.
    """
    try:
        driver = load(CUDA_DRIVER)
    except OSError:
        return ()
    if (error := driver.cuInit(0)) in NO_DEVICE_ERRORS:
        return ()
    _check("cuInit", error)
    count = ctypes.c_int()
    _ask(driver, "cuDeviceGetCount", ctypes.byref(count))
    return tuple(_read_device(driver, device_index) for device_index in range(count.value))


@cache
def find_peer_pairs(load: Callable[[str], Any] = ctypes.CDLL) -> frozenset[tuple[int, int]]:
    """Return the pairs of devices of which the first can access the memory of the second.

    Args:
        load: as of :func:`list_cuda_devices`.

    Raises:
        RuntimeError: a call of the driver failed; the message names the call.
    """
    numbers = range(len(list_cuda_devices(load)))
    return frozenset(
        pair for pair in permutations(numbers, 2) if _can_access(load(CUDA_DRIVER), *pair)
    )


def _can_access(driver: Any, device_index: int, other_index: int) -> bool:
    can_access = ctypes.c_int()
    devices = [ctypes.c_int(), ctypes.c_int()]
    for device, number in zip(devices, (device_index, other_index), strict=True):
        _ask(driver, "cuDeviceGet", ctypes.byref(device), number)
    _ask(driver, "cuDeviceCanAccessPeer", ctypes.byref(can_access), *devices)
    return bool(can_access.value)


def _read_device(driver: Any, device_index: int) -> CudaDevice:
    device = ctypes.c_int()
    nbytes = ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    identity = ctypes.create_string_buffer(16)
    _ask(driver, "cuDeviceGet", ctypes.byref(device), device_index)
    _ask(driver, "cuDeviceGetName", name, len(name), device)
    # The second versions: sizes of 64 bits, and of a part of a GPU (MIG) its own identifier.
    _ask(driver, "cuDeviceTotalMem_v2", ctypes.byref(nbytes), device)
    _ask(driver, "cuDeviceGetUuid_v2", identity, device)
    return CudaDevice(name.value.decode(), nbytes.value, f"GPU-{uuid.UUID(bytes=identity.raw)}")


def _ask(driver: Any, call: str, *arguments: Any) -> None:
    _check(call, getattr(driver, call)(*arguments))


def _check(call: str, error: int) -> None:
    if error:
        raise RuntimeError(f"the CUDA driver does not work: {call} returned error {error}")
