"""Measured facts about one arm at one point, from which a rule may say what limits it.

A fact that the records lack is None. No rule may then use it. docs/method/answers.md names the
source of each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

MAJORITY = 0.5
"""Least share of a time that one cause must hold to be named."""

LEAST_SIZE_RATIO = 1.5
"""Least ratio of two sizes of chunks whose times tell latency from rate."""

SYNC_PART = "sync"
"""The second part of a write to a disk."""

LARGEST_ALONE_SHARE = 0.9
"""Share of a request's time that a stream may take alone; above it, the stream hardly fits."""


class PartKind(StrEnum):
    """Kinds of parts of a chunk's latency. Destinations join some parts under one name."""

    GATHER = "gather"
    COPY = "copy to host"
    NOTICE = "notice"
    POST = "post"
    WIRE = "wire"
    SINK = "acknowledgement"
    DISK = "write"
    MOVE = "move"
    OTHER = "other"

    @classmethod
    def of_part(cls, name: str) -> PartKind:
        """Return the kind of a part by its name; a joint part is of its slowest kind."""
        # A strided copy gathers on its way to the host: the bus bounds it.
        if name.endswith(cls.COPY):
            return cls.COPY
        if name == "copy into place":
            return cls.MOVE
        first_name = name.partition(" + ")[0]
        if first_name == SYNC_PART:
            return cls.DISK
        return cls(first_name) if first_name in list(cls) else cls.OTHER


@dataclass(frozen=True)
class CostFacts:
    """An arm's overhead in ms per request, and the parts of it.

    Attributes:
        total_ms: the paired overhead.
        stalled_ms: stall and drain, in which the model stands still. On a GPU at level 3 it is the
            drain alone: the device computes while the model's thread is in the library.
        drain_ms: wait at the end for the last byte.
        request_ms: TOTAL without streaming.
        prompt_pct, tokens_pct: slow-down of each phase, of its own time.
        packed_ms: overhead of the same destination's arm with packed chunks and the same stalls.
    """

    total_ms: float
    stalled_ms: float
    drain_ms: float
    request_ms: float
    prompt_pct: float | None = None
    tokens_pct: float | None = None
    packed_ms: float | None = None

    @property
    def rest_ms(self) -> float:
        """Time of the cost that is not stall: the model itself ran slower.

        A difference and no median, so that the parts of a sentence add up to its total.
        """
        return self.total_ms - self.stalled_ms

    @property
    def stalled_cost_ms(self) -> float:
        """The stall and drain that are part of the cost.

        The stall that older records have of a GPU includes what was still being computed.
        """
        return min(self.stalled_ms, self.total_ms)

    @property
    def is_mostly_stalled(self) -> bool:
        """Whether the model stands still in most of the cost."""
        return self.stalled_ms >= MAJORITY * self.total_ms

    @property
    def is_mostly_rest(self) -> bool:
        """Whether most of the cost is the model itself running slower."""
        return self.rest_ms >= MAJORITY * self.total_ms


@dataclass(frozen=True)
class StreamFacts:
    """The way of an arm's bytes.

    Attributes:
        is_naive: whether extents move one by one.
        is_overlapped: whether nothing waits until the end of the request.
        on_gpu: whether the model ran on a GPU.
        is_local: whether the bytes stay with the source's rank.
        shares_host: whether a sink shares the source's host.
        on_storage: whether chunks are written to a storage device.
        sending_kernels: names whose kernels on the model's GPU send chunks; None if copy engines
            or a CPU do.
        has_gathering_kernel: whether a kernel on the model's GPU gathers the prompt's chunks.
        nbytes: bytes of one request.
        copy_count: naive copies or messages of one request; 0 at other levels.
        alone_ms: T_alone.
        ceiling, ceiling_gb_per_s: name and rate of the probe that bounds the destination.
        naive_us: time of one naive message, copy or write, by a probe.
    """

    is_naive: bool = False
    is_overlapped: bool = True
    on_gpu: bool = False
    is_local: bool = False
    shares_host: bool = False
    on_storage: bool = False
    sending_kernels: str | None = None
    has_gathering_kernel: bool = False
    nbytes: float = 0.0
    copy_count: float = 0.0
    alone_ms: float | None = None
    ceiling: str | None = None
    ceiling_gb_per_s: float | None = None
    naive_us: float | None = None

    @property
    def least_ms(self) -> float | None:
        """Time of the bytes at the rate of the ceiling, or else of the stream alone."""
        if self.ceiling_gb_per_s:
            return self.nbytes / self.ceiling_gb_per_s / 1e6
        return self.alone_ms


@dataclass(frozen=True)
class LongestPart:
    """One part of the latency of an arm's chunks.

    Attributes:
        name: as in the table of chunks.
        share: of all parts but the queue, in which a chunk waits for other chunks.
        in_prompt: whether more of it falls on the prompt's chunks than on the tokens'.
        prompt_us, token_us: of single chunks of a phase, median.
    """

    name: str
    kind: PartKind
    share: float
    prompt_us: float | None = None
    token_us: float | None = None
    in_prompt: bool = False


