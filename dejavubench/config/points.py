"""The points of a run: one for each combination of the lists that its options sweep."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

from dejavubench.models.hub.model_spec import ModelSpec
from dejavubench.units import ITEMSIZE

DataType = Literal["fp32", "bf16", "fp16"]
"""Types of weights and cache, once ``auto`` is settled."""

LayoutName = Literal["ft", "hnd", "nhd"]
"""Orders of the cache's axes in memory: FasterTransformer's, torch's, flash-attention's."""


class SetupSizes(NamedTuple):
    """The three sizes that name the setup of one side, as options give them.

    They know no model: with a model's layers and heads,
    :func:`~dejavubench.planning.setups.make_setup` makes the library's ``Setup`` of them.
    """

    tensor_para_size: int
    pipeline_para_size: int
    ubatch_size: int

    def __str__(self) -> str:
        return f"tp{self.tensor_para_size}-pp{self.pipeline_para_size}-b{self.ubatch_size}"


@dataclass(frozen=True)
class PointSettings:
    """The settings that a sweep may vary from point to point; each is the option of its name.

    The model, its requests and the bytes that move are the same with all of them.

    Attributes:
        threads: threads per rank.
        staging_mib: size of each staging slot, in MiB.
        staging_slots: staging slots per source.
        confine: whether each source has one core.
    """

    threads: int = 1
    staging_mib: int = 16
    staging_slots: int = 4
    confine: bool = False

    @property
    def busy_core_count(self) -> int:
        """Cores that the threads of one source can use at a time."""
        return 1 if self.confine else self.threads


SETTINGS = tuple(setting.name for setting in fields(PointSettings))
"""Names of the settings that a sweep may vary, in the order in which points follow each other."""


@dataclass(frozen=True)
class Point:
    """One combination of an experiment's lists.

    Attributes:
        id: ``p000``, ``p001``, …
        positions: positions of each request that the cache can hold.
        sinks: sizes of the sinks' setup; None if it is that of the sources.
        handed_over: new tokens after which the sinks continue the request; None if they only
            receive.
        flush_interval: tokens of a decode phase whose keys and values move as one.
        settings: threads, cores and staging memory.
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
    sinks: SetupSizes | None = None
    handed_over: int | None = None
    flush_interval: int = 1
    settings: PointSettings = PointSettings()

    @property
    def sources(self) -> SetupSizes:
        """Sizes of the sources' setup."""
        return SetupSizes(self.tensor_para_size, self.pipeline_para_size, self.ubatch_size)

    @property
    def request_count(self) -> int:
        """Requests of all microbatches in flight."""
        return self.pipeline_para_size * self.ubatch_size

    @property
    def itemsize(self) -> int:
        """Bytes of one element of the cache."""
        return ITEMSIZE[self.data_type]

    @property
    def written_position_count(self) -> int:
        """Positions that keys and values are written to: P + T − 1."""
        # The last new token is chosen but never fed back, so it has no keys and values.
        return self.input_len + self.output_len - 1

    @property
    def generated_token_count(self) -> int:
        """New tokens of each request that the sources generate."""
        return self.handed_over or self.output_len

    @property
    def streamed_position_count(self) -> int:
        """Positions whose keys and values are streamed: all that the sources write."""
        # Likewise: the step that takes the newest token writes its keys and values.
        return self.input_len + self.generated_token_count - 1

    @property
    def flush_groups(self) -> tuple[tuple[int, int], ...]:
        """Sizes of the groups of decode steps, each with the number of groups of that size."""
        full_group_count, leftover_token_count = divmod(
            self.generated_token_count - 1, self.flush_interval
        )
        # The last group is shorter if the interval does not divide the decode steps.
        sizes_and_counts = ((self.flush_interval, full_group_count), (leftover_token_count, 1))
        return tuple(
            (token_count, count) for token_count, count in sizes_and_counts if token_count and count
        )

    @property
    def most_flushed_token_count(self) -> int:
        """Most tokens of the decode phase that move as one; 0 without decode steps."""
        return max((token_count for token_count, _ in self.flush_groups), default=0)

    @property
    def token_nbytes(self) -> int:
        """Bytes of one position of one request: K and V of all layers and heads of the model."""
        return (
            2 * self.spec.layer_num * self.spec.kv_heads * self.spec.size_per_head * self.itemsize
        )

    @property
    def streamed_nbytes(self) -> int:
        """Bytes of one microbatch's cache over all workers: what a streaming arm moves for it."""
        return self.ubatch_size * self.streamed_position_count * self.token_nbytes

    @property
    def problem(self) -> str | None:
        """Why this combination can run nowhere; None if it can."""
        return self.problem_of("--")

    def problem_of(self, flags: str) -> str | None:
        """Return :attr:`problem`; the options of the sources begin with ``flags``."""
        checks = (
            self._context_problem(),
            self._setup_problem(self.sources, flags),
            self._setup_problem(self.sinks, "--sink-") if self.sinks else None,
            self._sink_microbatch_problem(),
            self._layout_problem(),
        )
        return next((problem for problem in checks if problem), None)

    def _context_problem(self) -> str | None:
        """Compare the request and the cache with the positions that the model was trained for."""
        spec = self.spec
        if spec.context is None:
            return None
        if self.written_position_count > spec.context:
            return (
                f"--input-len {self.input_len} and --output-len {self.output_len} take "
                f"{self.written_position_count} positions, but {spec.name} has "
                f"{spec.context}{spec.limit_text}"
            )
        if self.positions > spec.context:
            return (
                f"--max-seq-len {self.positions} is more than the {spec.context} positions of "
                f"{spec.name}{spec.limit_text}"
            )
        return None

    def _setup_problem(self, sizes: SetupSizes, flags: str) -> str | None:
        """Compare one side's setup with the model; its options begin with ``flags``."""
        spec = self.spec
        heads = "heads" if spec.group == 1 else "KV heads"
        for size, noun in ((spec.kv_heads, heads), (spec.ffn_size, "columns of the MLP")):
            if size % sizes.tensor_para_size:
                return (
                    f"{flags}tensor-para-size {sizes.tensor_para_size} does not divide the {size} "
                    f"{noun} of {spec.name}"
                )
        if sizes.pipeline_para_size > spec.layer_num:
            return (
                f"{flags}pipeline-para-size {sizes.pipeline_para_size} is more than the "
                f"{spec.layer_num} layers of {spec.name}"
            )
        return None

    def _sink_microbatch_problem(self) -> str | None:
        if self.sinks is None or not self.request_count % self.sinks.ubatch_size:
            return None
        return (
            f"--sink-ubatch-size {self.sinks.ubatch_size} does not divide the {self.request_count} "
            f"requests in flight ({self.pipeline_para_size} × --ubatch-size {self.ubatch_size})"
        )

    def _layout_problem(self) -> str | None:
        """Compare a head with the vectors of FasterTransformer's layout, which must be whole."""
        # Not at the top of the file: --help needs no numpy.
        from dejavubench.dejavulib.kv_cache import FT_VECTOR_BYTES, KVLayout

        head_nbytes = self.spec.size_per_head * self.itemsize
        if KVLayout(self.kv_layout) is not KVLayout.FT or not head_nbytes % FT_VECTOR_BYTES:
            return None
        return (
            f"--kv-layout ft needs heads of a multiple of {FT_VECTOR_BYTES} bytes; "
            f"{self.spec.size_per_head} elements in {self.data_type} take {head_nbytes}"
        )
