"""The sink's side of a stream: chunks come in the schedule's order and are scattered into the sink's cache."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch

import dejavubench.dejavulib.pulse as pulse
from dejavubench.dejavulib.copies import RunViews, scatter, staging
from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.kvcache import KVCache
from dejavubench.dejavulib.levels import LEVELS, Level
from dejavubench.dejavulib.schedule import Chunk
from dejavubench.dejavulib.waiting import wait_asleep


class Request(Protocol):
    """A receipt under way."""

    def Test(self) -> bool: ...  # noqa: N802 - MPI's name


class SinkEndpoint(Protocol):
    """What a remote destination offers on the sink."""

    def post(self, stream: Stream, packed: torch.Tensor) -> Request: ...
    def arriving(self, stream: Stream) -> bool: ...
    def fetch_runs(self, stream: Stream, runs: list[Any]) -> None: ...
    def post_runs(self, stream: Stream, runs: list[Any]) -> list[Any]: ...
    def wait_runs(self, posted: list[Any]) -> None: ...
    def acknowledge(self, stream: Stream) -> None: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...


def largest_chunk(stream: Stream) -> int:
    """Bytes of a stream's largest chunk at any buffered level: what a slot on the sink must hold."""
    buffered = [level for level in LEVELS.values() if level.buffered]
    return max(chunk.nbytes for level in buffered for chunk in stream.schedule.all_chunks(level))


class CacheReceiver:
    """Receives one microbatch's stream into ``cache``; the owner calls :meth:`begin`, then
    :meth:`poll` until :attr:`done`.

    Two receives are posted at a time, so that one chunk arrives while another is scattered. At the levels that
    are not buffered runs go straight to where they belong: asked for one by one, or at ``0-batched`` all posted.
    There the caches of both sides must cut a region into the same runs: same heads, in the same layout.

    Args:
        slots: staging of at least :func:`largest_chunk` bytes each, which receivers that do not work at the same time
            may share; without it, the receiver has its own.

    Attributes:
        slots: the staging; the owner may overwrite it before :meth:`begin`.
        nbytes, messages: what has arrived so far.
    """

    SLOTS = 2

    def __init__(
        self,
        cache: KVCache,
        stream: Stream,
        level: Level,
        endpoint: SinkEndpoint,
        slots: Sequence[torch.Tensor] = (),
    ) -> None:
        self._cache = cache
        self._stream = stream
        self._level = level
        self._endpoint = endpoint
        self.slots = slots
        if level.buffered and not slots:
            self.slots = self._make_slots(largest_chunk(stream))
        self._views = None if level.buffered else self._find_runs()
        self._chunks: Iterator[Chunk] = iter(())
        self._posted: deque[tuple[Request, Chunk, torch.Tensor]] = deque()
        self._runs: list[Any] | None = None
        self._posted_runs: list[Any] = []
        self._left = self.nbytes = self.messages = 0

    def begin(self) -> None:
        """Prepare for a microbatch, outside the clock: post the first receives."""
        self._chunks = self._stream.schedule.all_chunks(self._level)
        self._left = self._stream.schedule.count(self._level)
        self.nbytes = self.messages = 0
        if self._level.buffered:
            for slot in self.slots:
                self._post(slot)
        else:
            self._prepare_runs()

    @property
    def done(self) -> bool:
        return self._left == 0

    @property
    def expected(self) -> str:
        """What is being waited for, for messages."""
        total = self._stream.schedule.count(self._level)
        return f"chunk {total - self._left} of {total} of stream {self._stream.id} from rank {self._stream.peer}"

    def poll(self) -> bool:
        """Take what has arrived; whether something had."""
        if self.done:
            return False
        return self._poll_chunk() if self._level.buffered else self._poll_runs()

    def _poll_chunk(self) -> bool:
        request, chunk, slot = self._posted[0]
        if not request.Test():
            return False
        self._posted.popleft()
        self._unpack(chunk, slot[: chunk.nbytes])
        self._arrived(chunk, 1)
        self._post(slot)
        return True

    def _poll_runs(self) -> bool:
        if self._runs is None:
            return False
        if self._posted_runs:
            if not self._posted_runs[0].Test():
                return False
            self._endpoint.wait_runs(self._posted_runs)
        else:
            if not self._endpoint.arriving(self._stream):
                return False
            self._endpoint.fetch_runs(self._stream, self._runs)
        self._arrived(self._chunk, len(self._runs))
        self._prepare_runs()
        return True

    def _post(self, slot: torch.Tensor) -> None:
        chunk = next(self._chunks, None)
        if chunk is not None:
            self._posted.append((self._receive(chunk, slot[: chunk.nbytes]), chunk, slot))

    def _prepare_runs(self) -> None:
        chunk = next(self._chunks, None)
        if chunk is None:
            self._runs = None
        else:
            self._chunk = chunk
            assert self._views is not None
            self._runs = self._views.of(chunk.step)
            if not self._level.each_complete:
                self._posted_runs = self._endpoint.post_runs(self._stream, self._runs)

    # ---- where the cache is: here in host memory ----

    def _make_slots(self, nbytes: int) -> Sequence[torch.Tensor]:
        return staging(nbytes, self.SLOTS)

    def _find_runs(self) -> Any:
        return RunViews(self._cache, self._stream.schedule)

    def _receive(self, chunk: Chunk, packed: torch.Tensor) -> Request:
        return self._endpoint.post(self._stream, packed)

    def _unpack(self, chunk: Chunk, packed: torch.Tensor) -> None:
        scatter(packed, self._cache, chunk.region)

    def _arrived(self, chunk: Chunk, messages: int) -> None:
        self._endpoint.acknowledge(self._stream)
        pulse.progress()
        self._left -= 1
        self.nbytes += chunk.nbytes
        self.messages += messages


def receive_all(receivers: Iterable[CacheReceiver]) -> None:
    """Take what arrives for all of them until each is done, sleeping while nothing comes."""
    pending = list(receivers)

    def poll() -> bool:
        return sum(receiver.poll() for receiver in pending) > 0  # each gets its turn

    while pending:
        wait_asleep(poll, "chunks")
        pending = [receiver for receiver in pending if not receiver.done]
