"""The device of each rank, and the types that a model computes in there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from mpi4py import MPI

from dejavubench.bench.assignment.runnable import RunnablePlan
from dejavubench.bench.startup.ranks import Ranks, agree
from dejavubench.config.experiment import Experiment
from dejavubench.errors import UsageError
from dejavubench.machine.gpu import list_cuda_devices
from dejavubench.models.dtypes import compute_dtype
from dejavubench.parallel.shared_gpus import (
    LoopbackFacts,
    SharedGpuError,
    identify_gpu,
    prepare_gpus,
)
from dejavubench.planning.devices import explain_too_few_devices, number_devices


@dataclass(frozen=True)
class Devices:
    """The devices of a run.

    Attributes:
        own_device: the device where this rank computes, or receives what comes from a GPU's memory.
        compute_type: the type of device that all workers compute on.
        has_native_bf16: the CPU of every rank multiplies bf16.
        loopback: facts on how NCCL works between ranks that share a GPU, where they may and do.
    """

    own_device: torch.device
    compute_type: str
    has_native_bf16: bool
    loopback: LoopbackFacts | None

    @property
    def on_cuda(self) -> bool:
        """True if this rank uses a CUDA device."""
        return self.own_device.type == "cuda"

    @property
    def number(self) -> int | None:
        """The number of this rank's CUDA device on its host; None without one."""
        return self.own_device.index if self.on_cuda else None

    @classmethod
    def prepare(cls, experiment: Experiment, ranks: Ranks, rank_device: torch.device) -> Devices:
        """Prepare NCCL for ranks that share a GPU. Collective.

        Args:
            rank_device: this rank's device, from :func:`take_device`.

        Raises:
            UsageError: on every rank, if ranks share a GPU without leave.
        """
        compute_type = "cuda" if experiment.device == "cuda" else "cpu"
        loopback = _share_devices(ranks, rank_device, experiment.nccl_loopback)
        return cls(rank_device, compute_type, ranks.has_native_bf16, loopback)

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return the type in which all workers of the model multiply."""
        return compute_dtype(dtype, self.compute_type, self.has_native_bf16)


def take_device(runnable: RunnablePlan, ranks: Ranks) -> torch.device:
    """Choose the device of this rank among those of its host, if it needs one.

    Raises:
        UsageError: this host has no CUDA device, or too few.
    """
    plan = runnable.plan
    on_sinks = any(arm.fills_sink_devices for arm in runnable.arms)
    if plan.experiment.device != "cuda" or not (ranks.is_source or on_sinks):
        return torch.device("cpu")
    device_count = torch.cuda.device_count()
    if device_count == 0:
        raise UsageError(f"--device cuda: {ranks.host} has no CUDA device for rank {ranks.rank}")
    topology = ranks.topology
    source_count, sink_count = map(ranks.on_this_host, (topology.sources, topology.sinks))
    refusal = explain_too_few_devices(plan, list_cuda_devices(), source_count, sink_count)
    if refusal:
        raise UsageError(refusal)
    assigned_devices = number_devices(plan, source_count, sink_count, device_count)
    numbers_of_role = assigned_devices.sources if ranks.is_source else assigned_devices.sinks
    # Ranks of one side take the devices of their host in turn, in the order of their numbers.
    ranks_before = ranks.on_this_host(range(ranks.side.start, ranks.rank))
    device = torch.device("cuda", numbers_of_role[ranks_before])
    torch.cuda.set_device(device)
    return device


def _share_devices(ranks: Ranks, device: torch.device, is_allowed: bool) -> LoopbackFacts | None:
    """Tell NCCL which ranks share a GPU. NCCL is not loaded where no two ranks use GPUs."""
    # This is no matter of the destination `nccl` alone: the parts of one model that lie on several
    # GPUs exchange their hidden states by NCCL, whatever the destination is.
    on_cuda = device.type == "cuda"
    with_device = cast(MPI.Intracomm, ranks.world.Split(0 if on_cuda else 1, ranks.rank))

    def prepare() -> LoopbackFacts | None:
        if not on_cuda or with_device.size == 1:
            return None
        try:
            return prepare_gpus(with_device, identify_gpu(device), is_allowed)
        except SharedGpuError as error:
            raise UsageError(str(error)) from None

    try:
        return agree(ranks.world, prepare)
    finally:
        with_device.Free()
