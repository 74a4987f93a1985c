"""``Streamer``: the helper thread of one source process, and its bounded staging memory.

Hand-over is made to cost the model as little as it can: the model appends chunks to a queue, wakes the helper and goes
on; each side keeps counts that it alone changes. What the helper runs under Python's lock is kept short, because the
model's thread waits for that lock between any two of its own operations.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

import dejavubench.dejavulib.pulse as pulse
from dejavubench.dejavulib.addresses import RunAddresses
from dejavubench.dejavulib.copies import Packing, RunViews
from dejavubench.dejavulib.destinations.base import (
    Destination,
    StorageError,
    Stream,
    StreamingError,
)
from dejavubench.dejavulib.device import DeviceRuns, DeviceStaging, Landing
from dejavubench.dejavulib.helper import cpu_seconds, start_helper
from dejavubench.dejavulib.schedule import Chunk
from dejavubench.dejavulib.waiting import NAP, Wake

if TYPE_CHECKING:
    from dejavubench.dejavulib.manager import CacheManager

NAP_BESIDE_COMPUTE = 500e-6
"""Seconds between two looks at what is on its way while the model computes: a hundredth of a core."""


CLOSING = 30.0
"""Seconds that closing waits for a destination that is in the middle of something."""


@dataclass
class Streaming:
    """What streaming did in one phase.

    Attributes:
        nbytes: bytes that were put in place and handed to streaming.
        copies: copies or messages that moved them.
        stall_s: seconds the model waited for streaming, hand-over included.
        lag_nbytes: the most bytes that were in place and not yet complete.
    """

    nbytes: int = 0
    copies: int = 0
    stall_s: float = 0.0
    lag_nbytes: int = 0

    def add(self, other: Streaming) -> None:
        """What streaming did elsewhere in the same phase."""
        self.nbytes += other.nbytes
        self.copies += other.copies
        self.stall_s += other.stall_s
        self.lag_nbytes = max(self.lag_nbytes, other.lag_nbytes)


@dataclass
class Job:
    """One chunk on its way.

    Attributes:
        packing: how it is gathered, or else
        runs: the views that its runs are moved through one by one.
        tokens: the token ids that went into its decode step, if they are known here.
        ready: CUDA only: recorded when its keys and values are in place on the device.
        slot: the staging that it holds until it is complete.
    """

    manager: CacheManager
    stream: Stream
    chunk: Chunk
    packing: Packing | None
    runs: RunViews | DeviceRuns | RunAddresses | None
    tokens: np.ndarray | None = None
    ready: torch.cuda.Event | None = None
    slot: torch.Tensor | None = None


class Streamer:
    """One helper thread and its staging slots.

    Args:
        destination: where chunks go; once a microbatch has begun, called from the helper thread alone.
        slots: staging, of one size; as many chunks can be on their way at once. Streamers of which only one has
            something under way may share it.
        device: staging on the device, for caches that are there; ``slots`` are pinned then. Not for a destination that
            takes chunks from the device's memory: there ``slots`` are on the device.
        landing: where single runs from a device land; without it, the streamer has its own.
        holds_failure: after a StorageError drop what is submitted and wait for nothing, so that the model computes its
            request to the end; the owner asks for :attr:`failure` then.

    Raises:
        ValueError: the destination needs staging and there is none.
    """

    def __init__(
        self,
        destination: Destination,
        slots: Sequence[torch.Tensor],
        device: DeviceStaging | None = None,
        landing: Landing | None = None,
        holds_failure: bool = False,
    ) -> None:
        if destination.staged and not slots:
            raise ValueError(f"{destination.name} needs at least one staging slot")
        self.destination = destination
        self.device = device
        self.landing = landing or Landing()
        self.slot_nbytes = min((slot.numel() for slot in slots), default=0)
        self._slots = deque(slots)
        on_device = bool(slots) and slots[0].is_cuda
        self._beside = (
            torch.cuda.Stream(slots[0].device) if on_device else None
        )  # slots there are filled on it
        self._inbox: deque[Job] = deque()  # the model's side fills it
        self._wake_helper, self._wake_model = Wake(), Wake()
        self._waits_for: CacheManager | None = (
            None  # whose last chunk the model waits for: nobody to be polite to
        )
        self._submitted = 0  # chunks; changed by the model's thread alone
        self._finished = 0  # chunks; this and what follows is changed by the helper alone
        self._under_way: deque[Job] = deque()  # begun and not complete, oldest first
        self._ahead: Job | None = (
            None  # whose next step's views are still to be cut, when there is time
        )
        self._closing = False
        self._error: StreamingError | None = None
        self._holds_failure = holds_failure
        self._thread = start_helper("streamer", self._work, self._fail, self._first_missing)

    def staging(self) -> list[torch.Tensor]:
        """Return the staging slots, which the owner may overwrite until the next chunk is submitted.

        Raises:
            StreamingError: chunks are under way, so that slots are in use.
        """
        if self._submitted != self._finished:
            raise StreamingError("staging cannot be handed out while chunks are under way")
        return list(self._slots)

    def submit(self, jobs: list[Job]) -> None:
        """Queue chunks whose keys and values are in place."""
        if self._error is not None:
            self.raise_error()
            return
        self._submitted += len(jobs)
        self._inbox.extend(jobs)
        self._wake_helper.set()

    def wait(self, manager: CacheManager, timeout: float) -> None:
        """Wait until every chunk that ``manager`` has submitted is complete.

        Raises:
            StreamingError: the helper failed, or ``timeout`` seconds passed without a chunk completing.
        """
        self.raise_error()
        if not manager.lag_nbytes or self._error is not None:
            return
        self._waits_for = manager  # before looking again: what completes from now on is told
        self._wake_helper.set()
        words = pulse.page.words
        before, words[pulse.STATE] = (
            words[pulse.STATE],
            pulse.PATIENT,
        )  # this wait has a deadline of its own
        try:
            progress, since = self._progress, time.monotonic()
            while manager.lag_nbytes and self._error is None:
                self._wake_model.wait(min(1.0, timeout))
                self.raise_error()
                if self._progress != progress:
                    progress, since = self._progress, time.monotonic()
                elif time.monotonic() - since > timeout:
                    raise StreamingError(
                        f"no chunk became complete within {timeout:g} s; {self._first_missing()}"
                    )
        finally:
            self._waits_for = None
            words[pulse.STATE] = before

    @property
    def _progress(self) -> tuple[int, int]:
        """Changes while anything moves."""
        return self._finished, self.destination.moved

    def cpu_seconds(self) -> float:
        """CPU time so far of the helper thread, and of what the destination runs beside it."""
        if not self._thread.is_alive():
            return 0.0
        return cpu_seconds(self._thread) + self.destination.cpu_seconds()

    def close(self) -> None:
        """End the helper thread and close the destination; chunks that are not complete are given up.

        Raises:
            StreamingError: the helper is stuck in the destination.
        """
        self._closing = True
        self._wake_helper.set()
        if self._error is not None or self._submitted != self._finished:
            self.destination.give_up()
        self._thread.join(CLOSING)
        if self._thread.is_alive():
            raise StreamingError(
                f"{self.destination.name} does not come back; {self._first_missing()}"
            )
        if self._error is not None and self.device is not None:
            self.device.give_up()  # other streamers use it, too
        self.destination.close()

    # ---- the helper thread ----

    def _work(self) -> None:
        while not self._closing:
            job = self._next()
            if job is not None:
                self._start(job)
            if self._under_way:
                self._collect()

    def _fail(self, error: StreamingError) -> None:
        self._error = error
        self._wake_model.set()

    def _next(self) -> Job | None:
        """The next job that can start; None when it is time to look at what is under way, or to end."""
        while not self._closing:
            if self._inbox and self._can_start(self._inbox[0]):
                self._under_way.append(self._inbox[0])
                return self._inbox.popleft()
            nap = None
            if self._under_way:
                nap = NAP if self._waits_for else NAP_BESIDE_COMPUTE
            elif self._ahead is not None:  # the model computes the step before
                ahead, self._ahead = self._ahead, None
                assert ahead.runs is not None
                ahead.runs.prepare(ahead.chunk.step + 1)
                continue
            self._wake_helper.wait(nap)
            if self._under_way:  # even if more has come meanwhile: it may be waiting for a slot
                return None
        return None

    def _can_start(self, job: Job) -> bool:
        if job.packing is None:
            return True
        if job.ready is not None and self.device is not None and not self.device.has_room:
            return False
        return bool(self._slots) or not self.destination.staged

    def _start(self, job: Job) -> None:
        if job.packing is None:
            self._move_runs(job)
            return
        packed = self.destination.place(job.stream, job.chunk)
        if packed is None:
            job.slot = self._slots.popleft()
            packed = job.slot[: job.chunk.nbytes]
        if job.ready is None:
            job.packing.gather(packed)
            self._flush(job, packed)
        elif self._beside is not None:
            with torch.cuda.stream(self._beside):
                self._beside.wait_event(job.ready)
                job.packing.gather(packed)
                self._flush(job, packed)
        else:
            assert self.device is not None
            self.device.begin(job, job.packing, packed)

    def _flush(self, job: Job, packed: torch.Tensor) -> None:
        self._announce(job)
        self.destination.flush(job.stream, job.chunk, packed)
        job.manager.phase_of(job.chunk.step).copies += 1

    def _move_runs(self, job: Job) -> None:
        assert job.runs is not None
        if job.ready is not None:
            job.ready.synchronize()
        self._announce(job)
        runs = job.runs.of(job.chunk.step)
        self.destination.flush_runs(job.stream, job.chunk, runs, job.manager.level.each_complete)
        self._ahead = job
        job.manager.phase_of(job.chunk.step).copies += len(runs)

    def _announce(self, job: Job) -> None:
        if job.chunk.step and job.chunk.offset == job.stream.schedule.step_offset(job.chunk.step):
            self.destination.step(job.stream, job.chunk.step, job.tokens)

    def _collect(self) -> None:
        """Pass on what has come from the device, note what has become complete and take its slots back."""
        if self.device is not None:
            for job, packed in self.device.arrived():
                self._flush(job, packed)
        complete: dict[int, int] = {}
        left: deque[Job] = deque()
        for job in self._under_way:
            stream = id(job.stream)
            if stream not in complete:
                complete[stream] = self.destination.completed(job.stream)
            if job.chunk.index < complete[stream]:
                self._finish(job)
            else:
                left.append(job)
        self._under_way = left

    def _finish(self, job: Job) -> None:
        if job.slot is not None:
            self._slots.append(job.slot)
        self._finished += 1
        job.manager.completed_nbytes += job.chunk.nbytes
        if job.manager is self._waits_for and not job.manager.lag_nbytes:
            self._wake_model.set()

    def raise_error(self) -> None:
        """Raise the StreamingError that ended the helper, if one has and is not held for the owner."""
        if self._error is not None and self.failure is None:
            raise self._error

    @property
    def failure(self) -> str | None:
        """The StorageError that ended the helper and is held, in words."""
        held = self._holds_failure and isinstance(self._error, StorageError)
        return str(self._error) if held else None

    def _first_missing(self) -> str:
        job = next(iter([*self._under_way, *self._inbox]), None)
        if job is None:
            return "none is under way"
        return f"the first missing is chunk {job.chunk.index} (step {job.chunk.step}) of stream {job.stream.id}"
