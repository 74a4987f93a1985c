"""Destinations of a run's arms: their facts, their shown names, and the hosts they link."""

from __future__ import annotations

from dejavubench.analysis.facts.source_ranks import list_sources, ran_on_gpu
from dejavubench.records import ArmInfo, RankInfo, Run
from dejavubench.records.destination_info import (
    DestinationInfo,
    Destinations,
    LoopbackInfo,
    destinations_of,
)


def run_destinations(run: Run) -> Destinations:
    """Return the facts of a run's destinations; older records get them from a frozen table."""
    return destinations_of(run.header.destinations, ran_on_gpu(run))


def info_of(run: Run, arm: ArmInfo) -> DestinationInfo | None:
    """Return the facts on the arm's destination; None for a baseline."""
    return run_destinations(run).get(arm.mode)


def loopback_of(run: Run, arm: ArmInfo) -> LoopbackInfo | None:
    """Return the variant of the arm's destination on one shared GPU; None if none is shared."""
    for mode, info in run_destinations(run).items():
        variant = info.loopback
        if variant is None:
            continue
        # An arm may be named for the loopback while its mode is the destination.
        is_named = variant.name in (arm.mode, arm.name.partition("@")[0])
        if is_named or (arm.mode == mode and _is_one_gpu(run)):
            return variant
    return None


def name_destination(run: Run, arm: ArmInfo) -> str:
    """Return the arm's mode, or the name of its loopback if a source and its sink share a GPU."""
    variant = loopback_of(run, arm)
    return arm.mode if variant is None else variant.name


def _is_one_gpu(run: Run) -> bool:
    infos = dict(run.records_of(RankInfo))
    pairs = [
        (info, infos[peer]) for info in list_sources(run) for peer in info.peers if peer in infos
    ]
    return any(
        # Numbers of devices differ between processes; a UUID is the GPU's own.
        source.facts.gpu.uuid and source.facts.gpu.uuid == sink.facts.gpu.uuid
        for source, sink in pairs
    )


def hosts_of(run: Run, arm: ArmInfo) -> str | None:
    """Return the place of the arm's destination relative to the source.

    ``two hosts on one machine`` are two networks of one machine, or two names of it: containers, or
    an emulation.

    Returns:
        ``local``, ``same host``, ``different hosts``, ``some on the same host``,
        ``two hosts on one machine`` or ``loopback on one GPU``. None for a baseline or if the
        records do not tell.
    """
    info = info_of(run, arm)
    if loopback_of(run, arm) is not None:
        return "loopback on one GPU"
    if not arm.is_streaming:
        return None
    if info is not None and info.local:
        return "local"
    is_external = info is not None and info.external_sink
    # `pairs` has (one host, one machine) for each source and sink.
    pairs = _list_external_pairs(run, arm.mode) if is_external else _list_pairs(run)
    same_host = [host for host, _ in pairs]
    if not same_host:
        return None
    if any(same_host):
        return "same host" if all(same_host) else "some on the same host"
    return "two hosts on one machine" if any(machine for _, machine in pairs) else "different hosts"


def _list_pairs(run: Run) -> list[tuple[bool, bool]]:
    """Return for each source and sink whether they share a host, and a machine."""
    infos = dict(run.records_of(RankInfo))
    return [
        (info.host == infos[peer].host, _is_one_machine(info, infos[peer]))
        for info in list_sources(run)
        for peer in info.peers
        if peer in infos
    ]


def _list_external_pairs(run: Run, mode: str) -> list[tuple[bool, bool]]:
    """Return whether each source shares a host, and a machine, with its sink outside the job."""
    external_sinks = [info.facts.sink_of(mode) for info in list_sources(run)]
    return [(sink.same_host, sink.same_machine) for sink in external_sinks if sink is not None]


def _is_one_machine(source: RankInfo, sink: RankInfo) -> bool:
    """Return whether two hosts are one machine; older records do not tell."""
    return bool(source.facts.machine) and source.facts.machine == sink.facts.machine
