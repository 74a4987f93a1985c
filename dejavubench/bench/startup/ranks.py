"""Who this rank is, and how all ranks agree on what each of them has prepared."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from mpi4py import MPI

from dejavubench.bench.environment import facts
from dejavubench.config.experiment import Experiment
from dejavubench.config.points import PointSettings
from dejavubench.errors import UsageError
from dejavubench.machine.cpu import has_native_bf16
from dejavubench.parallel.topology import Topology

T = TypeVar("T")


def _catch_usage_error(prepare: Callable[[], T]) -> T | UsageError:
    """Return the answer or the error: raising at once would leave the other ranks waiting."""
    try:
        return prepare()
    except UsageError as error:
        return error


def agree(world: MPI.Intracomm, prepare: Callable[[], T]) -> T:
    """Run ``prepare`` on every rank and return this rank's answer. Collective.

    Raises:
        UsageError: on every rank, the first one that any rank raised.
    """
    answer_or_error = _catch_usage_error(prepare)
    # Only errors travel: an answer may be a communicator or a device.
    for problem in world.allgather(
        answer_or_error if isinstance(answer_or_error, UsageError) else None
    ):
        if problem is not None:
            raise problem
    assert not isinstance(answer_or_error, UsageError)  # it would have been raised above
    return answer_or_error


def agree_on_reasons(world: MPI.Intracomm, find: Callable[[], dict[str, str]]) -> dict[str, str]:
    """Put every rank's reasons together, by key; the lowest rank's counts. Collective.

    Raises:
        UsageError: as :func:`agree`.
    """
    reasons: dict[str, str] = {}
    for reasons_or_error in world.allgather(_catch_usage_error(find)):
        if isinstance(reasons_or_error, UsageError):
            raise reasons_or_error
        reasons = {**reasons_or_error, **reasons}  # those of lower ranks win
    return reasons


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """All ranks as one of them sees them.

    Attributes:
        world: the communicator for control messages between measurements.
        topology: this rank's place.
        hosts: the host of each rank.
        cores: cores granted to this rank, before the program confines it to fewer.
        cores_on_host: number of cores granted to the ranks of this host together.
        has_native_bf16: the CPU of every rank multiplies bf16.
        first_pid: process of rank 0, on its host.
    """

    world: MPI.Intracomm
    topology: Topology
    hosts: tuple[str, ...]
    cores: frozenset[int]
    cores_on_host: int
    has_native_bf16: bool
    first_pid: int

    @classmethod
    def find(cls, experiment: Experiment) -> Ranks:
        """Exchange hosts and cores with the other ranks. Collective."""
        world = MPI.COMM_WORLD
        topology = Topology(
            size=world.size,
            rank=world.rank,
            tensor_size=experiment.tensor_para_size,
            stage_count=experiment.pipeline_para_size,
            sink_tensor_size=experiment.sink_tensor_para_size or 0,
            sink_stage_count=experiment.sink_pipeline_para_size or 0,
        )
        cores = frozenset(os.sched_getaffinity(0))
        facts_of_ranks = world.allgather(
            (facts.read_hostname(), cores, has_native_bf16(), os.getpid())
        )
        hosts = tuple(host for host, *_ in facts_of_ranks)
        on_host = frozenset[int]().union(
            *(cores for host, cores, *_ in facts_of_ranks if host == hosts[world.rank])
        )
        has_native_bf16_everywhere = all(is_native for _, _, is_native, _ in facts_of_ranks)
        return cls(
            world=world,
            topology=topology,
            hosts=hosts,
            cores=cores,
            cores_on_host=len(on_host),
            has_native_bf16=has_native_bf16_everywhere,
            first_pid=facts_of_ranks[0][3],
        )

    @property
    def rank(self) -> int:
        """This rank's number."""
        return self.topology.rank

    @property
    def is_source(self) -> bool:
        """True if this rank runs the model; else it receives."""
        return self.topology.role == "source"

    @property
    def host(self) -> str:
        """This rank's host."""
        return self.hosts[self.rank]

    @property
    def side(self) -> range:
        """The ranks of this rank's side: all sources, or all sinks."""
        return self.topology.sources if self.is_source else self.topology.sinks

    def on_this_host(self, ranks: range) -> int:
        """Count the ``ranks`` that run on this rank's host."""
        return sum(self.hosts[rank] == self.host for rank in ranks)

    @property
    def own_core(self) -> int:
        """The core that this rank has at points that confine sources (``--confine``)."""
        # Ranks of one host take different cores, as long as there are enough.
        cores = sorted(self.cores)
        return cores[self.on_this_host(range(self.rank)) % len(cores)]

    def cores_at(self, settings: PointSettings) -> list[int]:
        """Return the cores that this rank runs on at a point."""
        return [self.own_core] if settings.confine and self.is_source else sorted(self.cores)
