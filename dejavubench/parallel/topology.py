"""Who each rank is: source or sink, which pipeline stage, which tensor rank. Pure; MPI is not imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Topology:
    """The place of one rank in a job of ``size`` ranks.

    Workers are numbered ``stage · tensor_size + tensor_rank``. Ranks 0 … workers−1 are the sources; in a job
    twice that large the following ones are the sinks, in the same order.

    Raises:
        ValueError: ``size`` is neither the number of workers nor twice that, or another number is out of range.
    """

    size: int
    rank: int
    tensor_size: int = 1
    stages: int = 1

    def __post_init__(self) -> None:
        if self.tensor_size < 1 or self.stages < 1:
            raise ValueError("tensor- and pipeline-parallel sizes must be positive")
        if self.size not in (self.workers, 2 * self.workers):
            raise ValueError(
                f"tensor parallel {self.tensor_size} × pipeline parallel {self.stages} runs on {self.workers} ranks, "
                f"or with sinks on {2 * self.workers}; there are {self.size}"
            )
        if not 0 <= self.rank < self.size:
            raise ValueError(f"there is no rank {self.rank} of {self.size}")

    @property
    def workers(self) -> int:
        """Workers of one side."""
        return self.tensor_size * self.stages

    @property
    def has_sinks(self) -> bool:
        return self.size == 2 * self.workers

    @property
    def role(self) -> Literal["source", "sink"]:
        return "source" if self.rank < self.workers else "sink"

    @property
    def worker(self) -> int:
        """This rank's number on its side."""
        return self.rank % self.workers

    @property
    def stage(self) -> int:
        return self.worker // self.tensor_size

    @property
    def tensor_rank(self) -> int:
        return self.worker % self.tensor_size

    @property
    def peer(self) -> int | None:
        """The rank of the same worker on the other side; None without sinks."""
        return (self.rank + self.workers) % self.size if self.has_sinks else None

    @property
    def sources(self) -> range:
        return range(self.workers)

    @property
    def sinks(self) -> range:
        return range(self.workers, self.size)

    def shard(self) -> tuple[int, int, int, int]:
        """(stage, stages, tensor rank, tensor size): which part of the model this worker holds."""
        return self.stage, self.stages, self.tensor_rank, self.tensor_size
