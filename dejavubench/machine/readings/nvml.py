"""Clocks, power, limits and NVLink of GPUs, from NVIDIA's management library (``nvidia-ml-py``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dejavubench.machine.readings.interfaces import InterfaceCounts
from dejavubench.machine.readings.not_readable import NotReadableError

NOT_INSTALLED = "nvidia-ml-py is not installed: pip install 'dejavubench[nvml]'"
"""Reason of missing readings."""

LIMIT_COUNTERS = {
    "power": "NVML_FI_DEV_PERF_POLICY_POWER",
    "temperature": "NVML_FI_DEV_PERF_POLICY_THERMAL",
    "board limit": "NVML_FI_DEV_PERF_POLICY_BOARD_LIMIT",
    "reliability": "NVML_FI_DEV_PERF_POLICY_RELIABILITY",
}
"""Counters of the nanoseconds in which a limit held the clock down, by our words."""

SLOWDOWN_REASONS = {
    "power cap": "nvmlClocksThrottleReasonSwPowerCap",
    "slowdown by hardware": "nvmlClocksThrottleReasonHwSlowdown",
    "temperature (software)": "nvmlClocksThrottleReasonSwThermalSlowdown",
    "temperature (hardware)": "nvmlClocksThrottleReasonHwThermalSlowdown",
    "power brake": "nvmlClocksThrottleReasonHwPowerBrakeSlowdown",
}
"""Reasons for a lower clock that spoil a measurement. Idleness and chosen clocks do not."""

_LINK_COUNTERS = {
    "out": "NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX",
    "in": "NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX",
}
_ALL_LINKS = 2**32 - 1
_KIB = 1024


@dataclass(frozen=True)
class GpuReading:
    """One GPU at one moment. A value that cannot be read is None.

    Attributes:
        clock_mhz: clock of the streaming multiprocessors.
        energy_j: energy since the driver was loaded.
        limited_s: seconds since then in which a limit held the clock down (:data:`LIMIT_COUNTERS`).
        reasons: reasons of :data:`SLOWDOWN_REASONS` that hold now.
        links: bytes over all NVLinks; its packets are 0.
        unreadable: the reason for each value that cannot be read.
    """

    clock_mhz: float | None = None
    temperature_c: float | None = None
    energy_j: float | None = None
    limited_s: dict[str, float] | None = None
    reasons: list[str] | None = None
    links: InterfaceCounts | None = None
    unreadable: dict[str, str] = field(default_factory=dict)


def _load_library() -> Any:
    try:
        import pynvml
    except ImportError:
        raise NotReadableError(NOT_INSTALLED) from None
    return pynvml


class GpuReader:
    """Reads GPUs by their identifiers.

    Args:
        uuids: as torch gives them, without a prefix.
        nvml: the module ``pynvml``; None: import it.

    Raises:
        NotReadableError: the library is missing, or does not know a GPU.
    """

    def __init__(self, uuids: Sequence[str], nvml: Any = None) -> None:
        self._nvml = library = _load_library() if nvml is None else nvml
        try:
            library.nvmlInit()
            self._devices = {
                uuid: library.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
                for uuid in uuids
            }
        except library.NVMLError as error:
            raise NotReadableError(f"NVML: {error}") from None

    def read(self) -> dict[str, GpuReading]:
        """Return each GPU's reading, by its identifier."""
        return {uuid: self._read_device(device) for uuid, device in self._devices.items()}

    def _read_device(self, device: Any) -> GpuReading:
        """Read one GPU; a value that this GPU or driver lacks is None and gets its reason."""
        nvml = self._nvml
        unread_reasons: dict[str, str] = {}

        def ask(subject: str, call: str, *arguments: Any) -> Any:
            try:
                return getattr(nvml, call)(device, *arguments)
            except (nvml.NVMLError, AttributeError) as error:  # an older library lacks the call
                unread_reasons[subject] = f"{call}: {error}"
                return None

        energy_mj = ask("energy", "nvmlDeviceGetTotalEnergyConsumption")
        reason_bits = ask("reasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
        clock_mhz = ask("clock", "nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM)
        temperature_c = ask("temperature", "nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU)
        field_names = LIMIT_COUNTERS | _LINK_COUNTERS
        fields = ask("limits", "nvmlDeviceGetFieldValues", self._list_fields(field_names))
        counts = self._read_counts(field_names, fields or [], unread_reasons)
        out_kib = counts.pop("out", None)
        received_kib = counts.pop("in", None)
        links = None
        if out_kib is not None and received_kib is not None:
            links = InterfaceCounts(_KIB * out_kib, 0, _KIB * received_kib, 0)
        elif fields is None:
            unread_reasons["NVLink"] = unread_reasons["limits"]
        return GpuReading(
            clock_mhz=clock_mhz,
            temperature_c=temperature_c,
            energy_j=None if energy_mj is None else energy_mj / 1e3,
            limited_s={name: count / 1e9 for name, count in counts.items()} if counts else None,
            reasons=None
            if reason_bits is None
            else [
                name for name, bit in SLOWDOWN_REASONS.items() if reason_bits & getattr(nvml, bit)
            ],
            links=links,
            unreadable=unread_reasons,
        )

    def _list_fields(self, field_names: dict[str, str]) -> list[tuple[int, int]]:
        """Return the fields to ask for; those of NVLink are of all links together."""
        return [
            (getattr(self._nvml, name), _ALL_LINKS if key in _LINK_COUNTERS else 0)
            for key, name in field_names.items()
        ]

    def _read_counts(
        self, field_names: dict[str, str], fields: Sequence[Any], unread_reasons: dict[str, str]
    ) -> dict[str, int]:
        counts = {}
        for (key, name), value in zip(field_names.items(), fields, strict=bool(fields)):
            if value.nvmlReturn == self._nvml.NVML_SUCCESS:
                counts[key] = int(value.value.ullVal)
            else:
                reason = self._nvml.NVMLError(value.nvmlReturn)
                unread_reasons["NVLink" if key in _LINK_COUNTERS else key] = f"{name}: {reason}"
        return counts
