"""All facts of a job: of each rank, of each host, and of what lies between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dejavubench.doctor.facts.cpu import CPUFacts, LoadFacts
from dejavubench.doctor.facts.folders import FolderFacts
from dejavubench.doctor.facts.gpu import GPUHostFacts, NIXLFacts
from dejavubench.doctor.facts.limits import CoreFacts, LimitFacts
from dejavubench.doctor.facts.memory import MemoryFacts
from dejavubench.doctor.facts.mpi import MPIFacts, SoftwareFacts
from dejavubench.doctor.facts.network import Listening, NetworkFacts
from dejavubench.doctor.facts.ucx import UCXFacts
from dejavubench.doctor.links import Link


@dataclass(frozen=True)
class RankFacts:
    """One rank.

    Attributes:
        host: the name of its host.
        machine: identifies the running kernel, which containers of one machine share.
        mpi: MPI as this rank sees it.
        software: versions of Python, this program and some packages.
        cores: cores that it may run on.
        limits: limits of its process.
        ucx: UCX in its process.
        cross_memory: rank of this host whose memory this one has tried to read, and why it could
            not, or None; None if it is the only rank of its host.
    """

    rank: int
    host: str
    machine: str
    mpi: MPIFacts
    software: SoftwareFacts
    cores: CoreFacts
    limits: LimitFacts
    ucx: UCXFacts
    cross_memory: tuple[int, str | None] | None = None


@dataclass(frozen=True)
class HostFacts:
    """One host, as the first of its ranks sees it.

    Attributes:
        host: its name.
        ranks: numbers of its ranks.
        cpu: features of its CPU.
        load: its work while all ranks slept.
        memory: its memory.
        folders: the folders that a run would write to.
        network: its interfaces and ports.
        port: the port that a sink would use.
        gpus: its GPUs.
        nixl: NIXL, if it is installed.
        ucx_info: first line of ``ucx_info -v``; None if the program is missing or fails.
    """

    host: str
    ranks: tuple[int, ...]
    cpu: CPUFacts
    load: LoadFacts
    memory: MemoryFacts
    folders: tuple[FolderFacts, ...]
    network: NetworkFacts
    port: Listening
    gpus: GPUHostFacts
    nixl: NIXLFacts
    ucx_info: str | None = None


@dataclass(frozen=True)
class PortCheck:
    """A connection from one host to a port of another one.

    Attributes:
        ranks: the rank that connected, and the one that listened.
        hosts: their hosts.
        wanted: the port that a sink would use.
        port: the port in use for the probe; another one if the wanted one is taken.
        problem: why it could not connect.
    """

    ranks: tuple[int, int]
    hosts: tuple[str, str]
    wanted: int
    port: int
    problem: str | None


@dataclass(frozen=True)
class Job:
    """Everything that the checks judge.

    Attributes:
        ranks: each rank of the job.
        hosts: each host of the job.
        links: the links that were probed; ``pair_count`` is the number of all pairs of ranks.
        ports: the connections between hosts that were tried.
        missing: why each destination cannot run here, by its name; None if it can.
        problem: why the examination ended early.
    """

    ranks: tuple[RankFacts, ...] = ()
    hosts: tuple[HostFacts, ...] = ()
    links: tuple[Link, ...] = ()
    ports: tuple[PortCheck, ...] = ()
    missing: Mapping[str, str | None] = field(default_factory=dict)
    problem: str | None = None

    @property
    def everyone(self) -> tuple[int, ...]:
        """Numbers of all ranks, in order."""
        return tuple(rank.rank for rank in self.ranks)

    @property
    def pair_count(self) -> int:
        """Number of pairs of different ranks."""
        return len(self.ranks) * (len(self.ranks) - 1) // 2
