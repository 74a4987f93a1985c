"""``disk``: a file a stream, written in packed order, each step followed by its token ids and checksums.

Layout, little-endian; offsets are fixed by the header and the same at every level::

    page 0   magic "DEJAVUKV", version u32, length u32, header (JSON), xxh3-64 of the header
    page 1   watermark: number of complete steps u64, xxh3-64 of those eight bytes
    page 2…  a record a step: packed keys and values | token ids i32 [B, n] | xxh3-64 per layer u64 [L]

The watermark moves only after a record is as durable as the option says.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import xxhash

from dejavubench.dejavulib.copies import PAGE, aligned_buffer
from dejavubench.dejavulib.destinations.base import Capabilities, Destination, Stream, StreamingError
from dejavubench.dejavulib.schedule import Chunk, StreamSchedule

MAGIC = b"DEJAVUKV"
VERSION = 1
DATA = 2 * PAGE
FILL = 4 << 20  # bytes of one write while a file is filled with its pattern

Durability = Literal["fdatasync", "direct", "page-cache"]


def trailer_nbytes(schedule: StreamSchedule, step: int) -> int:
    """Bytes behind a step's keys and values: its token ids and its checksums."""
    tokens = schedule.region.requests.size * schedule.positions(step).size
    return 4 * tokens + 8 * schedule.region.layers.size


def record_offset(schedule: StreamSchedule, step: int) -> int:
    """Where a step's record begins in the file."""
    trailers = trailer_nbytes(schedule, 0) + (step - 1) * trailer_nbytes(schedule, 1) if step else 0
    return DATA + schedule.step_offset(step) + trailers


