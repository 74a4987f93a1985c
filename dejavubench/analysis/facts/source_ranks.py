"""Ranks and sources of a run, and the processor that the sources ran on, from its records."""

from __future__ import annotations

from dejavubench.records import RankInfo, Run


def count_ranks(run: Run) -> int:
    """Return how many ranks a run had; older records do not say it, but have a file of each."""
    return int(run.header.environment.get("ranks") or len(run.ranks) or 1)


def list_sources(run: Run) -> list[RankInfo]:
    """Return the records of the ranks that ran the model."""
    return [info for _, info in run.records_of(RankInfo) if info.role == "source"]


def list_sinks(run: Run) -> list[RankInfo]:
    """Return the facts of the ranks that receive."""
    return [info for _, info in run.records_of(RankInfo) if info.role == "sink"]


def ran_on_gpu(run: Run) -> bool:
    """Return whether the model ran on a CUDA device."""
    return any(info.device is not None for info in list_sources(run))


def name_processor(run: Run) -> str | None:
    """Return the name of the GPU that the model ran on, with the number of GPUs, or of the CPU."""
    devices = [info.device for info in list_sources(run) if info.device is not None]
    if not devices:
        return run.header.facts.cpu_model
    uuids = [info.facts.gpu.uuid for info in list_sources(run) if info.facts.gpu.uuid]
    gpu_count = len(set(uuids)) if len(uuids) == len(devices) else len(devices)
    return f"{gpu_count} × {devices[0]}" if gpu_count > 1 else devices[0]


def list_source_ranks(run: Run) -> set[int]:
    """Return the numbers of the ranks that ran the model."""
    return {rank for rank, info in run.records_of(RankInfo) if info.role == "source"}
