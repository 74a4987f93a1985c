"""Notes under the tables, from the records: ceilings, GPU, hosts and staging memory."""

from __future__ import annotations

from dejavubench.analysis import rawloops, sourceranks
from dejavubench.analysis.armdestinations import loopback_of, run_destinations
from dejavubench.analysis.numbertexts import nbytes
from dejavubench.records import Ceiling, CopyWays, RankInfo, Run


def ceilings(run: Run) -> list[str]:
    best: dict[tuple[str, str | None], Ceiling] = {}
    for _, item in run.of(Ceiling):
        known = best.get((item.name, item.durability))
        if known is None or (
            item.value < known.value if item.unit == "us" else item.value > known.value
        ):
            best[item.name, item.durability] = item
    if not best:
        return []
    return ["ceilings: " + "; ".join(f"{i.name} {_measured(i)} ({i.shape})" for i in best.values())]


def _measured(item: Ceiling) -> str:
    if item.unit == "GFLOP/s" and item.value >= 1000:
        return f"{item.value / 1000:.4g} TFLOP/s"
    return f"{item.value:.4g} {item.unit.replace('us', 'µs')}"


def against_raw(run: Run) -> list[str]:
    words = [
        f"{what} {100 * item.median:.1f} [{100 * item.low:.1f}, {100 * item.high:.1f}] % "
        f"({item.samples} pairs)"
        for what, item in rawloops.against_raw(run).items()
    ]
    if not words:
        return []
    return [f"library's rate relative to a raw loop measured in turn with it: {'; '.join(words)}"]


def own_shares(run: Run) -> list[str]:
    words = [f"{name} {share:.0f} %" for name, share in rawloops.own_shares(run).items()]
    if not words:
        return []
    return [f"program's own share of each copy or message at the naive levels: {', '.join(words)}"]


def gpu(run: Run) -> list[str]:
    """Say what drives the GPU, and how chunks leave it."""
    if not sourceranks.on_gpu(run):
        return []
    where = run.header.where
    known = where.gpu
    link = f"PCIe {known.pcie_generation}.0 × {known.pcie_width}" if known.pcie_generation else None
    versions = (("driver", known.driver), ("CUDA", known.cuda), ("NCCL", known.nccl))
    words = [
        *(f"{what} {version}" for what, version in versions if version),
        link,
        {True: "MPS runs", False: "no MPS", None: None}[known.mps],
        {True: "MPI takes device memory", False: "MPI takes host memory only", None: None}[
            where.cuda_aware_mpi
        ],
    ]
    ways: dict[str, None] = {}
    layouts = {point.id: point.kv_layout for point in run.header.points}
    for _, record in run.of(CopyWays):
        ways |= dict.fromkeys(
            f"{layouts[record.point]} {phase}: {way}" for phase, way in record.ways.items()
        )
    notes = ["GPU: " + ", ".join(word for word in words if word)] if any(words) else []
    return notes + ([f"how chunks leave the GPU: {'; '.join(ways)}"] if ways else [])


def loopback(run: Run) -> list[str]:
    if all(loopback_of(run, arm) is None for arm in run.header.arms):
        return []
    shared = [
        "loopback on one GPU: both ranks share its processors and memory, so this is no rate of a "
        "remote GPU"
    ]
    if run.header.where.gpu.mps is False:
        shared.append("NO MPS: the ranks take turns on the GPU, which itself slows the model")
    return shared


def hosts(run: Run) -> list[str]:
    """Say which ranks are on which host, and the rate that the link is limited to."""
    ranks: dict[str, list[str]] = {}
    for rank, info in run.of(RankInfo):
        ranks.setdefault(info.host, []).append(f"{info.role} {rank}")
    infos = run_destinations(run)
    external = {
        arm.mode: None
        for arm in run.header.arms
        if arm.mode in infos and infos[arm.mode].external_sink
    }
    peers = run.header.experiment.get("peer") or ()
    words = [f"{', '.join(ranks_of_host)} on {host}" for host, ranks_of_host in ranks.items()]
    words += [f"{mode} to {peer}" for mode in external for peer in peers]
    link = run.header.experiment.get("link")
    said = f"; link between them: {link}" if link else ""
    return [f"hosts: {'; '.join(words)}{said}"] if len(ranks) > 1 or link else []


def staging(run: Run) -> list[str]:
    words = []
    for where, bound in (("", "staging_nbytes"), (" on its device", "staging_device_nbytes")):
        largest: dict[str, int] = {}
        for _, info in run.of(RankInfo):
            largest[info.role] = max(largest.get(info.role, 0), getattr(info, bound))
        words += [f"{nbytes(size)} per {role}{where}" for role, size in largest.items() if size]
    return [f"staging memory, at most: {', '.join(words)}"] if words else []
