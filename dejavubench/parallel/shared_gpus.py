"""Ranks that share a GPU: NCCL refuses them, unless it is made to believe otherwise (loopback)."""

from __future__ import annotations

import os
import socket
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from mpi4py import MPI

from dejavubench.parallel.nccl import read_nccl_version

FIRST_MULTI_RANK_VERSION = 23000
"""The first version of NCCL that lets two ranks share one GPU when told to."""


class SharedGpuError(Exception):
    """Ranks share a GPU, which NCCL refuses; the message names them."""


class PhysicalGpu(NamedTuple):
    """A physical GPU or an instance of one. Two ranks with equal ones share it."""

    host: str
    uuid: str


@dataclass(frozen=True)
class LoopbackFacts:
    """How NCCL works between ranks of one GPU, for records and labels.

    Attributes:
        loopback_kind: ``multi-rank`` (NCCL ≥ 2.30: peer memory) or ``fake hosts`` (sockets).
        version: version of NCCL, as NCCL's own number.
        rank_groups: the groups of ranks that share a GPU.
        variables: the environment variables that were set on this rank.
    """

    loopback_kind: Literal["multi-rank", "fake hosts"]
    version: int
    rank_groups: list[list[int]]
    variables: dict[str, str]

    def to_record(self) -> dict[str, object]:
        """Return the facts by their keys in records, which call the kind ``way``."""
        return {
            "way": self.loopback_kind,
            "version": self.version,
            "ranks": self.rank_groups,
            "variables": self.variables,
        }


def identify_gpu(device: torch.device) -> PhysicalGpu:
    """Return the physical GPU, or the instance of one, that a CUDA device of this process is."""
    return PhysicalGpu(socket.gethostname(), str(torch.cuda.get_device_properties(device).uuid))


def find_shared_gpus(gpus: Sequence[PhysicalGpu]) -> list[list[int]]:
    """Return the groups of ranks that share a GPU; ``gpus`` are all ranks', in their order."""
    ranks_by_gpu: dict[PhysicalGpu, list[int]] = defaultdict(list)
    for rank, gpu in enumerate(gpus):
        ranks_by_gpu[gpu].append(rank)
    return [group for group in ranks_by_gpu.values() if len(group) > 1]


def prepare_gpus(
    comm: MPI.Intracomm,
    gpu: PhysicalGpu,
    loopback: bool,
    read_version: Callable[[], int] | None = None,
) -> LoopbackFacts | None:
    """Find out whether ranks share GPUs and, if they may, tell NCCL so.

    Collective, and to be called before NCCL is initialised.

    Args:
        gpu: this rank's, see :func:`identify_gpu`.
        loopback: ranks may share a GPU.
        read_version: returns NCCL's version; called only if ranks share a GPU.

    Returns:
        How NCCL is made to work; None if each rank has a GPU of its own.

    Raises:
        SharedGpuError: on every rank, if some share a GPU although they may not.
    """
    gpus = comm.allgather(gpu)
    groups = find_shared_gpus(gpus)
    if not groups:
        return None
    if not loopback:
        raise SharedGpuError(
            "; ".join(
                f"ranks {_list_ranks(group)} share one GPU ({gpus[group[0]].uuid})"
                for group in groups
            )
            + ": NCCL needs a GPU for each rank, or --nccl-loopback, which labels every result "
            "as loopback on one GPU"
        )
    # The oldest library decides: a variable that it does not know would leave its rank refused.
    lowest_version = min(comm.allgather((read_version or read_nccl_version)()))
    is_one_host = len({member.host for member in gpus}) == 1
    loopback_kind, variables = _choose_loopback(lowest_version, comm.rank, is_one_host)
    os.environ.update(variables)
    return LoopbackFacts(loopback_kind, lowest_version, groups, variables)


def _list_ranks(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks[:-1])) + f" and {ranks[-1]}"


def _choose_loopback(
    version: int, rank: int, is_one_host: bool
) -> tuple[Literal["multi-rank", "fake hosts"], dict[str, str]]:
    """Return the kind of loopback, and variables that allow it and make it fast.

    Variables that the user has set are kept.
    """
    if version >= FIRST_MULTI_RANK_VERSION:
        tuning_variables = {
            "NCCL_BUFFSIZE": str(32 << 20),
            "NCCL_P2P_NVL_CHUNKSIZE": str(4 << 20),
            "NCCL_P2P_PCI_CHUNKSIZE": str(4 << 20),
        }
        return "multi-rank", {**_keep_unset(tuning_variables), "NCCL_MULTI_RANK_GPU_ENABLE": "1"}
    tuning_variables = {
        # Two are no faster by sockets, and take twice the multiprocessors from the model.
        "NCCL_MAX_P2P_NCHANNELS": "1",
        "NCCL_IB_DISABLE": "1",
        "NCCL_SOCKET_NTHREADS": "8",
        "NCCL_NSOCKS_PERTHREAD": "4",
        "NCCL_BUFFSIZE": str(32 << 20),
        "NCCL_P2P_NET_CHUNKSIZE": str(4 << 20),
    }
    if is_one_host:
        tuning_variables["NCCL_SOCKET_IFNAME"] = "lo"
    return "fake hosts", {**_keep_unset(tuning_variables), "NCCL_HOSTID": f"fakehost{rank}"}


def _keep_unset(variables: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name not in os.environ}