@dataclass(frozen=True)
class ChunkFacts:
    """The chunks of an arm.

    Attributes:
        longest_part: the longest part of their latency but the queue.
        prompt_nbytes, token_nbytes: mean size of a phase's chunks.
        extent_count: number of extents of one request.
        extent_us: time of one extent at a naive level.
    """

    longest_part: LongestPart
    prompt_nbytes: float | None = None
    token_nbytes: float | None = None
    extent_count: int = 0
    extent_us: float | None = None

    def single_chunk(self, in_prompt: bool) -> tuple[float, float] | None:
        """Return the time in µs of the longest part of one chunk, and the chunk's bytes.

        The chunk is of the prompt or of a token, as far as it is known.
        """
        prompt_chunk = self.longest_part.prompt_us, self.prompt_nbytes
        token_chunk = self.longest_part.token_us, self.token_nbytes
        preferred_chunks = (prompt_chunk, token_chunk) if in_prompt else (token_chunk, prompt_chunk)
        for part_us, chunk_nbytes in preferred_chunks:
            if part_us is not None and chunk_nbytes:
                return part_us, chunk_nbytes
        return None

    @property
    def fixed_us(self) -> float | None:
        """Time of the longest part that does not depend on the size of a chunk.

        A line through the chunks of both phases: time = fixed + bytes / rate. None if their sizes
        are too alike, or only one phase is known.
        """
        prompt_us = self.longest_part.prompt_us
        token_us = self.longest_part.token_us
        if prompt_us is None or token_us is None:
            return None
        if not self.prompt_nbytes or not self.token_nbytes:
            return None
        sizes = self.prompt_nbytes, self.token_nbytes
        if max(sizes) < LEAST_SIZE_RATIO * min(sizes):
            return None
        us_per_byte = (prompt_us - token_us) / (self.prompt_nbytes - self.token_nbytes)
        # A smaller chunk may come out slower by noise: then its time is fixed as a whole.
        if us_per_byte <= 0:
            return token_us
        return max(0.0, token_us - us_per_byte * self.token_nbytes)

    @property
    def is_mostly_fixed(self) -> bool | None:
        """Whether a small chunk's time hardly depends on its size; None if that is unknown."""
        fixed_us = self.fixed_us
        token_us = self.longest_part.token_us
        return None if fixed_us is None or token_us is None else fixed_us >= MAJORITY * token_us


@dataclass(frozen=True)
class MovingSide:
    """CPU time per request of the helper threads, or of the sinks on the source's host.

    Attributes:
        cpu_ms: all of it.
        needed_ms: most that moving the bytes takes: the time of the stream alone on each of them.
    """

    cpu_ms: float
    needed_ms: float

    @property
    def polled_ms(self) -> float:
        """CPU time beyond the work, in which the side only looked for bytes that had not come."""
        return max(0.0, self.cpu_ms - self.needed_ms)


@dataclass(frozen=True)
class MachineFacts:
    """The source's host while the arm ran.

    Attributes:
        copy_gb_per_s: the probe ``memory-copy``.
        read_pct: rate at which the model's tokens read memory, of the probe ``memory-read``.
        core_count: cores granted to the job.
        busy_core_count: cores that model, helpers and sinks of this host took, on average.
        other_core_count: cores that other processes took.
        other_ms: CPU time of other processes in one iteration, beyond that without streaming.
        cpu_wait_pct, baseline_cpu_wait_pct: share of the time in which some thread waited for a
            core, with this arm and without streaming.
        model_core_count: cores that the model takes without streaming, of sources on one host.
        helper, sink: CPU time of the sides that move the bytes.
    """

    copy_gb_per_s: float | None = None
    read_pct: float | None = None
    core_count: int | None = None
    busy_core_count: float | None = None
    other_core_count: float | None = None
    other_ms: float | None = None
    cpu_wait_pct: float | None = None
    baseline_cpu_wait_pct: float | None = None
    model_core_count: float | None = None
    helper: MovingSide | None = None
    sink: MovingSide | None = None


@dataclass(frozen=True)
class Evidence:
    """All facts about one arm; ``chunks`` is None without times of chunks."""

    cost: CostFacts
    stream: StreamFacts = field(default_factory=StreamFacts)
    chunks: ChunkFacts | None = None
    machine: MachineFacts = field(default_factory=MachineFacts)

    @property
    def falls_behind(self) -> bool:
        """Whether the stream alone takes about as long as the request, or longer."""
        alone_ms = self.stream.alone_ms
        return alone_ms is not None and alone_ms >= LARGEST_ALONE_SHARE * self.cost.request_ms

    @property
    def copies_ms(self) -> float | None:
        """Least time of the copies in memory that the stream makes on the source's host.

        One packs a chunk. A second one puts it into the page cache, or into the sink's cache. None
        without the probe ``memory-copy``.
        """
        if not self.machine.copy_gb_per_s:
            return None
        copy_count = 2 if self.stream.on_storage or self.stream.shares_host else 1
        return copy_count * self.stream.nbytes / self.machine.copy_gb_per_s / 1e6
