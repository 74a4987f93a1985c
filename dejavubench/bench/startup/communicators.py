"""The communicators of a run, each for one kind of message, so that no two kinds ever meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from mpi4py import MPI

from dejavubench.bench.startup.ranks import Ranks
from dejavubench.parallel.collectives import Collectives, MPICollectives
from dejavubench.parallel.nccl_collectives import NCCLCollectives


@dataclass(frozen=True)
class Communicators:
    """Duplicates of the world's communicator, and one of this rank's side.

    Destinations have communicators of their own; see ``transports``.

    Attributes:
        verification: pieces that sinks compare, and the probes of links.
        handover: tokens that sources hand over to sinks.
        side: the ranks of this side alone.
    """

    verification: MPI.Intracomm
    handover: MPI.Intracomm
    side: MPI.Intracomm

    @classmethod
    def make(cls, ranks: Ranks) -> Communicators:
        """Duplicate and split the world. Collective."""
        world = ranks.world
        verification, handover = world.Dup(), world.Dup()
        # Ordered by rank in the world, so worker w of a side has number w in it.
        side = cast(MPI.Intracomm, world.Split(0 if ranks.is_source else 1, ranks.rank))
        return cls(verification, handover, side)


def may_spin(ranks: Ranks, thread_count: int) -> bool:
    """Return whether collectives may busy-wait: every rank of this side here has its own cores."""
    return ranks.on_this_host(ranks.side) * thread_count <= ranks.cores_on_host


def connect_workers(
    comms: Communicators, ranks: Ranks, device: torch.device, spin: bool
) -> Collectives:
    """Connect the workers of this side, which hold parts of one model. Collective on the side."""
    # Alone, a worker sends nothing: NCCL, which takes seconds to start, is left out.
    side = ranks.topology.own_side()
    if device.type == "cuda" and side.source_count > 1:
        return NCCLCollectives(comms.side, side, spin, device)
    return MPICollectives(comms.side, side, spin)
