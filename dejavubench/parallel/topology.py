"""The place of each rank: source or sink, pipeline stage, tensor rank. MPI is not imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple


class ShardPlace(NamedTuple):
    """Stage and tensor rank of one worker, and how many its side has of each.

    The fields are in the order of those of a model's ``Shard``, which is made of them.
    """

    stage: int
    stage_count: int
    tensor_rank: int
    tensor_size: int


@dataclass(frozen=True)
class Topology:
    """The place of one rank in a job of ``size`` ranks.

    Workers of a side are numbered ``stage · tensor_size + tensor_rank``. The first ranks are the
    sources. The following ranks, if there are any, are the sinks.

    Attributes:
        tensor_size, stage_count: tensor-parallel degree and pipeline depth of the sources.
        sink_tensor_size, sink_stage_count: the same of the sinks; 0 means as the sources.

    Raises:
        ValueError: ``size`` is neither the number of sources nor that of both sides, or another
            number is out of range.
    """

    size: int
    rank: int
    tensor_size: int = 1
    stage_count: int = 1
    sink_tensor_size: int = 0
    sink_stage_count: int = 0

    def __post_init__(self) -> None:
        if self.tensor_size < 1 or self.stage_count < 1:
            raise ValueError("tensor- and pipeline-parallel sizes must be positive")
        if self.size not in (self.source_count, self.source_count + self.sink_count):
            both_sides = self.source_count + self.sink_count
            raise ValueError(
                f"tensor parallel {self.tensor_size} × pipeline parallel {self.stage_count} "
                f"runs on {self.source_count} ranks, or with sinks on {both_sides}; there are "
                f"{self.size}"
            )
        if not 0 <= self.rank < self.size:
            raise ValueError(f"there is no rank {self.rank} of {self.size}")

    @property
    def source_count(self) -> int:
        """Number of sources."""
        return self.tensor_size * self.stage_count

    @property
    def sink_count(self) -> int:
        """Number of sinks, if there are any."""
        return self.sink_width * (self.sink_stage_count or self.stage_count)

    @property
    def sink_width(self) -> int:
        """Tensor-parallel size of the sinks."""
        return self.sink_tensor_size or self.tensor_size

    @property
    def has_sinks(self) -> bool:
        """Whether the job has sinks beside its sources."""
        return self.size > self.source_count

    @property
    def role(self) -> Literal["source", "sink"]:
        """Side of this rank."""
        return "source" if self.rank < self.source_count else "sink"

    @property
    def worker_index(self) -> int:
        """This rank's number on its side."""
        return self.rank if self.rank < self.source_count else self.rank - self.source_count

    @property
    def stage(self) -> int:
        """Pipeline stage of this rank within its side, from 0."""
        return self.worker_index // self._width

    @property
    def tensor_rank(self) -> int:
        """Tensor-parallel rank of this rank within its stage, from 0."""
        return self.worker_index % self._width

    @property
    def _width(self) -> int:
        """Tensor-parallel size of this rank's side."""
        return self.tensor_size if self.role == "source" else self.sink_width

    @property
    def sources(self) -> range:
        """Ranks of the sources, in order of workers."""
        return range(self.source_count)

    @property
    def sinks(self) -> range:
        """Ranks of the sinks, in order of workers; empty without sinks."""
        return range(self.source_count, self.size)

    def own_side(self) -> Topology:
        """Return this rank's place in a job of its own side alone, as sources."""
        if self.role == "source":
            return Topology(
                self.source_count, self.worker_index, self.tensor_size, self.stage_count
            )
        return Topology(
            self.sink_count,
            self.worker_index,
            self._width,
            self.sink_stage_count or self.stage_count,
        )

    def shard(self) -> ShardPlace:
        """Return which part of the model this worker has."""
        # A sink's part is cut by its own side's setup, which may differ from the sources'.
        side = self.own_side()
        return ShardPlace(
            stage=side.stage,
            stage_count=side.stage_count,
            tensor_rank=side.tensor_rank,
            tensor_size=side.tensor_size,
        )
