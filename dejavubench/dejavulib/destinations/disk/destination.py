"""Streams to a file each, written in packed order."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ... import chunk_times
from ...chunk_times import Receipt
from ...packing import PAGE_NBYTES
from ...schedule import Chunk, StreamSchedule
from ..base import Buffer, LocalDestination, Stream, WrongBytesError
from ..registry import DISK
from . import stream_file
from .block_file import BlockFile, Durability, FilePart
from .stream_file import StepTrailer

HASHED_BESIDE_NBYTES = 256 << 10
"""Bytes from which a chunk is hashed in another thread while it is written.

For smaller chunks, handing over costs more than it saves.
"""


@dataclass
class _OpenFile:
    """A stream's open file, and the trailer of the group that is being written."""

    blocks: BlockFile
    completed: int = 0
    receipts: deque[Receipt] = field(default_factory=deque)
    trailer: StepTrailer = field(init=False)


class DiskDestination(LocalDestination):
    """Streams to files under ``directory``; :mod:`.stream_file` describes them.

    Args:
        directory: must exist.
        name: beginning of the files' names; no such file may exist.
        durability: option of :class:`BlockFile`; a chunk is complete when it is as durable.
        keep: leave the files, for :class:`.saved_stream.SavedStream`.
        identity: goes into the header, such as run id, rank, model, weights, requests, data type.
        hashed_beside: bytes from which a chunk is hashed in another thread while it is written.

    Raises:
        StorageError: a file cannot be created, or the device has no room for it.
    """

    entry = DISK

    def __init__(
        self,
        directory: Path,
        name: str,
        durability: Durability = "fdatasync",
        keep: bool = False,
        identity: Mapping[str, str] | None = None,
        hashed_beside: int = HASHED_BESIDE_NBYTES,
    ) -> None:
        self._directory = directory
        self._name = name
        self._durability = durability
        self._keep = keep
        self._identity = identity or {}
        self._hashed_beside = hashed_beside
        self._files: dict[int, _OpenFile] = {}
        self._checksum_thread = ThreadPoolExecutor(1, "checksums", initializer=self._note_clock)
        self._beside_clock: int | None = None  # CPU clock of that thread, once it has begun

    # ---- preparing ----

    def begin(self, stream: Stream, tokens: np.ndarray | None = None) -> None:
        """Create the stream's file, or reset the one of the last microbatch.

        Its watermark is 0 on the device before any byte below the old watermark is overwritten.

        Raises:
            StorageError: the file cannot be created or written, or the device has no room for
                it.
        """
        schedule = stream.schedule
        if stream.id not in self._files:
            path = self._directory / stream_file.make_file_name(self._name, stream.id)
            blocks = BlockFile(
                path, stream_file.count_file_nbytes(schedule), self._durability, self._keep
            )
            self._files[stream.id] = _OpenFile(blocks)
        file = self._files[stream.id]
        file.completed = 0
        file.receipts.clear()
        file.trailer = _make_trailer(schedule, 0, tokens)
        file.blocks.write(stream_file.WATERMARK_OFFSET, stream_file.make_watermark_page(0))
        file.blocks.sync()  # before anything that the old watermark covers is overwritten
        file.blocks.write(0, stream_file.make_header_page(stream, self._identity))
        # The first chunk's sync() makes the header durable, before the watermark moves.

    def buffers(self, stream: Stream) -> Sequence[Buffer]:
        """Return one buffer, the part of the file behind its header and watermark."""
        return [FilePart(self._files[stream.id].blocks, stream_file.DATA_OFFSET)]

    # ---- writing ----

    def step(self, stream: Stream, step: int, tokens: np.ndarray | None) -> None:
        """Begin the trailer, checksum and token ids, of the group that ends with ``step``."""
        self._files[stream.id].trailer = _make_trailer(stream.schedule, step, tokens)

    def flush(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        """Write a packed chunk and make it as durable as the option says; blocks until then.

        Raises:
            StorageError: the operating system refuses the write or the sync.
        """
        file = self._files[stream.id]
        schedule = stream.schedule
        packed_bytes = packed.numpy()
        offset = stream_file.find_chunk_offset(schedule, chunk)
        checksum = self._add_to_trailer(file.trailer, packed_bytes.data)
        file.blocks.write(offset, packed_bytes)
        if _is_end_of_group(schedule, chunk):
            checksum.result()  # a large chunk was hashed while it was written
            file.blocks.write(offset + chunk.nbytes, file.trailer.pack())
        self._note_written(file)
        file.blocks.sync()
        checksum.result()  # the slot is free once the chunk is complete, so hashing must be over
        self._count_complete(file, schedule, chunk)

    def _add_to_trailer(self, trailer: StepTrailer, data: memoryview) -> Future[None]:
        if len(data) >= self._hashed_beside:
            return self._checksum_thread.submit(trailer.add, data)
        trailer.add(data)
        checksum: Future[None] = Future()
        checksum.set_result(None)
        return checksum

    def flush_extents(
        self, stream: Stream, chunk: Chunk, extents: Sequence[memoryview], each_complete: bool
    ) -> None:
        """Write each extent by a call of its own; blocks until the chunk is durable.

        At level 0 (``each_complete``) every extent is made durable before the next one is written.

        Raises:
            StorageError: the operating system refuses a write or a sync.
        """
        file = self._files[stream.id]
        offset = stream_file.find_chunk_offset(stream.schedule, chunk)
        for block in self.cut_and_count(extents):
            for extent in block:
                file.trailer.add(extent)
                file.blocks.write(offset, np.frombuffer(extent, np.uint8))
                if each_complete:
                    file.blocks.sync()
                offset += len(extent)
        file.blocks.write(offset, file.trailer.pack())
        self._note_written(file)
        file.blocks.sync()
        self._count_complete(file, stream.schedule, chunk)

    def _note_written(self, file: _OpenFile) -> None:
        if self.timed:
            file.receipts.append((chunk_times.now(), None))

    def receipt(self, stream: Stream) -> Receipt:
        """Return when the chunk's last byte was written, before it was made durable."""
        return self._files[stream.id].receipts.popleft()

    @staticmethod
    def _count_complete(file: _OpenFile, schedule: StreamSchedule, chunk: Chunk) -> None:
        # The record is durable by now. The watermark itself becomes durable with the next sync:
        # a crash before loses at most the last group, never a promise.
        if _is_end_of_group(schedule, chunk):
            file.blocks.write(
                stream_file.WATERMARK_OFFSET, stream_file.make_watermark_page(chunk.step + 1)
            )
        file.completed += 1

    def poll_completed(self, stream: Stream) -> int:
        """Return how many chunks are durable: all flushed ones, because ``flush`` blocks."""
        return self._files[stream.id].completed

    # ---- reading ----

    def fetch(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        """Read a chunk from the file. Its checksum is not compared; see :meth:`check`."""
        offset = stream_file.find_chunk_offset(stream.schedule, chunk)
        packed.copy_(self._files[stream.id].blocks.read(offset, chunk.nbytes))

    def fetch_steps(self, stream: Stream, steps: range) -> tuple[torch.Tensor, int]:
        """Read the records of ``steps`` from the file in one piece.

        Returns:
            The records, each with its trailer, and the bytes from one record to the next.
        """
        schedule = stream.schedule
        blocks = self._files[stream.id].blocks
        offset = stream_file.find_record_offset(schedule, steps.start)
        nbytes = stream_file.find_record_offset(schedule, steps.stop) - offset
        return blocks.read(offset, nbytes), stream_file.count_record_nbytes(schedule, steps.start)

    def check(self, stream: Stream) -> None:
        """Read a complete file back from the device; compare the watermark and every checksum.

        Raises:
            WrongBytesError: bytes differ from what was written. The message names the step, and
                the layer or the token ids.
        """
        blocks = self._files[stream.id].blocks
        schedule = stream.schedule
        blocks.forget_cached()
        watermark = stream_file.make_watermark_page(schedule.steps + 1)
        if not np.array_equal(
            blocks.read(stream_file.WATERMARK_OFFSET, PAGE_NBYTES).numpy(), watermark
        ):
            raise WrongBytesError(
                f"{blocks.path.name}: the watermark is not at the {schedule.steps + 1} steps "
                "written"
            )
        for step in map(schedule.last_step, range(schedule.group_count)):
            offset = stream_file.find_record_offset(schedule, step)
            nbytes = schedule.step_nbytes(step)
            record = blocks.read(
                offset, nbytes + stream_file.count_trailer_nbytes(schedule, step)
            ).numpy()
            wrong_part = stream_file.find_wrong_part(schedule, step, record)
            if wrong_part is not None:
                raise WrongBytesError(
                    f"{blocks.path.name}: checksum of step {step}, {wrong_part} does not agree"
                )

    def _note_clock(self) -> None:
        self._beside_clock = time.pthread_getcpuclockid(threading.get_ident())

    def cpu_seconds(self) -> float:
        """Return the CPU time of the thread that hashes large chunks."""
        return 0.0 if self._beside_clock is None else time.clock_gettime(self._beside_clock)

    def close(self) -> None:
        """End the hashing thread and close the files; they are removed unless ``keep`` is on."""
        self._checksum_thread.shutdown()
        self._beside_clock = None
        for file in self._files.values():
            file.blocks.close()
        self._files.clear()


def _is_end_of_group(schedule: StreamSchedule, chunk: Chunk) -> bool:
    return chunk.offset + chunk.nbytes == schedule.step_offset(chunk.step + 1)


def _make_trailer(schedule: StreamSchedule, step: int, tokens: np.ndarray | None) -> StepTrailer:
    """Return the trailer of a group that begins; unknown token ids (later stages) are −1."""
    requests = schedule.region.requests
    shape = (requests.stop, schedule.positions(step).size)
    token_ids = np.full(shape, -1) if tokens is None else tokens
    return StepTrailer(schedule.layer_nbytes(step), token_ids[requests.slice])
