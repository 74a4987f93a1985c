"""``python -m dejavubench.doctor.facts.gpu_probe``: the CUDA devices of this host, as JSON.

The driver is asked in this process, so that a rank neither initialises CUDA nor hangs with it.
"""

from __future__ import annotations

import ctypes
import json
import sys
from dataclasses import asdict
from itertools import permutations

from dejavubench.machine.gpu import CUDA_DRIVER, list_cuda_devices


def read_devices() -> dict[str, object]:
    """Return devices, versions and pairs with peer access; ``problem`` if the driver fails."""
    try:
        devices = list_cuda_devices()
    except RuntimeError as error:
        return {"problem": str(error)}
    if not devices:
        return {"devices": []}
    driver = ctypes.CDLL(CUDA_DRIVER)
    return {
        "devices": [asdict(device) for device in devices],
        "driver_cuda": _read_driver_cuda(driver),
        "torch_cuda": _read_torch_cuda(),
        "peers": [
            list(device_pair)
            for device_pair in permutations(range(len(devices)), 2)
            if _can_access_peer(driver, *device_pair)
        ],
    }


def _read_driver_cuda(driver: ctypes.CDLL) -> str:
    version = ctypes.c_int()  # 12040 is 12.4
    driver.cuDriverGetVersion(ctypes.byref(version))
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _can_access_peer(driver: ctypes.CDLL, device: int, peer: int) -> bool:
    # The driver is initialised already, by list_cuda_devices().
    answer = ctypes.c_int()
    error = driver.cuDeviceCanAccessPeer(ctypes.byref(answer), device, peer)
    return error == 0 and bool(answer.value)


def _read_torch_cuda() -> str | None:
    import torch

    return torch.version.cuda


if __name__ == "__main__":
    print(json.dumps(read_devices()))
    sys.stdout.flush()
