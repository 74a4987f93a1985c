"""GPUs of a host, and what NCCL and NIXL find there. Probes in processes of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dejavubench.machine.probe_process import ProbeError, run_command, run_probe
from dejavubench.parallel.mps import is_mps_running

# Each probe is a process of its own, so that a library's crash ends only the probe.

GPU_PROBE = "dejavubench.doctor.facts.gpu_probe"
"""Module that asks the driver for its devices."""

NCCL_PROBE = "dejavubench.doctor.facts.nccl_probe"
"""Module that lets NCCL connect two GPUs."""

NIXL_PROBE = "dejavubench.doctor.facts.nixl_probe"
"""Module that makes an agent of NIXL."""

PROBE_TIMEOUT_S = 15.0
"""Seconds for a probe in a process of its own: it imports torch or NCCL, and initialises CUDA."""

TOOL_TIMEOUT_S = 5.0
"""Seconds for a command-line tool, which hangs where a driver does."""

DEVICE_QUERY = (
    *("uuid", "driver_version", "memory.used", "utilization.gpu"),
    *("clocks_event_reasons.active", "pcie.link.width.current", "pcie.link.width.max"),
)
"""Fields that ``nvidia-smi`` is asked for."""

OLDER_FIELD_NAMES = {"clocks_event_reasons.active": "clocks_throttle_reasons.active"}
"""Names of fields in drivers before 535."""


@dataclass(frozen=True)
class GPUFacts:
    """One GPU.

    Attributes:
        name: its product's name.
        nbytes: bytes of its memory.
        uuid: identifies it.
        used: bytes of its memory in use; None if ``nvidia-smi`` does not say, as below.
        busy_percent: its utilisation.
        throttle: the mask of reasons for a low clock.
        pcie: width of its PCIe link now, and at most.
    """

    name: str
    nbytes: int
    uuid: str
    used: int | None = None
    busy_percent: int | None = None
    throttle: int | None = None
    pcie: tuple[int, int] | None = None


@dataclass(frozen=True)
class NCCLFacts:
    """NCCL in a process of its own.

    Attributes:
        versions: versions of NCCL by the package that brings it: ``torch`` and ``cupy``.
        between: how the first two GPUs exchanged a message, in NCCL's words, such as
            ``P2P/CUMEM``; None with one GPU.
        network: what NCCL would use between hosts, in its words, such as ``Socket eth0``.
        problem: why it could not be used.
    """

    versions: tuple[tuple[str, str], ...] = ()
    between: str | None = None
    network: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class NIXLFacts:
    """NIXL, if it is installed.

    Attributes:
        version: None if it is not installed.
        plugins: its plug-ins.
        backends: the ones that an agent uses by default.
        problem: why it could not be loaded.
    """

    version: str | None = None
    plugins: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class GPUHostFacts:
    """GPUs of a host.

    Attributes:
        gpus: each of them, in the order of the driver.
        driver: its version by ``nvidia-smi``; empty without a GPU, or if that tool is missing.
        driver_cuda: highest version of CUDA that the driver supports.
        torch_cuda: version of CUDA that torch was built for; None: torch is built for CPUs.
        peers: pairs of GPUs that can read each other's memory, by their numbers.
        links: the connection of each pair by ``nvidia-smi topo -m``, such as ``NV18``; empty if
            it does not say.
        smi: why ``nvidia-smi`` said nothing.
        mps: CUDA's Multi-Process Service runs.
        problem: why the driver could not be asked.
        nccl: what NCCL says; None if it was not asked.
    """

    gpus: tuple[GPUFacts, ...] = ()
    driver: str = ""
    driver_cuda: str = ""
    torch_cuda: str | None = None
    peers: frozenset[tuple[int, int]] = frozenset()
    links: tuple[tuple[int, int, str], ...] = ()
    smi: str | None = None
    mps: bool = False
    problem: str | None = None
    nccl: NCCLFacts | None = None


def read_gpu_facts() -> GPUHostFacts:
    """Ask the driver and the tools of this host. Nothing is asked where there is no driver."""
    try:
        probe_result = run_probe(GPU_PROBE, timeout_s=PROBE_TIMEOUT_S)
    except ProbeError as error:
        return GPUHostFacts(problem=str(error))
    if "problem" in probe_result:
        return GPUHostFacts(problem=probe_result["problem"])
    gpus = tuple(GPUFacts(**device) for device in probe_result["devices"])
    if not gpus:
        return GPUHostFacts()
    smi_answers: dict[str, Any] = {}
    try:
        gpus, smi_answers["driver"] = add_smi_answers(gpus, ask_smi())
        smi_answers["links"] = read_topology(
            run_command(["nvidia-smi", "topo", "-m"], TOOL_TIMEOUT_S)
        )
    except ProbeError as error:
        smi_answers["smi"] = str(error)
    return GPUHostFacts(
        gpus,
        driver_cuda=probe_result["driver_cuda"],
        torch_cuda=probe_result["torch_cuda"],
        peers=frozenset((gpu, peer) for gpu, peer in probe_result["peers"]),
        mps=is_mps_running(TOOL_TIMEOUT_S),
        nccl=read_nccl_facts(len(gpus)),
        **smi_answers,
    )


def ask_smi() -> str:
    """Ask ``nvidia-smi`` for :data:`DEVICE_QUERY`, in the words that its version understands."""
    try:
        return run_command(_make_smi_command(DEVICE_QUERY), TOOL_TIMEOUT_S)
    except ProbeError:  # it refuses the whole query for one name that it does not know
        return run_command(
            _make_smi_command([OLDER_FIELD_NAMES.get(name, name) for name in DEVICE_QUERY]),
            TOOL_TIMEOUT_S,
        )


def _make_smi_command(fields: Sequence[str]) -> list[str]:
    return ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]


def add_smi_answers(gpus: tuple[GPUFacts, ...], text: str) -> tuple[tuple[GPUFacts, ...], str]:
    """Return the GPUs with what ``nvidia-smi`` says of each, and the driver's version."""
    fields_by_uuid = {}
    for line in text.splitlines():
        fields = [value.strip() for value in line.split(",")]
        if len(fields) == len(DEVICE_QUERY):
            fields_by_uuid[fields[0]] = fields
    # By UUID: nvidia-smi lists all GPUs, and CUDA_VISIBLE_DEVICES may have reordered ours.
    gpus_with_answers = []
    for gpu in gpus:
        _, _, used_mib, busy_percent, throttle_mask, link_width, most_link_width = (
            fields_by_uuid.get(gpu.uuid, [""] * len(DEVICE_QUERY))
        )
        link_widths = (_parse_number(link_width), _parse_number(most_link_width))
        gpus_with_answers.append(
            replace(
                gpu,
                used=None if (mib := _parse_number(used_mib)) is None else mib << 20,
                busy_percent=_parse_number(busy_percent),
                throttle=int(throttle_mask, 16)
                if re.fullmatch("0x[0-9A-Fa-f]+", throttle_mask)
                else None,
                pcie=None
                if link_widths[0] is None or link_widths[1] is None
                else (link_widths[0], link_widths[1]),
            )
        )
    drivers = {fields[1] for fields in fields_by_uuid.values()}
    return tuple(gpus_with_answers), ", ".join(sorted(drivers))


