"""Machine and destinations of a run, as its records tell them."""

from __future__ import annotations

from dejavubench.records import ArmInfo, Ceiling, RankInfo, Run
from dejavubench.records.destinations import (
    DestinationInfo,
    Destinations,
    LoopbackInfo,
    destinations_of,
)


def sources(run: Run) -> list[RankInfo]:
    return [info for _, info in run.of(RankInfo) if info.role == "source"]


def on_gpu(run: Run) -> bool:
    """Return whether the model ran on a CUDA device."""
    return any(info.device is not None for info in sources(run))


def processor(run: Run) -> str | None:
    """Return the name of the GPU that the model ran on, with the number of GPUs, or of the CPU."""
    names = [info.device for info in sources(run) if info.device is not None]
    if not names:
        return run.header.where.cpu_model
    known = [info.where.gpu.uuid for info in sources(run) if info.where.gpu.uuid]
    count = len(set(known)) if len(known) == len(names) else len(names)
    return f"{count} × {names[0]}" if count > 1 else names[0]


# ---- destinations ----


def destinations(run: Run) -> Destinations:
    return destinations_of(run.header.destinations, on_gpu(run))


def info_of(run: Run, arm: ArmInfo) -> DestinationInfo | None:
    """Return what analysis must know of the arm's destination; None for a baseline."""
    return destinations(run).get(arm.mode)


def loopback(run: Run, arm: ArmInfo) -> LoopbackInfo | None:
    """Return the variant of the arm's destination on one shared GPU; None if none is shared."""
    for mode, info in destinations(run).items():
        variant = info.loopback
        if variant is None:
            continue
        named = variant.name in (arm.mode, arm.name.partition("@")[0])
        if named or (arm.mode == mode and _one_gpu(run)):
            return variant
    return None


def destination(run: Run, arm: ArmInfo) -> str:
    """Return the arm's mode, or the name of its loopback if a source and its sink share a GPU."""
    variant = loopback(run, arm)
    return arm.mode if variant is None else variant.name


def _one_gpu(run: Run) -> bool:
    infos = dict(run.of(RankInfo))
    pairs = [(info, infos[peer]) for info in sources(run) for peer in info.peers if peer in infos]
    return any(
        here.where.gpu.uuid and here.where.gpu.uuid == there.where.gpu.uuid for here, there in pairs
    )


def hosts(run: Run, arm: ArmInfo) -> str | None:
    """Return the place of the arm's destination relative to the source.

    ``two hosts on one machine`` are two networks of one machine, or two names of it: containers, or
    an emulation.

    Returns:
        ``local``, ``same host``, ``different hosts``, ``some on the same host``,
        ``two hosts on one machine`` or ``loopback on one GPU``. None for a baseline or if the
        records do not tell.
    """
    info = info_of(run, arm)
    if loopback(run, arm) is not None:
        return "loopback on one GPU"
    if not arm.streams:
        return None
    if info is not None and info.local:
        return "local"
    external = info is not None and info.external_sink
    pairs = _external_pairs(run, arm.mode) if external else _pairs(run)
    same_host = [host for host, _ in pairs]
    if not same_host:
        return None
    if any(same_host):
        return "same host" if all(same_host) else "some on the same host"
    return "two hosts on one machine" if any(machine for _, machine in pairs) else "different hosts"


def _pairs(run: Run) -> list[tuple[bool, bool]]:
    """Return for each source and sink whether they share a host, and a machine."""
    infos = dict(run.of(RankInfo))
    return [
        (info.host == infos[peer].host, _one_machine(info, infos[peer]))
        for info in sources(run)
        for peer in info.peers
        if peer in infos
    ]


def _external_pairs(run: Run, mode: str) -> list[tuple[bool, bool]]:
    """Return the same for sinks that are no ranks; each source recorded it of its own sink."""
    known = [info.where.sink_of(mode) for info in sources(run)]
    return [(sink.same_host, sink.same_machine) for sink in known if sink is not None]


def _one_machine(source: RankInfo, sink: RankInfo) -> bool:
    """Return whether two hosts are one machine; older records do not tell."""
    return bool(source.where.machine) and source.where.machine == sink.where.machine


# ---- ceilings ----


def ceiling(
    run: Run, name: str, point: str, durability: str | None, unit: str = "GB/s"
) -> tuple[float, int] | None:
    """Return a ceiling, summed over the best of each rank that measured it, and their number.

    A ceiling measured at this point precedes one of the whole run. The disk's counts only for its
    own durability.
    """
    measured = [
        (rank, item)
        for rank, item in run.of(Ceiling)
        if item.name == name and item.unit == unit and item.durability in (None, durability)
    ]
    for where in (point, None):
        best: dict[int, float] = {}
        for rank, item in measured:
            if item.point == where:
                best[rank] = max(best.get(rank, 0.0), item.value)
        if best:
            return sum(best.values()), len(best)
    return None


def share(run: Run, name: str, point: str, rate: float, unit: str = "GB/s") -> float | None:
    """Return ``rate`` in percent of a ceiling; None unless every source measured the ceiling."""
    found = ceiling(run, name, point, None, unit)
    return 100 * rate / found[0] if found is not None and found[1] == len(sources(run)) else None