def file_nbytes(schedule: StreamSchedule) -> int:
    """Size of a stream's file, whole pages."""
    return -(-record_offset(schedule, schedule.steps + 1) // PAGE) * PAGE


@dataclass
class _File:
    """An open stream file and what of the step under way is not written yet."""

    fd: int
    path: Path
    completed: int = 0
    tokens: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    checksums: list[int] = field(default_factory=list)
    hasher: xxhash.xxh3_64 = field(default_factory=xxhash.xxh3_64)
    hashed: int = 0  # bytes of the layer that the hasher has seen
    tail: bytes = b""  # direct: what the last, partly filled page holds


class DiskDestination(Destination):
    """Streams to files under ``directory``.

    Args:
        directory: must exist.
        name: beginning of the files' names; no such file may exist.
        durability: ``fdatasync``: a chunk is on the device before it counts as complete. ``direct``: the
            same through O_DIRECT and O_DSYNC, without the page cache. ``page-cache``: it survives the
            process, not the power.
        keep: leave the files. Else they lose their names as soon as they are open, so that even a killed
            process leaves nothing behind.
        identity: goes into the header: run id, model, weights, data type.

    Raises:
        StreamingError: a file cannot be made, or the device has no room for it.
    """

    name = "disk"

    def __init__(
        self, directory: Path, name: str, durability: Durability, keep: bool, identity: dict[str, str]
    ) -> None:
        self.capabilities = Capabilities(remote=False, durable=durability != "page-cache", durability=durability)
        self._directory = directory
        self._name = name
        self._durability = durability
        self._keep = keep
        self._identity = identity
        self._files: dict[int, _File] = {}
        self._bounce = aligned_buffer(PAGE)  # direct: what a write is aligned in

    # ---- preparing ----

    def begin(self, stream: Stream, tokens: np.ndarray | None = None, pattern: int = 0) -> None:
        file = self._files.get(stream.id)
        if file is None:
            file = self._files[stream.id] = self._create(stream)
        schedule = stream.schedule
        file.completed, file.tail, file.hashed = 0, b"", 0
        file.hasher.reset()
        self._begin_step(file, self._tokens(schedule, 0, tokens))
        filling = aligned_buffer(FILL).fill_(pattern).numpy()
        for at in range(DATA, file_nbytes(schedule), FILL):
            self._pwrite(file, filling[: min(FILL, file_nbytes(schedule) - at)], at)
        self._pwrite(file, self._header(schedule), 0)
        self._write_watermark(file, 0)
        os.fdatasync(file.fd)

    def _create(self, stream: Stream) -> _File:
        path = self._directory / f"{self._name}-stream{stream.id}.kv"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        if self._durability == "direct":
            flags |= os.O_DIRECT | os.O_DSYNC
        try:
            fd = os.open(path, flags, 0o644)
        except OSError as error:
            raise StreamingError(f"cannot create {path} for {self._durability} streaming: {error.strerror}") from None
        if not self._keep:
            os.unlink(path)
        try:
            os.posix_fallocate(fd, 0, file_nbytes(stream.schedule))
        except OSError as error:
            os.close(fd)
            raise StreamingError(
                f"no room for {file_nbytes(stream.schedule)} bytes in {self._directory}: {error.strerror}"
            ) from None
        return _File(fd, path)

    def _header(self, schedule: StreamSchedule) -> np.ndarray:
        document = {
            "geometry": asdict(schedule.geometry),
            "region": {axis: list(span) for axis, span in vars(schedule.region).items()},
            "input_len": schedule.input_len,
            "steps": schedule.steps,
            **self._identity,
        }
        text = json.dumps(document, sort_keys=True).encode()
        packed = MAGIC + struct.pack("<II", VERSION, len(text)) + text + xxhash.xxh3_64_digest(text)
        if len(packed) > PAGE:
            raise StreamingError(f"a header of {len(packed)} bytes does not fit a page")
        return np.frombuffer(packed.ljust(PAGE, b"\0"), np.uint8)

    # ---- writing ----

    def step(self, stream: Stream, step: int, tokens: np.ndarray | None) -> None:
        self._begin_step(self._files[stream.id], self._tokens(stream.schedule, step, tokens))

    @staticmethod
    def _tokens(schedule: StreamSchedule, step: int, tokens: np.ndarray | None) -> np.ndarray:
        """Token ids of a step; −1 where this worker does not know them (later pipeline stages)."""
        if tokens is not None:
            return tokens
        return np.full((schedule.region.requests.size, schedule.positions(step).size), -1)

    @staticmethod
    def _begin_step(file: _File, tokens: np.ndarray) -> None:
        file.tokens = tokens.astype("<i4")
        file.checksums = []

    def flush(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        file = self._files[stream.id]
        data = packed.numpy()
        self._checksum(file, data.data, stream.schedule.layer_nbytes(chunk.step))
        at = record_offset(stream.schedule, chunk.step) + chunk.offset - stream.schedule.step_offset(chunk.step)
        pieces = [data]
        if self._ends_step(stream.schedule, chunk):
            pieces.append(self._trailer(file))
        self._write(file, pieces, at)
        self._complete(file, stream.schedule, chunk)

    def flush_runs(self, stream: Stream, chunk: Chunk, runs: Sequence[memoryview], each_complete: bool) -> None:
        file = self._files[stream.id]
        layer_nbytes = stream.schedule.layer_nbytes(chunk.step)
        at = record_offset(stream.schedule, chunk.step)
        sync = each_complete and self._durability == "fdatasync"
        for run in runs:
            self._checksum(file, run, layer_nbytes)
            self._write(file, [np.frombuffer(run, np.uint8)], at, sync=sync)
            at += len(run)
        self._write(file, [self._trailer(file)], at)
        self._complete(file, stream.schedule, chunk)

    @staticmethod
    def _ends_step(schedule: StreamSchedule, chunk: Chunk) -> bool:
        return chunk.offset + chunk.nbytes == schedule.step_offset(chunk.step + 1)

    def _complete(self, file: _File, schedule: StreamSchedule, chunk: Chunk) -> None:
        file.completed += 1
        if self._ends_step(schedule, chunk):
            self._write_watermark(file, chunk.step + 1)

    @staticmethod
    def _checksum(file: _File, data: memoryview, layer_nbytes: int) -> None:
        """Chunks come in order, so one running hash covers a layer however it was cut."""
        at = 0
        while at < len(data):
            take = min(len(data) - at, layer_nbytes - file.hashed)
            file.hasher.update(data[at : at + take])
            file.hashed += take
            at += take
            if file.hashed == layer_nbytes:
                file.checksums.append(file.hasher.intdigest())
                file.hasher.reset()
                file.hashed = 0

    @staticmethod
    def _trailer(file: _File) -> np.ndarray:
        packed = file.tokens.tobytes() + np.asarray(file.checksums, "<u8").tobytes()
        return np.frombuffer(packed, np.uint8)

    def _write_watermark(self, file: _File, steps: int) -> None:
        count = struct.pack("<Q", steps)
        self._pwrite(file, np.frombuffer((count + xxhash.xxh3_64_digest(count)).ljust(PAGE, b"\0"), np.uint8), PAGE)

    def _write(self, file: _File, pieces: list[np.ndarray], at: int, sync: bool = True) -> None:
        """Write consecutive pieces, as durable as the option says."""
        if self._durability == "direct":
            head = at % PAGE
            data = np.concatenate([np.frombuffer(file.tail[:head].ljust(head, b"\0"), np.uint8), *pieces])
            file.tail = data[len(data) // PAGE * PAGE :].tobytes()
            self._pwrite(file, data, at - head)
            return
        wanted = sum(map(len, pieces))
        written = os.pwritev(file.fd, [piece.data for piece in pieces], at)
        if written != wanted:  # a signal or a full disk cut it short: what is left says which
            self._pwrite(file, np.concatenate(pieces)[written:], at + written)
        if sync and self._durability == "fdatasync":
            os.fdatasync(file.fd)

    def _pwrite(self, file: _File, data: np.ndarray, at: int) -> None:
        if self._durability == "direct":  # whole pages from aligned memory
            pages = -(-len(data) // PAGE) * PAGE
            if self._bounce.numel() < pages:
                self._bounce = aligned_buffer(pages)
            bounce = self._bounce.numpy()[:pages]
            bounce[: len(data)] = data
            bounce[len(data) :] = 0
            data = bounce
        done = 0
        while done < len(data):
            done += os.pwrite(file.fd, data.data[done:], at + done)

    # ---- reading ----

    def completed(self, stream: Stream) -> int:
        return self._files[stream.id].completed

    def fetch(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        at = record_offset(stream.schedule, chunk.step) + chunk.offset - stream.schedule.step_offset(chunk.step)
        packed.copy_(self._read(self._files[stream.id], at, chunk.nbytes))

    def check(self, stream: Stream) -> None:
        """Read the file back from the device and compare every checksum.

        Raises:
            StreamingError: naming the step and layer whose bytes are not what was written.
        """
        file, schedule = self._files[stream.id], stream.schedule
        if self._durability != "page-cache":  # read what the device holds, not what memory remembers
            os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        layers = schedule.region.layers.size
        for step in range(schedule.steps + 1):
            record = self._read(file, record_offset(schedule, step), schedule.step_nbytes(step)).numpy()
            after = record_offset(schedule, step + 1)
            written = self._read(file, after - 8 * layers, 8 * layers).numpy().view("<u8")
            for layer, block in enumerate(np.split(record, layers)):
                if xxhash.xxh3_64_intdigest(block.data) != written[layer]:
                    raise StreamingError(f"{file.path.name}: checksum of step {step}, layer {layer} does not agree")

    @staticmethod
    def _read(file: _File, at: int, nbytes: int) -> torch.Tensor:
        first = at // PAGE * PAGE  # whole pages, for O_DIRECT
        whole = aligned_buffer(-(-(at + nbytes - first) // PAGE) * PAGE).numpy()
        got = 0
        while got < at + nbytes - first:
            count = os.preadv(file.fd, [whole.data[got:]], first + got)
            if count == 0:
                raise StreamingError(f"{file.path.name} ends at byte {first + got}, before {at + nbytes}")
            got += count
        return torch.from_numpy(whole)[at - first : at - first + nbytes]

    def close(self) -> None:
        for file in self._files.values():
            os.close(file.fd)
        self._files.clear()