def read_topology(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return the connection of each pair of GPUs from the table of ``nvidia-smi topo -m``."""
    # The heading may be underlined by an escape sequence.
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).split() for line in text.splitlines()]
    heading = next((line for line in lines if line[:1] == ["GPU0"]), [])
    columns = [name for name in heading if re.fullmatch(r"GPU\d+", name)]
    links = []
    for line in lines:
        if line and re.fullmatch(r"GPU\d+", line[0]) and line != heading:
            row_gpu = int(line[0][3:])
            # Not strict: columns of network adapters and CPU affinity follow those of the GPUs.
            for name, link in zip(columns, line[1:], strict=False):
                if row_gpu < int(name[3:]):
                    links.append((row_gpu, int(name[3:]), link))
    return tuple(links)


def _parse_number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def read_nccl_facts(gpu_count: int) -> NCCLFacts:
    """Let NCCL connect the first two GPUs of this host, or one with itself, and read its log."""
    try:
        probe_result = run_probe(NCCL_PROBE, str(min(gpu_count, 2)), timeout_s=PROBE_TIMEOUT_S)
    except ProbeError as error:
        return NCCLFacts(problem=str(error))
    return NCCLFacts(
        tuple(sorted(probe_result["versions"].items())),
        probe_result["between"],
        probe_result["network"],
        probe_result["problem"],
    )


def read_nixl_facts() -> NIXLFacts:
    """Let NIXL make an agent in a process of its own."""
    if find_spec("nixl") is None:
        return NIXLFacts()
    try:
        nixl_version = version("nixl")
    except PackageNotFoundError:
        nixl_version = "of unknown version"
    try:
        probe_result = run_probe(NIXL_PROBE, timeout_s=PROBE_TIMEOUT_S)
    except ProbeError as error:
        return NIXLFacts(nixl_version, problem=str(error))
    return NIXLFacts(nixl_version, tuple(probe_result["plugins"]), tuple(probe_result["backends"]))


def read_ucx_info(folder: Path | None = None) -> str | None:
    """Return the first line of ``ucx_info -v``; None if the program is missing or fails."""
    program = "ucx_info" if folder is None else str(folder / "ucx_info")
    try:
        lines = run_command([program, "-v"], TOOL_TIMEOUT_S).splitlines()
    except ProbeError:
        return None
    return lines[0].lstrip("# ") if lines else None
