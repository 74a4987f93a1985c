"""The rank that probes run on, and the model whose caches and products they imitate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from mpi4py import MPI

from dejavubench.dejavulib.kv_cache import KVGeometry
from dejavubench.parallel.topology import Topology
from dejavubench.transports.loops.rank_pair import RankPair


@dataclass(frozen=True)
class ProbedRank:
    """Rank 0, or the first sink: the two that measure.

    Attributes:
        comm: a communicator on which nothing else is under way while probes run.
        device: the device that the rank computes on, or receives to.
    """

    topology: Topology
    comm: MPI.Intracomm
    device: torch.device

    @property
    def is_source(self) -> bool:
        """True on rank 0."""
        return self.topology.role == "source"

    def rank_pair(self) -> RankPair:
        """Return the turn-taking with the other one of the two."""
        # Rank 0 measures links with the first sink alone: a second pair would share them.
        peer = self.topology.sinks[0] if self.is_source else 0
        return RankPair(self.comm, peer, self.is_source)


@dataclass(frozen=True)
class ProbedModel:
    """Types and sizes of this worker's part of the model at a point.

    Attributes:
        dtype: the type of the cache.
        multiplied: the type that the model multiplies in.
        geometry: geometry of this worker's cache.
        input_len: positions of the prompt.
        slot_nbytes: bytes of a staging slot.
    """

    dtype: torch.dtype
    multiplied: torch.dtype
    geometry: KVGeometry
    input_len: int
    slot_nbytes: int
