"""Probes of a host, which the first of its ranks runs for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dejavubench.doctor.bounded_collectives import BoundedCollectives
from dejavubench.doctor.facts.cpu import LoadFacts, read_cpu_facts
from dejavubench.doctor.facts.folders import FolderFacts, probe_folder, read_folder_facts
from dejavubench.doctor.facts.gpu import read_gpu_facts, read_nixl_facts, read_ucx_info
from dejavubench.doctor.facts.job import HostFacts, PortCheck, RankFacts
from dejavubench.doctor.facts.memory import read_memory_facts
from dejavubench.doctor.facts.network import (
    Listening,
    NetworkFacts,
    find_connection_problem,
    listen_on,
    read_network_facts,
)
from dejavubench.machine.file_system import NETWORK_FILE_SYSTEM, find_traits


def find_first_ranks(ranks: Sequence[RankFacts]) -> dict[str, int]:
    """Return the first rank of each host."""
    first_by_host: dict[str, int] = {}
    for rank_facts in ranks:
        first_by_host.setdefault(rank_facts.host, rank_facts.rank)
    return first_by_host


def read_host_facts(
    host: str,
    ranks: Sequence[int],
    load: LoadFacts,
    folders: Sequence[FolderFacts],
    network: NetworkFacts,
    port: Listening,
) -> HostFacts:
    """Read the rest of this host's facts and put them together."""
    return HostFacts(
        host,
        tuple(ranks),
        read_cpu_facts(),
        load,
        read_memory_facts(),
        tuple(folders),
        network,
        port,
        read_gpu_facts(),
        read_nixl_facts(),
        read_ucx_info(),
    )


# ---- file systems ----


def probe_folders(
    collectives: BoundedCollectives, ranks: Sequence[RankFacts], paths: Sequence[Path]
) -> list[FolderFacts]:
    """Probe each file system once, by the first rank that can. Collective."""
    own_facts = ranks[collectives.rank]
    first_by_host = find_first_ranks(ranks)
    own_folders = (
        [read_folder_facts(path) for path in paths]
        if first_by_host[own_facts.host] == own_facts.rank
        else []
    )
    folders_of_ranks = collectives.allgather(own_folders, "folders")
    # Two ranks that write to one disk at a time would each find half of its speed.
    # A file system of a network is one for all hosts; others are one per machine.
    probers: dict[tuple[str, ...], int] = {}
    for rank, folders in enumerate(folders_of_ranks):
        for folder in folders:
            probers.setdefault(identify_file_system(folder, ranks[rank].machine), rank)
    own_probes: dict[tuple[str, ...], FolderFacts] = {}
    for folder in own_folders:
        key = identify_file_system(folder, own_facts.machine)
        # Several of this host's folders may lie on one file system: it is probed once.
        if probers[key] == own_facts.rank and key not in own_probes:
            own_probes[key] = probe_folder(folder)
    facts_by_file_system: dict[tuple[str, ...], FolderFacts] = {}
    for probes_of_rank in collectives.allgather(own_probes, "probes of file systems"):
        facts_by_file_system |= probes_of_rank
    probed_folders = [
        (folder, facts_by_file_system[identify_file_system(folder, own_facts.machine)])
        for folder in own_folders
    ]
    return [add_speed(folder, probed_facts) for folder, probed_facts in probed_folders]


def identify_file_system(folder: FolderFacts, machine: str) -> tuple[str, ...]:
    """Return a key that folders on one file system share."""
    # A local device's numbers mean something on its machine alone.
    place = folder.place
    traits = None if place is None else find_traits(place.type)
    if place is not None and traits is not None and traits.text == NETWORK_FILE_SYSTEM:
        return (place.type, place.source)
    return (machine, folder.device)


def add_speed(folder: FolderFacts, probe: FolderFacts) -> FolderFacts:
    """Return a folder with the result of a probe of its file system."""
    return replace(folder, speed=probe.speed, problem=probe.problem)


# ---- ports ----


def probe_ports(
    collectives: BoundedCollectives, ranks: Sequence[RankFacts], requested_port: int
) -> tuple[Listening, NetworkFacts, list[PortCheck]]:
    """Listen on a port of each host, and connect from rank 0's host to the others. Collective."""
    own_facts = ranks[collectives.rank]
    first_by_host = find_first_ranks(ranks)
    network = read_network_facts()
    if first_by_host[own_facts.host] != own_facts.rank:
        # The same two collective steps as below, or the other ranks would wait for this one.
        collectives.allgather(([], Listening(requested_port, -1)), "ports")
        collectives.barrier("connections")
        return Listening(requested_port, -1), network, []
    with listen_on(requested_port) as listener:
        addresses = [interface.address for interface in network.interfaces if interface.address]
        listeners_of_ranks = collectives.allgather((addresses, listener), "ports")
        checks: list[PortCheck] = []
        for host, rank in first_by_host.items():
            peer_addresses, peer = listeners_of_ranks[rank]
            if own_facts.rank == 0 and rank and peer.problem is None:
                problem = find_connection_problem(peer_addresses, peer.port)
                checks.append(
                    PortCheck((0, rank), (own_facts.host, host), requested_port, peer.port, problem)
                )
        # Listeners stay open until rank 0's host has tried them all.
        collectives.barrier("connections")
    return listener, network, checks
