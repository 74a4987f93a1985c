"""``host``: a buffer in this process's memory that holds a whole stream in packed order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..packing import aligned_buffer, pinned_buffer
from ..schedule import Chunk
from .base import Buffer, LocalDestination, Stream
from .registry import HOST


class HostDestination(LocalDestination):
    """Keeps streams in host memory. Chunks are gathered straight into place: one copy moves them.

    Args:
        pinned: use pinned memory, as a cache on a CUDA device needs.
    """

    entry = HOST

    def __init__(self, pinned: bool = False) -> None:
        self._is_pinned = pinned
        self._buffers: dict[int, torch.Tensor] = {}
        self._completed: dict[int, int] = {}

    def begin(self, stream: Stream, tokens: np.ndarray | None = None) -> None:
        """Allocate the stream's buffer at its first microbatch; later ones use it again."""
        buffer = self._buffers.get(stream.id)
        if buffer is None or buffer.numel() != stream.schedule.nbytes:
            allocate = pinned_buffer if self._is_pinned else aligned_buffer
            self._buffers[stream.id] = allocate(stream.schedule.nbytes)
        self._completed[stream.id] = 0

    def buffers(self, stream: Stream) -> Sequence[Buffer]:
        """Return one uint8 tensor: the whole stream in packed order."""
        return [self._buffers[stream.id]]

    def place(self, stream: Stream, chunk: Chunk) -> torch.Tensor:
        """Return the chunk's part of the stream's buffer, a uint8 view. Never None."""
        return self._buffers[stream.id][chunk.offset : chunk.offset + chunk.nbytes]

    def flush(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        """Copy a packed chunk to its place, unless it was gathered there; then it is complete."""
        final_bytes = self.place(stream, chunk)
        # Gathered straight into place, as a rule: then nothing is left to copy.
        if packed.data_ptr() != final_bytes.data_ptr():
            final_bytes.copy_(packed)
        self._completed[stream.id] += 1

    def flush_extents(
        self, stream: Stream, chunk: Chunk, extents: Sequence[memoryview], each_complete: bool
    ) -> None:
        """Copy the extents one by one; all are complete when it returns."""
        # A copy by the CPU is complete when it returns: each_complete makes no difference here.
        final_bytes = self.place(stream, chunk).numpy().data
        offset = 0
        for block in self.cut_and_count(extents):
            for extent in block:
                extent_end = offset + len(extent)
                final_bytes[offset:extent_end] = extent
                offset = extent_end
        self._completed[stream.id] += 1

    def poll_completed(self, stream: Stream) -> int:
        """Return how many chunks were flushed: each is complete as soon as it is."""
        return self._completed[stream.id]

    def fetch(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        """Copy a chunk out of the stream's buffer."""
        packed.copy_(self.place(stream, chunk))

    def fetch_steps(self, stream: Stream, steps: range) -> tuple[torch.Tensor, int]:
        """Return a view of the stream's buffer, without a copy, and the bytes of one step."""
        schedule = stream.schedule
        begin, end = schedule.step_offset(steps.start), schedule.step_offset(steps.stop)
        return self._buffers[stream.id][begin:end], schedule.step_nbytes(steps.start)

    def close(self) -> None:
        """Release the buffers."""
        self._buffers.clear()
