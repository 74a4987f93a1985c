"""CPU features and CUDA devices; a driver in Python takes the library's place."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from dejavubench.errors import UsageError
from dejavubench.machine import cpu
from dejavubench.machine.gpu import CudaDevice, find_peer_pairs, list_cuda_devices

UUID = bytes(range(16))


# ---- instruction sets ----

FLAGS = {
    "avx512": {"avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16"},
    "avx2": {"avx2", "fma"},
}


@pytest.mark.parametrize(
    ("left_out", "remaining"),
    [
        ("", FLAGS["avx512"]),
        ("amx", {"avx2", "avx512f", "avx512_bf16"}),
        ("bf16", {"avx2", "avx512f", "amx_tile"}),
        ("amx, bf16", {"avx2", "avx512f"}),
        ("avx512", {"avx2"}),
    ],
)
def test_features_can_be_left_out(
    left_out: str, remaining: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cpu.WITHOUT_VARIABLE, left_out)
    for name, flags in FLAGS.items():
        (tmp_path / name).write_text(f"processor\t: 0\nflags\t\t: {' '.join(flags)}\n")
    assert cpu.read_cpu_flags(tmp_path / "avx512") == remaining
    assert cpu.has_native_bf16(tmp_path / "avx512") is bool({"avx512_bf16", "amx_bf16"} & remaining)
    assert cpu.read_cpu_flags(tmp_path / "avx2") == FLAGS["avx2"], "nothing is ever added"


def test_a_feature_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cpu.WITHOUT_VARIABLE, "avx1024")
    with pytest.raises(
        UsageError, match="DEJAVUBENCH_WITHOUT=avx1024: unknown feature; name amx, bf16, avx512"
    ):
        cpu.list_features_left_out()


# ---- CUDA devices ----


class Driver:
    """A driver with devices of the given names and sizes. It counts its calls.

    Args:
        peers: pairs of devices of which the first can access the second.
        errors: answers of calls other than 0.
    """

    def __init__(
        self, *devices: tuple[str, int], peers: Collection[tuple[int, int]] = (), **errors: int
    ) -> None:
        self.devices, self.errors, self.asked = devices, errors, 0
        self._peers = peers

    def load(self, name: str) -> Driver:
        assert name == "libcuda.so.1"
        return self

    def _answer(self, call: str) -> int:
        self.asked += 1
        return self.errors.get(call, 0)

    def cuInit(self, flags: int) -> int:  # noqa: N802 (the driver's own names)
        assert flags == 0
        return self._answer("cuInit")

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.devices)
        return self._answer("cuDeviceGetCount")

    def cuDeviceGet(self, device: Any, number: int) -> int:  # noqa: N802
        device._obj.value = 70 + number
        return self._answer("cuDeviceGet")

    def cuDeviceCanAccessPeer(  # noqa: N802
        self, can: Any, device: ctypes.c_int, other_device: ctypes.c_int
    ) -> int:
        can._obj.value = (device.value - 70, other_device.value - 70) in self._peers
        return self._answer("cuDeviceCanAccessPeer")

    def cuDeviceGetName(self, name: Any, length: int, device: ctypes.c_int) -> int:  # noqa: N802
        name.value = self.devices[device.value - 70][0].encode()[: length - 1]
        return self._answer("cuDeviceGetName")

    def cuDeviceTotalMem_v2(self, nbytes: Any, device: ctypes.c_int) -> int:  # noqa: N802
        nbytes._obj.value = self.devices[device.value - 70][1]
        return self._answer("cuDeviceTotalMem_v2")

    def cuDeviceGetUuid_v2(self, identity: Any, device: ctypes.c_int) -> int:  # noqa: N802
        identity.raw = bytes([device.value]) + UUID[1:]
        return self._answer("cuDeviceGetUuid_v2")


def test_devices_have_name_bytes_and_uuid() -> None:
    driver = Driver(("NVIDIA H200", 150_754_820_096), ("NVIDIA L4", 24 << 30))
    assert list_cuda_devices(driver.load) == (
        CudaDevice("NVIDIA H200", 150_754_820_096, "GPU-46010203-0405-0607-0809-0a0b0c0d0e0f"),
        CudaDevice("NVIDIA L4", 24 << 30, "GPU-47010203-0405-0607-0809-0a0b0c0d0e0f"),
    )


def test_pairs_of_devices_that_access_each_other_are_found() -> None:
    driver = Driver(*[("NVIDIA H200", 1)] * 3, peers={(0, 1), (1, 0), (2, 0)})
    assert find_peer_pairs(driver.load) == {(0, 1), (1, 0), (2, 0)}
    assert find_peer_pairs(Driver(("NVIDIA H200", 1)).load) == frozenset()
    assert find_peer_pairs(Driver(cuInit=100).load) == frozenset()
    with pytest.raises(RuntimeError, match="cuDeviceCanAccessPeer returned error 101"):
        find_peer_pairs(Driver(*[("NVIDIA H200", 1)] * 2, cuDeviceCanAccessPeer=101).load)


def test_the_driver_is_asked_once() -> None:
    driver = Driver(("NVIDIA H200", 1))
    load = driver.load
    devices, questions = list_cuda_devices(load), driver.asked
    assert list_cuda_devices(load) is devices
    assert driver.asked == questions > 0


def test_no_library_is_no_device() -> None:
    def load(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    assert list_cuda_devices(load) == ()


@pytest.mark.parametrize("error", [34, 100], ids=["stub", "no-device"])
def test_a_driver_without_a_device_is_no_device(error: int) -> None:
    assert list_cuda_devices(Driver(cuInit=error).load) == ()
    assert list_cuda_devices(Driver().load) == ()


@pytest.mark.parametrize(
    "call", ["cuInit", "cuDeviceGetCount", "cuDeviceGetName", "cuDeviceTotalMem_v2"]
)
def test_any_other_answer_is_an_error_that_names_the_call(call: str) -> None:
    with pytest.raises(
        RuntimeError, match=rf"^the CUDA driver does not work: {call} returned error 803$"
    ):
        list_cuda_devices(Driver(("NVIDIA H200", 1), peers=(), **{call: 803}).load)


@pytest.mark.gpu
def test_the_real_driver_agrees_with_torch_and_makes_no_context() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    program = (
        "import ctypes, sys\n"
        "from dejavubench.machine.gpu import list_cuda_devices\n"
        "devices = list_cuda_devices()\n"
        "active, flags = ctypes.c_int(), ctypes.c_uint()\n"
        "driver = ctypes.CDLL('libcuda.so.1')\n"
        "state = driver.cuDevicePrimaryCtxGetState\n"
        "assert state(0, ctypes.byref(flags), ctypes.byref(active)) == 0\n"
        "assert not {'torch', 'cupy'} & set(sys.modules)\n"
        "first = devices[0]\n"
        "print(len(devices), first.nbytes, first.uuid, active.value, first.name, sep='|')\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    properties = torch.cuda.get_device_properties(0)
    expected = [
        str(torch.cuda.device_count()),
        str(properties.total_memory),
        f"GPU-{properties.uuid}",
        "0",
        properties.name,
    ]
    assert completed.stdout.strip().split("|") == expected
