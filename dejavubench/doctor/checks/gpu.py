"""GPUs: driver, torch, other users, links between GPUs, MPS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from dejavubench.doctor.checks.check import HostCheck
from dejavubench.doctor.facts.gpu import GPUFacts
from dejavubench.doctor.facts.job import HostFacts
from dejavubench.doctor.findings import Finding, bad, ok, warn
from dejavubench.units import format_binary_nbytes, format_count_of

MUCH_USED_NBYTES = 2 << 30
"""Bytes of GPU memory in use from which another program is likely to compute there."""

MUCH_BUSY_PCT = 5
"""Per cent of utilisation."""

SLOWDOWN_REASONS = {
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
"""Reasons for a low clock that spoil numbers, by NVML's bits. An idle GPU has none of them."""


def judge_gpus(host: HostFacts) -> Iterator[Finding]:
    """List the GPUs of a host, and how many ranks share them."""
    host_gpus = host.gpus
    if host_gpus.problem is not None:
        yield bad(
            host_gpus.problem,
            "Repair the driver (nvidia-smi must work), or measure with --device cpu.",
        )
    elif not host_gpus.gpus:
        yield ok("none: models run on the CPU")
    else:
        counts = Counter((gpu.name, gpu.nbytes) for gpu in host_gpus.gpus)
        models_text = ", ".join(
            f"{count} × {name}, {format_binary_nbytes(nbytes)}"
            for (name, nbytes), count in counts.items()
        )
        rank_count = len(host.ranks)
        count = len(host_gpus.gpus)
        yield ok(
            models_text + (f"; {rank_count} ranks share {count}" if rank_count > count else "")
        )


def judge_driver(host: HostFacts) -> Iterator[Finding]:
    """Judge whether the driver is recent enough for the CUDA of this torch."""
    host_gpus = host.gpus
    if not host_gpus.gpus:
        return
    driver_version = (
        host_gpus.driver or f"version unknown (nvidia-smi: {host_gpus.smi or 'says nothing'})"
    )
    reading = f"{driver_version}, for CUDA up to {host_gpus.driver_cuda}"
    if host_gpus.torch_cuda is None:
        yield warn(
            f"{reading}; torch is built for CPUs, so GPUs are not used",
            "Install a CUDA build of torch, or measure with --device cpu.",
        )
    # Within one major version, CUDA's libraries run on older drivers.
    elif _parse_major_version(host_gpus.torch_cuda) > _parse_major_version(host_gpus.driver_cuda):
        yield bad(
            f"{reading}; torch is built for CUDA {host_gpus.torch_cuda}",
            "Update the driver, or install a torch for an older CUDA.",
        )
    else:
        yield ok(f"{reading}; torch is built for CUDA {host_gpus.torch_cuda}")


def _parse_major_version(version: str) -> int:
    """Return the major number of a version; 0 if there is none."""
    major_number = version.partition(".")[0]
    return int(major_number) if major_number.isdecimal() else 0


def judge_state(host: HostFacts) -> Iterator[Finding]:
    """Judge other programs, low clocks and narrow PCIe links of each GPU."""
    host_gpus = host.gpus
    if not host_gpus.gpus:
        return
    if host_gpus.smi is not None:
        yield warn(
            f"not readable: {host_gpus.smi}", "Install nvidia-smi, which reads clocks and use."
        )
        return
    problems = [
        text
        for gpu_index, gpu in enumerate(host_gpus.gpus)
        for text in _find_problems(gpu_index, gpu)
    ]
    if problems:
        advice = "End other programs on these GPUs, or let them cool; nvidia-smi -q says more."
        yield warn("; ".join(problems), advice)
    else:
        most_used_nbytes = max((gpu.used or 0) for gpu in host_gpus.gpus)
        yield ok(
            f"idle, at most {format_binary_nbytes(most_used_nbytes)} in use, no slowdown, full "
            "PCIe width"
        )


def _find_problems(gpu_index: int, gpu: GPUFacts) -> Iterator[str]:
    """Yield each state of a GPU that would spoil its numbers."""
    name = f"GPU {gpu_index}"
    if gpu.used is not None and gpu.used > MUCH_USED_NBYTES:
        yield f"{name} has {format_binary_nbytes(gpu.used)} in use"
    if gpu.busy_percent is not None and gpu.busy_percent > MUCH_BUSY_PCT:
        yield f"{name} is {gpu.busy_percent} % busy"
    for bit, reason in SLOWDOWN_REASONS.items():
        if gpu.throttle is not None and gpu.throttle & bit:
            yield f"{name} is slowed: {reason}"
    # The link's speed falls while a GPU is idle, but its width stays: fewer lanes are a fault.
    if gpu.pcie is not None and gpu.pcie[0] < gpu.pcie[1]:
        yield f"{name} has {gpu.pcie[0]} of {gpu.pcie[1]} PCIe lanes"


def judge_nvlink(host: HostFacts) -> Iterator[Finding]:
    """Name the link of each pair of GPUs."""
    host_gpus = host.gpus
    if len(host_gpus.gpus) < 2:
        if host_gpus.gpus:
            yield ok("one GPU, no link between GPUs")
        return
    if not host_gpus.links:
        yield ok(f"not readable: {host_gpus.smi or 'nvidia-smi topo -m has no matrix'}")
        return
    pairs_of_link: dict[str, list[str]] = {}
    for gpu, peer, link in host_gpus.links:
        pairs_of_link.setdefault(link, []).append(f"{gpu}-{peer}")
    count = len(host_gpus.links)
    yield ok(
        "; ".join(
            f"{link}: {'all pairs' if len(pairs) == count else ' '.join(pairs)}"
            for link, pairs in pairs_of_link.items()
        )
    )


def judge_peer_access(host: HostFacts) -> Iterator[Finding]:
    """Judge whether each pair of GPUs reads the other one's memory directly."""
    host_gpus = host.gpus
    count = len(host_gpus.gpus)
    if count < 2:
        return
    # Access is asked for in both directions: some boards grant it in one alone.
    lacking_pairs = [
        f"{gpu}-{peer}"
        for gpu in range(count)
        for peer in range(count)
        if gpu < peer and not {(gpu, peer), (peer, gpu)} <= host_gpus.peers
    ]
    if lacking_pairs:
        yield warn(
            f"not between GPUs {' '.join(lacking_pairs)}: messages go through host memory",
            "Choose connected GPUs with CUDA_VISIBLE_DEVICES; in virtual machines, look at ACS.",
        )
    else:
        yield ok("between all pairs")


def judge_mps(host: HostFacts) -> Iterator[Finding]:
    """Judge whether ranks that share a GPU may compute at the same time."""
    host_gpus = host.gpus
    rank_count = len(host.ranks)
    if not host_gpus.gpus:
        return
    # Without the service, kernels of two processes never overlap: they take turns.
    runs = "runs" if host_gpus.mps else "does not run"
    if rank_count > len(host_gpus.gpus) and not host_gpus.mps:
        sharing = f"{format_count_of(rank_count, 'rank')} would take turns on {len(host_gpus.gpus)}"
        yield warn(f"{runs}: {sharing}", "Start it: nvidia-cuda-mps-control -d.")
    else:
        yield ok(runs)


CHECKS = (
    HostCheck("GPUs", judge_gpus),
    HostCheck("CUDA driver", judge_driver),
    HostCheck("GPU state", judge_state),
    HostCheck("GPU links", judge_nvlink),
    HostCheck("peer access", judge_peer_access),
    HostCheck("MPS", judge_mps),
)
