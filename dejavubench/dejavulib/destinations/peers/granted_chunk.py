"""A chunk that a source may put, as its sink waits for it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ... import chunk_times
from .chunk_words import StreamWords, Way


class GrantedChunk:
    """A chunk of which nothing is read before its flag is there.

    Args:
        look_after: raises an error if the source has failed.
        scatter: brings the chunk from its slot to its place; on a device, it returns the event
            after which it is there. None: its extents go straight to their place.

    Attributes:
        received: when the flag was seen; 0 until then.
    """

    def __init__(
        self,
        words: StreamWords,
        number: int,
        look_after: Callable[[], None],
        scatter: Callable[[], torch.cuda.Event | None] | None = None,
    ) -> None:
        self.received = 0
        self._words = words
        self._number = number
        self._look_after = look_after
        self._scatter = scatter
        self._scattered: torch.cuda.Event | None = None

    def poll(self) -> bool:
        """Return whether the chunk is in its place."""
        if not self.received:
            way = self._words.find_way(self._number)
            if way is None:
                self._look_after()
                return False
            self.received = chunk_times.now()
            if way is Way.SLOT:
                assert self._scatter is not None, "a chunk of single extents has no slot"
                self._scattered = self._scatter()
        return self._scattered is None or self._scattered.query()

    def acknowledge(self) -> None:
        """Tell the source that the chunk is in its place."""
        self._words.note_done(self._number, chunk_times.now() - self.received)
