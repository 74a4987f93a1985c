"""What an experiment consists of: points (one combination of its lists) and arms (one way to stream)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from dejavubench.models.hub.modelspec import ModelSpec

if TYPE_CHECKING:
    from dejavubench.records import ArmInfo, PointInfo

Mode = Literal["none", "host", "disk", "mpi", "nccl", "nixl", "tcp", "swap-host", "swap-disk"]
Store = Literal["host", "disk"]
DataType = Literal["fp32", "bf16", "fp16"]
LayoutName = Literal["ft", "hnd", "nhd"]
Durability = Literal["fdatasync", "direct", "page-cache"]

ITEMSIZE: dict[DataType, int] = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Bytes of one element of the cache."""

REMOTE: frozenset[Mode] = frozenset({"mpi", "nccl", "nixl"})
"""Destinations that are other ranks; the sink of ``tcp`` is none."""

ON_DISK: frozenset[Mode] = frozenset({"disk", "swap-disk"})
"""Ways of streaming whose caches are in files."""

TO_DEVICE: frozenset[Mode] = frozenset({"nccl", "nixl"})
"""Destinations that bring a cache of a CUDA device to the memory of another one."""

FT_VECTOR_BYTES = 16


@dataclass(frozen=True)
class Arm:
    """One (destination, level) of a run.

    Attributes:
        name: unique within the run: ``none``, ``none#2``, ``mpi@3``, ``disk@0``, ``disk@3/page-cache``,
            ``nccl-loopback@3``, ``swap-host``.
        mode: the destination.
        level: None for ``none``.
        durability: None but for ``disk``.
        role: ``baseline`` (``none``), ``repeat`` (``none#2``) or ``streaming``.
        skipped: why it cannot run here; its row says so.
        loopback: source and sink share one GPU, so that nothing leaves it; its name says so wherever it is shown.
    """

    name: str
    mode: Mode
    level: str | None = None
    durability: Durability | None = None
    role: Literal["baseline", "repeat", "streaming"] = "streaming"
    skipped: str | None = None
    loopback: bool = False

    @property
    def swaps(self) -> bool:
        """Whether microbatches take turns in fewer caches than there are of them."""
        return self.mode in ("swap-host", "swap-disk")

    @property
    def on_disk(self) -> bool:
        return self.mode in ON_DISK

    @property
    def remote(self) -> bool:
        """Whether other ranks receive what it streams."""
        return self.mode in REMOTE

    def info(self) -> ArmInfo:
        """The arm as it is recorded."""
        from dejavubench.records import ArmInfo

        return ArmInfo(
            name=self.name,
            mode=self.mode,
            level=self.level,
            durability=self.durability,
            role=self.role,
        )


class Split(NamedTuple):
    """How one side holds the model's cache."""

    tensor_para_size: int
    pipeline_para_size: int
    ubatch_size: int

    def __str__(self) -> str:
        return f"tp{self.tensor_para_size}-pp{self.pipeline_para_size}-b{self.ubatch_size}"


