"""The log schema: what a run writes and what analysis reads. The one thing that both sides share.

A run's folder holds ``run.json`` (a :class:`RunHeader`), ``rank-0000.jsonl`` … (one record a line, any of
:data:`Record`) and the text logs that the paper's own scripts read. Times are in milliseconds of a
monotonic clock, sizes in bytes; samples are kept raw and warm-up iterations are marked, never dropped.
"""

from __future__ import annotations

import codecs
import hashlib
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from dejavubench.records.destinations import DestinationInfo

SCHEMA = 1
RUN_FILE = "run.json"

LONGEST_MS = 1e12
"""A time beyond this (30 years) is damage; sums of times below it stay finite."""

LARGEST = 2**63 - 1

PositiveMs = Annotated[float, Field(ge=1e-7, le=LONGEST_MS)]
"""A clock that counts nanoseconds sees nothing shorter."""

Ms = Annotated[float, Field(ge=0, le=LONGEST_MS)]
Seconds = Annotated[float, Field(ge=-1, le=LONGEST_MS)]
"""CPU seconds: the difference of two clocks, so that next to nothing may be slightly less than nothing."""

Positive = Annotated[float, Field(gt=0, le=1e100)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Size = Annotated[int, Field(ge=1, le=LARGEST)]


class RecordError(Exception):
    """A record file or run folder that cannot be read; the message names it."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ArmInfo(_Model):
    """One (destination, level) of a run.

    ``name`` is unique within the run: ``none``, ``none#2``, ``mpi@3``, ``disk@0-batched``.
    ``level`` is None for ``none``; ``durability`` is None but for ``disk``.
    """

    name: str
    mode: str
    level: str | None = None
    durability: str | None = None
    role: Literal["baseline", "repeat", "streaming"] = "streaming"


class PointInfo(_Model):
    """One combination of a sweep's lists. ``id`` is ``p000`` …; SKIPPED points say why.

    ``layer_weights``, ``head_weights``: elements of the matrices of all layers, and of the head. Older records have
    neither, nor ``kv_head_num``: their models had as many as heads, and an MLP of four times their width.
    ``weight_nbytes``: bytes that one of these elements is kept in; not in older records.
    """

    id: str
    model: str
    parameters: Size
    layer_num: Size
    head_num: Size
    size_per_head: Size
    kv_head_num: Size | None = None
    layer_weights: Size | None = None
    head_weights: Size | None = None
    weight_nbytes: Size | None = None
    vocab_size: Size
    data_type: Literal["fp32", "bf16", "fp16"]
    kv_layout: str
    ubatch_size: Size
    input_len: Size
    output_len: Size
    positions: Size
    tensor_para_size: Size
    pipeline_para_size: Size
    sinks: str = ""  # how they hold the cache, such as tp2-pp1-b4; empty: as the sources
    handed_over: Count = 0  # new tokens after which they go on; 0: they only receive
    streamed_nbytes: Size
    skipped: str | None = None


class RunHeader(_Model):
    """``run.json``: what was asked for, as validated, and where it ran.

    ``destinations``: by mode, what analysis must know of each destination of the arms; not in older
    records, for which :mod:`dejavubench.records.destinations` has it.
    """

    schema_version: int = SCHEMA
    name: str
    run_id: str
    started_utc: str
    command: list[str]
    experiment: dict[str, Any]
    experiment_hash: str
    figure: str | None = None
    note: str | None = None
    warmup: Count
    arms: list[ArmInfo]
    points: list[PointInfo]
    destinations: dict[str, DestinationInfo] = {}
    environment: dict[str, Any]


class _Line(_Model):
    """One line of a rank's file; ``kind`` tells which."""


T = TypeVar("T", bound=_Line)


class RankInfo(_Line):
    """First line of each rank's file.

    ``wait``: how collectives wait, ``spin`` or ``yield``; ``staging_nbytes``, ``staging_device_nbytes``: the bounds of
    its staging memory on the host and on its device; ``device``: the name of the GPU that it computes on, or receives
    on; None on a CPU; ``run_id``: the run's, as in its header; not in older records.
    """

    kind: Literal["rank"] = "rank"
    rank: Count
    role: Literal["source", "sink"]
    host: str
    pid: Count
    cores: list[Count]
    threads: Count
    tensor_rank: Count = 0
    stage: Count = 0
    peers: list[Count] = []
    wait: str = "spin"
    staging_nbytes: Count = 0
    staging_device_nbytes: Count = 0
    device: str | None = None
    environment: dict[str, Any] = {}
    run_id: str | None = None


class PhaseMark(_Line):
    """Written, untimed, when a phase begins; the last one tells where a killed rank was."""

    kind: Literal["phase"] = "phase"
    phase: str
    point: str | None = None
    arm: str | None = None
    iteration: Count | None = None


class PhaseStreaming(_Model):
    """What streaming did in one phase (prompt, tokens or drain) of one microbatch on one source.

    ``copies`` counts copies or messages handed to the destination; ``stall_ms`` is the time the model
    waited for streaming; ``lag_nbytes`` the most bytes that were in place in the cache and not yet complete.
    """

    nbytes: Count = 0
    copies: Count = 0
    stall_ms: Ms = 0.0
    lag_nbytes: Count = 0


class Microbatch(_Line):
    """The clocks of one microbatch on one source rank.

    ``iteration`` counts from 0 within (point, arm), warm-ups included; ``round`` is None in warm-up.
    ``total_ms`` = ``prompt_ms`` + ``all_token_ms`` + ``drain_ms``; ``token_ms`` has T − 1 entries.
    ``prompt_event_ms`` and ``token_event_ms`` are the same steps between CUDA events on the model's stream; None and
    empty where the model runs on a CPU.
    """

    kind: Literal["microbatch"] = "microbatch"
    point: str
    arm: str
    iteration: Count
    round: Count | None
    ubatch: Count
    prompt_ms: PositiveMs
    token_ms: list[PositiveMs]
    all_token_ms: Ms
    drain_ms: Ms
    total_ms: PositiveMs
    prompt_event_ms: Ms | None = None
    token_event_ms: list[Ms] = []
    prompt: PhaseStreaming = PhaseStreaming()
    tokens: PhaseStreaming = PhaseStreaming()
    drain: PhaseStreaming = PhaseStreaming()
    cpu_model_s: Seconds = 0.0
    cpu_helper_s: Seconds = 0.0


class Iteration(_Line):
    """One iteration (pipeline-depth microbatches) of one arm, written by rank 0.

    ``total_ms`` is the figure that overheads are made of: with one microbatch in flight its TOTAL, maximum
    over sources; with more, the makespan, barrier to last drain, maximum over sources.
    ``order`` is the arm's place within its round.
    """

    kind: Literal["iteration"] = "iteration"
    point: str
    arm: str
    iteration: Count
    round: Count | None
    order: Count
    total_ms: PositiveMs


class SinkActivity(_Line):
    """What one sink did in one iteration of one arm."""

    kind: Literal["sink"] = "sink"
    point: str
    arm: str
    iteration: Count
    round: Count | None
    nbytes: Count
    messages: Count
    cpu_s: Seconds


class HandOver(_Line):
    """One iteration's hand-over on the source that tells the sinks the tokens so far, by its clock.

    ``ms``: from the end of its last computation until it knew that a sink had its first token.
    """

    kind: Literal["handover"] = "handover"
    point: str
    arm: str
    iteration: Count
    round: Count | None
    ms: Ms


class TakeOver(_Line):
    """The same iteration on one sink, by its clock.

    ``waited_ms``: from the start until its cache was whole and the tokens were known; ``first_ms``: from then until its
    first new token of every microbatch; ``token_ms``: each later step's, over all microbatches.
    """

    kind: Literal["takeover"] = "takeover"
    point: str
    arm: str
    iteration: Count
    round: Count | None
    waited_ms: Ms
    first_ms: Ms
    token_ms: list[Ms]


class Swapping(_Line):
    """What swapping cost on one source in one iteration.

    ``resident``: caches that were in place; ``nbytes``: keys and values that were brought back, in ``bring_ms`` beside
    the model; ``wait_ms``: what the model waited for caches to be back, which is part of its stall.
    """

    kind: Literal["swapping"] = "swapping"
    point: str
    arm: str
    iteration: Count
    round: Count | None
    resident: Count
    nbytes: Count
    bring_ms: Ms
    wait_ms: Ms


class Restart(_Line):
    """What one source put back of a killed run, and the rest of that run's iteration; its times are milliseconds.

    ``of``, ``run_id``: the killed run's. ``watermark``: the fewest steps that were complete in one of its files;
    ``wrong`` says of which of these the checksums do not agree. ``first``: the first new token that was computed here,
    counted from 0. ``nbytes``: keys and values that were read, checked and put back, in ``restore_ms``; ``again_ms``:
    handing them to this run's stream. ``step_ms``: each step from ``first`` on, of the slowest microbatch. ``anew_ms``:
    what the steps before took without streaming, computed in this process; None where nothing is verified.
    """

    kind: Literal["restart"] = "restart"
    point: str
    arm: str
    of: str
    run_id: str
    watermark: Count
    first: Count
    nbytes: Count
    restore_ms: Ms
    again_ms: Ms
    step_ms: list[PositiveMs]
    drain_ms: Ms
    anew_ms: Ms | None
    wrong: list[str] = []


class Verification(_Line):
    """The untimed comparison after one iteration. ``where`` locates the first difference."""

    kind: Literal["verification"] = "verification"
    point: str
    arm: str
    iteration: Count
    ok: bool
    nbytes: Count
    tokens_equal: bool | None = None
    where: str | None = None


class Ceiling(_Line):
    """What the machine can do, measured in this session; docs/METHOD.md lists the names.

    ``value`` is the best of ``samples``, in ``unit``; ``shape`` says which of the fixed list gave it. ``durability``
    is that of the arms that it bounds, where it is the disk's.
    """

    kind: Literal["ceiling"] = "ceiling"
    name: str
    unit: str
    value: Positive
    samples: Annotated[list[Positive], Field(min_length=1)]
    shape: str
    point: str | None = None
    durability: str | None = None


HELD_AGAINST = {
    "mpi-destination": "mpi-windowed",
    "disk-destination": "disk-write",
    "nixl-destination": "nixl-raw",
    "tcp-destination": "tcp-raw",
    "pcie-destination": "pcie-d2h",
    "gather": "gather-copy",
}
"""Ceilings that are this library's own, and the raw loop in turn with which each was measured, sample by sample."""

OVERHEAD_OF = {
    "mpi-message-overhead": "mpi-message",
    "disk-run-overhead": "disk-run",
    "run-copy-overhead": "run-copy",
}
"""Times of a naive loop that moves nothing, and those of the loop whose share that is this program's own they tell."""


class Alone(_Line):
    """An arm's own chunks at level 3 with no compute beside them: from first chunk to drained."""

    kind: Literal["alone"] = "alone"
    point: str
    arm: str
    ms: PositiveMs
    nbytes: Count


class CopyWays(_Line):
    """How chunks left a source's GPU at one point: by kind of chunk (prompt, token) the way, ``kernel`` or ``strided
    DMA``, and the measured ratio that it was chosen by, in words.
    """

    kind: Literal["copy-ways"] = "copy-ways"
    point: str
    ways: dict[str, str]


class Skipped(_Line):
    """A point (``arm`` None) or an arm of it that cannot run here; neither ok nor failed."""

    kind: Literal["skipped"] = "skipped"
    point: str
    arm: str | None = None
    reason: str


class Failure(_Line):
    kind: Literal["failure"] = "failure"
    phase: str
    error: str


class ArmFailure(_Line):
    """An arm that goes no further at one point, because of a storage device; the other arms do.

    ``rank``: the first on which it failed, in that phase of that iteration; its own times there mean nothing.
    """

    kind: Literal["arm-failure"] = "arm-failure"
    point: str
    arm: str
    iteration: Count
    phase: str
    rank: Count
    error: str


class FirstExit(_Line):
    """In a file of its own beside the ranks': those of one host that ended before anything was said of an end.

    ``hung``: ranks that showed no sign of life, or made no progress, and what was seen of them.
    """

    kind: Literal["first-exit"] = "first-exit"
    ranks: list[Count]
    hung: dict[Count, str] = {}


class End(_Line):
    """Last line of a rank that came to its end.

    ``environment``: what only the end can tell of where it ran. ``digest``: of the lines before it (:class:`Digest`),
    which tells that none was changed, lost or added since; ``header_digest``: of ``run.json``, on rank 0. Older
    records have none of these.
    """

    kind: Literal["end"] = "end"
    status: Literal["ok", "failed"] = "ok"
    environment: dict[str, Any] = {}
    digest: str | None = None
    header_digest: str | None = None


Record = (
    RankInfo
    | PhaseMark
    | Microbatch
    | Iteration
    | SinkActivity
    | HandOver
    | TakeOver
    | Swapping
    | Restart
    | Verification
    | Ceiling
    | Alone
    | CopyWays
    | Skipped
    | Failure
    | ArmFailure
    | FirstExit
    | End
)
_ADAPTER: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


class Digest:
    """A digest of lines, whatever their line ends are."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, line: bytes) -> None:
        """Go on with a line, or with several."""
        for each in line.splitlines():
            if each.strip():
                self._hash.update(each + b"\n")

    def hex(self) -> str:
        return self._hash.hexdigest()


def digest_of(content: bytes) -> str:
    digest = Digest()
    digest.add(content)
    return digest.hex()


@dataclass
class RankLog:
    """One rank's records in the order they were written.

    Attributes:
        lines: the number of each record's line in the file.
        torn: the last line was cut off by a crash.
        altered: its lines are not those that its End record was written after.
    """

    path: Path
    rank: int
    records: list[Record] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    torn: bool = False
    altered: bool = False

    def of(self, kind: type[T]) -> Iterator[T]:
        return (record for record in self.records if isinstance(record, kind))

    def all_placed(self) -> Iterator[tuple[str, Record]]:
        """Yield each record with its file and line."""
        for line, record in zip(self.lines, self.records, strict=True):
            yield f"{self.path.name}:{line}", record

    def placed(self, kind: type[T]) -> Iterator[tuple[str, T]]:
        """The same of one kind."""
        return ((where, record) for where, record in self.all_placed() if isinstance(record, kind))

    @property
    def ended(self) -> bool:
        return any(isinstance(record, End) for record in self.records)

    @property
    def last_phase(self) -> PhaseMark | None:
        return next((r for r in reversed(self.records) if isinstance(r, PhaseMark)), None)


@dataclass
class Run:
    """A run's folder, read.

    Attributes:
        first_exits: the ranks that were the first of their host to end without a word.
        hung: the ranks that hung, and what was seen of them.
        notes: what a reader must know of the files themselves, beside what the records say.
    """

    path: Path
    header: RunHeader
    ranks: list[RankLog]
    first_exits: frozenset[int] = frozenset()
    hung: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def of(self, kind: type[T]) -> Iterator[tuple[int, T]]:
        """(rank, record) of one kind over all ranks."""
        return ((log.rank, record) for log in self.ranks for record in log.of(kind))


_RANK_FILE = re.compile(r"rank-([0-9]{4,9})\.jsonl")


def rank_file(rank: int) -> str:
    return f"rank-{rank:04d}.jsonl"


def rank_of(name: str) -> int | None:
    """The rank whose file has this name; None: no rank's."""
    match = _RANK_FILE.fullmatch(name)
    return int(match[1]) if match and rank_file(int(match[1])) == name else None


def first_exit_file(lowest: int) -> str:
    """Of the host whose lowest rank is ``lowest``."""
    return f"first-exit-{lowest:04d}.json"


def text_log(point: str, arm: str, several_points: bool) -> str:
    """The file of an arm's text lines."""
    name = arm.replace("/", "-")
    return f"{point}-{name}.log" if several_points else f"{name}.log"


def to_line(record: Record) -> str:
    return record.model_dump_json() + "\n"


def read_rank(path: Path) -> RankLog:
    """Read one rank's file; a torn last line is tolerated.

    Raises:
        RecordError: the file cannot be read, or one of its lines, unless it is the last and cut off.
    """
    rank = rank_of(path.name)
    if rank is None:
        raise RecordError(f"{path}: not the name of a rank's file, such as {rank_file(0)}")
    log, digest = RankLog(path, rank), Digest()
    lines = _content(path).split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = _ADAPTER.validate_json(line, strict=True)
        except ValidationError as error:
            if number == len(lines) and error.errors()[0]["type"] == "json_invalid":
                log.torn = True  # no newline behind it: the write was cut short
                continue
            raise RecordError(f"{path}:{number}: {_first_of(error)}") from None
        log.records.append(record)
        log.lines.append(number)
        if isinstance(record, End) and record.digest is not None:
            log.altered = record.digest != digest.hex()
        digest.add(line)
    return log


def read_run(folder: Path) -> Run:
    """Read a run's folder.

    Raises:
        RecordError: no readable ``run.json``, another schema version, or a broken line.
    """
    path = folder / RUN_FILE
    if not path.is_symlink() and not path.exists():
        raise RecordError(f"{folder} is not a run's folder: it has no {RUN_FILE}")
    content = _content(path)
    header = _header(path, content)
    names = sorted(file.name for file in folder.iterdir() if file.name.startswith("rank-"))
    ranks = [read_rank(folder / name) for name in names if rank_of(name) is not None]
    notes = [
        f"{name} is left out: it is not named as a rank's file is, such as {rank_file(0)}"
        for name in names
        if name.endswith(".jsonl") and rank_of(name) is None
    ]
    altered = [log.path.name for log in ranks if log.altered]
    ends = [
        end.header_digest for log in ranks for end in log.of(End) if end.header_digest is not None
    ]
    if any(digest != digest_of(content) for digest in ends):
        altered.insert(0, RUN_FILE)
    notes += [
        f"CHANGED: {name} is not as the run left it, so these numbers may not be the measured ones"
        for name in altered
    ]
    exits = [
        found for file in folder.glob("first-exit-*.json") if (found := _read_first_exit(file))
    ]
    first = frozenset(rank for found in exits for rank in found.ranks)
    hung = {rank: why for found in exits for rank, why in found.hung.items()}
    return Run(folder, header, ranks, first, hung, notes)


def _header(path: Path, content: bytes) -> RunHeader:
    try:
        document = from_json(content.removeprefix(codecs.BOM_UTF8), allow_inf_nan=False)
    except ValueError as error:
        raise RecordError(f"{path}: {error}") from None
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA or isinstance(version, bool):
        raise RecordError(f"{path}: schema version {version}, this program reads {SCHEMA}")
    try:
        return RunHeader.model_validate(document, strict=True)
    except ValidationError as error:
        raise RecordError(f"{path}: {_first_of(error)}") from None


def _content(path: Path) -> bytes:
    """The bytes of a regular file: reading a pipe or a device might never end."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise RecordError(f"{path}: not a regular file")
        return path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}") from None


def _first_of(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]


def _read_first_exit(path: Path) -> FirstExit | None:
    try:
        return FirstExit.model_validate_json(_content(path))
    except (
        ValidationError,
        RecordError,
    ):  # a full disk may have cut it short: then it is not known who was first
        return None


# DéjàVu's text lines, exactly as the original prints them (C's "%f": six decimals).


def prompt_line(rank: int, ubatch: int, ms: float) -> str:
    return f"[BENCHMARK] RANK {rank} Microbatch {ubatch}, PROMPT processing took {ms:f} ms"


def token_line(rank: int, iteration: int, ms: float) -> str:
    return f"[BENCHMARK] RANK {rank} ITERATION {iteration}, TOKEN generation took {ms:f} ms"


def all_token_line(rank: int, iteration: int, ms: float) -> str:
    return f"[BENCHMARK] RANK {rank} ITERATION {iteration}, ALL-TOKEN generation took {ms:f} ms"


def total_line(rank: int, iteration: int, ms: float) -> str:
    return f"[BENCHMARK] RANK {rank} ITERATION {iteration}, TOTAL generation took {ms:f} ms"
