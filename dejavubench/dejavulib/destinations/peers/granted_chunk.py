"""A chunk that a source may put, as its sink waits for it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ... import chunk_times
from .chunk_words import ChunkTarget, StreamWords


class GrantedChunk:
    """A chunk that the sink does not read before its flag is stored.

    Args:
        check_alive: raises StreamingError if the source has failed.
        scatter: scatters the chunk from its slot to its place. On a device, it returns the event
            after which the chunk is in place. None: the chunk's extents go straight to their place.

    Attributes:
        received_ns: when the flag was seen; 0 until then.
    """

    def __init__(
        self,
        words: StreamWords,
        number: int,
        check_alive: Callable[[], None],
        scatter: Callable[[], torch.cuda.Event | None] | None = None,
    ) -> None:
        self.received_ns = 0
        self._words = words
        self._number = number
        self._check_alive = check_alive
        self._scatter = scatter
        self._scattered: torch.cuda.Event | None = None

    def poll(self) -> bool:
        """Return whether the chunk is in its place."""
        if not self.received_ns:
            target = self._words.find_target(self._number)
            if target is None:
                self._check_alive()
                return False
            self.received_ns = chunk_times.now()
            if target is ChunkTarget.SLOT:
                assert self._scatter is not None, "a chunk of single extents has no slot"
                self._scattered = self._scatter()
        return self._scattered is None or self._scattered.query()

    def acknowledge(self) -> None:
        """Tell the source that the chunk is in its place."""
        self._words.note_done(self._number, chunk_times.now() - self.received_ns)