@dataclass(frozen=True)
class Point:
    """One combination of an experiment's lists; ``positions`` are those of the cache.

    ``sinks``: how they hold what they receive, where that is not as the sources do. ``handed_over``: new tokens after
    which sinks go on in the sources' place; None: sinks only receive.
    """

    id: str
    spec: ModelSpec
    data_type: DataType
    kv_layout: LayoutName
    ubatch_size: int
    input_len: int
    output_len: int
    positions: int
    tensor_para_size: int
    pipeline_para_size: int
    sinks: Split | None = None
    handed_over: int | None = None

    @property
    def sources(self) -> Split:
        """How the sources hold the cache."""
        return Split(self.tensor_para_size, self.pipeline_para_size, self.ubatch_size)

    @property
    def requests(self) -> int:
        """Requests of all microbatches in flight."""
        return self.pipeline_para_size * self.ubatch_size

    @property
    def itemsize(self) -> int:
        """Bytes of one element of the cache."""
        return ITEMSIZE[self.data_type]

    @property
    def written(self) -> int:
        """Positions that keys and values are written to: P + T − 1."""
        return self.input_len + self.output_len - 1

    @property
    def generated(self) -> int:
        """New tokens of each request that the sources generate."""
        return self.handed_over or self.output_len

    @property
    def streamed(self) -> int:
        """Positions whose keys and values are streamed: all that the sources write."""
        return self.input_len + self.generated - 1

    @property
    def token_nbytes(self) -> int:
        """Bytes of one position of one request: K and V of all layers and heads of the whole model."""
        return (
            2 * self.spec.layer_num * self.spec.kv_heads * self.spec.size_per_head * self.itemsize
        )

    @property
    def streamed_nbytes(self) -> int:
        """Bytes of one microbatch's cache over all workers: what a streaming arm moves for it."""
        return self.ubatch_size * self.streamed * self.token_nbytes

    @property
    def problem(self) -> str | None:
        """Why this combination can run nowhere; None if it can."""
        spec = self.spec
        if spec.context is not None and self.written > spec.context:
            return (
                f"input_len {self.input_len} and output_len {self.output_len} take {self.written} positions; "
                f"{spec.name} has {spec.context}{spec.limit_text}"
            )
        if spec.context is not None and self.positions > spec.context:
            has = f"the {spec.context} positions of {spec.name}{spec.limit_text}"
            return f"max_seq_len {self.positions} is more than {has}"
        for split, name in ((self.sources, ""), (self.sinks, "sink_")):
            if split is not None and (problem := self._cannot_split(split, name)):
                return problem
        if self.sinks is not None and self.requests % self.sinks.ubatch_size:
            return (
                f"sink_ubatch_size {self.sinks.ubatch_size} does not divide the {self.requests} requests in flight "
                f"({self.pipeline_para_size} microbatches of {self.ubatch_size})"
            )
        if self.kv_layout == "ft" and spec.size_per_head * self.itemsize % FT_VECTOR_BYTES:
            return (
                f"kv_layout ft keeps {FT_VECTOR_BYTES} bytes of a key together: {spec.size_per_head} elements a head "
                f"in {self.data_type} are no multiple"
            )
        return None

    def _cannot_split(self, split: Split, name: str) -> str | None:
        spec = self.spec
        heads = "heads" if spec.group == 1 else "KV heads"
        for size, what in ((spec.kv_heads, heads), (spec.ffn_size, "columns of the MLP")):
            if size % split.tensor_para_size:
                return f"{name}tensor_para_size {split.tensor_para_size} does not divide the {size} {what} of {spec.name}"
        if split.pipeline_para_size > spec.layer_num:
            return (
                f"{name}pipeline_para_size {split.pipeline_para_size} is more than the {spec.layer_num} layers of "
                f"{spec.name}"
            )
        return None

    def info(self, skipped: str | None = None) -> PointInfo:
        """The point as it is recorded; ``skipped``: why it does not run."""
        from dejavubench.records import PointInfo

        return PointInfo(
            id=self.id,
            model=self.spec.name,
            parameters=self.spec.parameters,
            layer_num=self.spec.layer_num,
            head_num=self.spec.head_num,
            size_per_head=self.spec.size_per_head,
            kv_head_num=self.spec.kv_heads,
            layer_weights=self.spec.layer_weights,
            head_weights=self.spec.head_weights,
            weight_nbytes=ITEMSIZE[self.data_type],
            vocab_size=self.spec.vocab_size,
            data_type=self.data_type,
            kv_layout=self.kv_layout,
            ubatch_size=self.ubatch_size,
            input_len=self.input_len,
            output_len=self.output_len,
            positions=self.positions,
            tensor_para_size=self.tensor_para_size,
            pipeline_para_size=self.pipeline_para_size,
            sinks="" if self.sinks is None else str(self.sinks),
            handed_over=self.handed_over or 0,
            streamed_nbytes=self.streamed_nbytes,
            skipped=skipped,
        )
