"""``Streamer``: the helper thread of one source process, and its bounded staging memory.

Handing over costs the model as little as possible: it appends transfers to a queue, wakes the
helper and goes on. Each side keeps counts that it alone changes. The helper holds Python's lock for
short moments only, because the model's thread needs it between any two of its own operations.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain

import torch

from . import progress
from .chunk_times import BEGUN, GATHERED, SEEN
from .destinations.base import Destination, StorageError, StreamingError
from .device import BounceBuffer, DeviceStaging, SideCudaStream
from .extents import StepExtents
from .helper_thread import read_cpu_seconds, start_helper
from .packing import Packing
from .posting import note_completion, post_extents, post_packed, prepare_next_step
from .transfers import ByteProgress, PlannedChunk, Transfer
from .waiting import FIRST_NAP_S, Wake

NAP_BESIDE_COMPUTE_S = 500e-6
"""Seconds between two looks at what is under way while the model computes: 1 % of a core."""

NAP_AFTER_POST_S = 1e-3
"""Seconds until the first look at a chunk of a cache in host memory. It is seldom complete earlier,
and a look takes Python's lock, for which the model's thread may have to sleep."""

CLOSE_TIMEOUT_S = 30.0
"""Seconds that closing waits for a destination that is in the middle of something."""


class Streamer:
    """One helper thread and its staging slots.

    Args:
        destination: gets the chunks. Once a microbatch has begun, only the helper thread calls it.
        slots: staging; as many chunks can be on their way at once. In device memory if the
            destination takes chunks from there; else in host memory, pinned for a CUDA cache.
            Streamers of which only one at a time has something under way may share slots.
        device_staging: staging on the device, for a CUDA cache whose chunks go through host memory.
        bounce_buffer: for single extents from a device; without it, the streamer has its own.
        holds_failure: after a StorageError, drop what is submitted and wait for nothing, so that
            the model computes its request to the end. The owner then asks for :attr:`failure`.
        timed: managers note each chunk's times, which costs some microseconds per chunk.

    Raises:
        ValueError: the destination needs staging slots, and ``slots`` is empty.
    """

    def __init__(
        self,
        destination: Destination,
        slots: Sequence[torch.Tensor],
        device_staging: DeviceStaging | None = None,
        bounce_buffer: BounceBuffer | None = None,
        holds_failure: bool = False,
        timed: bool = True,
    ) -> None:
        if destination.entry.staged and not slots:
            raise ValueError(f"{destination.entry.name} needs at least one staging slot")
        self.destination = destination
        self.timed = destination.timed = timed
        self.device_staging = device_staging
        self.bounce_buffer = bounce_buffer or BounceBuffer()
        self.slot_nbytes = min((slot.numel() for slot in slots), default=0)
        self._slots = list(slots)  # the last one freed is taken first: it is in this core's cache
        self._side_cuda_stream = _make_side_cuda_stream(slots)
        # A deque's append and popleft are atomic, so the inbox needs no lock.
        self._inbox: deque[Transfer] = deque()  # filled by the model's thread
        self._wake_helper, self._wake_model = Wake(), Wake()
        self._awaited_progress: ByteProgress | None = None  # the model waits for it: naps are short
        self._submitted_count = 0  # chunks; changed by the model's thread alone
        # The following are changed by the helper alone.
        self._finished_count = 0  # chunks
        # Begun and not complete, oldest first. The keys are id(): a stream.key would hash a tuple
        # per transfer. Transfers keep their streams, so ids stay unique.
        self._under_way: dict[int, deque[Transfer]] = {}
        self._to_prepare: tuple[PlannedChunk, StepExtents] | None = None  # in idle time
        self._is_closing = False
        self._nap_s = NAP_BESIDE_COMPUTE_S
        self._error: StreamingError | None = None
        self._holds_failure = holds_failure
        self._thread = start_helper("streamer", self._work, self._fail, self._describe_missing)

    # ---- the model's thread ----

    def staging(self) -> list[torch.Tensor]:
        """Return the staging slots, which the owner may overwrite until the next submission.

        Raises:
            StreamingError: chunks are under way.
        """
        if self._submitted_count != self._finished_count:
            raise StreamingError("staging cannot be handed out while chunks are under way")
        return list(self._slots)

    def submit(self, transfers: list[Transfer]) -> None:
        """Queue chunks whose keys and values are in place; StreamingError if the helper failed."""
        if self._error is not None:
            self.raise_error()
            return  # a held failure: the model goes on, and its chunks go nowhere
        # Counted before the helper can finish them: the two counts are never equal too early.
        self._submitted_count += len(transfers)
        self._inbox.extend(transfers)
        self._wake_helper.set()

    def wait(self, byte_progress: ByteProgress, timeout_s: float) -> None:
        """Wait until every chunk of ``byte_progress`` is complete.

        Raises:
            StreamingError: the helper failed, or ``timeout_s`` passed without a chunk completing.
        """
        self.raise_error()
        if not byte_progress.lag_nbytes or self._error is not None:
            return
        # Set before the loop looks again: a completion in between then wakes this thread.
        self._awaited_progress = byte_progress
        self._wake_helper.set()
        with progress.listener.waiting(patient=True):
            try:
                self._wait(byte_progress, timeout_s)
            finally:
                self._awaited_progress = None

    def _count_moved(self) -> tuple[int, int]:
        return self._finished_count, self.destination.blocks_moved

    def _wait(self, byte_progress: ByteProgress, timeout_s: float) -> None:
        moved_before = self._count_moved()
        since_s = time.monotonic()
        while byte_progress.lag_nbytes and self._error is None:
            # At most 1 s: bytes of a long transfer count as progress, and nothing wakes for them.
            self._wake_model.wait(min(1.0, timeout_s))
            self.raise_error()
            if self._count_moved() != moved_before:
                moved_before = self._count_moved()
                since_s = time.monotonic()
            elif time.monotonic() - since_s > timeout_s:
                raise StreamingError(
                    f"no chunk became complete within {timeout_s:g} s; {self._describe_missing()}"
                )

    def raise_error(self) -> None:
        """Raise the StreamingError that ended the helper, unless it is held for the owner."""
        if self._error is not None and self.failure is None:
            raise self._error

    @property
    def failure(self) -> str | None:
        """The message of the StorageError that ended the helper and is held."""
        is_held = self._holds_failure and isinstance(self._error, StorageError)
        return str(self._error) if is_held else None

    def cpu_seconds(self) -> float:
        """Return the CPU time so far of the helper thread and the destination's own threads."""
        if not self._thread.is_alive():
            return 0.0
        return read_cpu_seconds(self._thread) + self.destination.cpu_seconds()

    def close(self) -> None:
        """End the helper thread and close the destination; incomplete chunks are given up.

        Raises:
            StreamingError: the helper is stuck in the destination.
        """
        self._is_closing = True
        self._wake_helper.set()
        if self._error is not None or self._submitted_count != self._finished_count:
            self.destination.give_up()  # ends whatever the helper waits for
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            raise StreamingError(
                f"the {self.destination.entry.name} helper thread did not stop within "
                f"{CLOSE_TIMEOUT_S:g} s; {self._describe_missing()}"
            )
        if self._error is not None and self.device_staging is not None:
            self.device_staging.give_up()  # other streamers use it, too
        self.destination.close()

    # ---- the helper thread ----

    def _work(self) -> None:
        while not self._is_closing:
            if (transfer := self._take_next()) is not None:
                self._start(transfer)
            if self._under_way:
                self._collect()

    def _fail(self, error: StreamingError) -> None:
        self._error = error
        self._wake_model.set()

    def _take_next(self) -> Transfer | None:
        """Return the next transfer that can start; None to look at what is under way, or to end."""
        while not self._is_closing:
            if self._inbox and self._can_start(self._inbox[0]):
                key = id(self._inbox[0].planned_chunk.stream)
                # Appended before it is popped, so that _describe_missing() always sees it.
                self._under_way.setdefault(key, deque()).append(self._inbox[0])
                return self._inbox.popleft()
            nap_s = None  # with nothing under way, only a submission gives the helper work
            if self._under_way:
                nap_s = FIRST_NAP_S if self._awaited_progress else self._nap_s
            elif self._to_prepare is not None:
                # The model computes now. Addresses found here cost the next step no time.
                prepare_next_step(*self._to_prepare)
                self._to_prepare = None
                continue
            self._wake_helper.wait(nap_s)
            self._nap_s = NAP_BESIDE_COMPUTE_S
            if self._under_way:  # collect first: what has come meanwhile may wait for its slot
                return None
        return None

    def _can_start(self, transfer: Transfer) -> bool:
        if not transfer.planned_chunk.needs_slot:
            return True  # it moves from the cache itself
        staging = self.device_staging
        if transfer.ready_event is not None and staging is not None and not staging.has_room:
            return False
        return bool(self._slots) or not self.destination.entry.staged

    def _start(self, transfer: Transfer) -> None:
        """Gather a chunk and post it, or begin its way from the device; extents move at once."""
        transfer.stamp(BEGUN)
        planned_chunk = transfer.planned_chunk
        packing = planned_chunk.source
        if not isinstance(packing, Packing):
            post_extents(self.destination, transfer, packing)
            self._to_prepare = planned_chunk, packing
            return
        if planned_chunk.direct is not None:
            return _post_direct(transfer, self._side_cuda_stream, self._post)
        packed = self.destination.place(planned_chunk.stream, planned_chunk.chunk)
        if packed is None:  # the destination has no memory to gather into
            transfer.slot = self._slots.pop()
            packed = transfer.slot[: planned_chunk.chunk.nbytes]
        if transfer.ready_event is None:
            packing.gather(packed)
            transfer.stamp(GATHERED)
            self._post(transfer, packed)
            self._nap_s = NAP_AFTER_POST_S
        elif self._side_cuda_stream is not None:
            with self._side_cuda_stream.pack_chunk(transfer, packing, packed):
                self._post(transfer, packed)
        else:
            assert self.device_staging is not None
            self.device_staging.begin(transfer, packing, packed)

    def _post(self, transfer: Transfer, packed: torch.Tensor | None) -> None:
        post_packed(self.destination, transfer, packed)

    def _collect(self) -> None:
        """Pass on what has come from the device; take the slots of complete chunks back."""
        if self.device_staging is not None:
            for transfer, packed in self.device_staging.take_arrived():
                transfer.stamp(SEEN)  # by an event, the copy has finished earlier than this look
                self._post(transfer, packed)
        # Chunks of a stream complete in order, so only its oldest ones are looked at.
        for key, transfers in list(self._under_way.items()):
            complete_count = self.destination.poll_completed(transfers[0].planned_chunk.stream)
            while transfers and transfers[0].planned_chunk.chunk.index < complete_count:
                self._finish(transfers.popleft())
            if not transfers:
                del self._under_way[key]

    def _finish(self, transfer: Transfer) -> None:
        if transfer.slot is not None:
            self._slots.append(transfer.slot)
        # Before the bytes: whoever sees no lag may call staging(), or ask for the chunk's times.
        self._finished_count += 1
        note_completion(self.destination, transfer)
        byte_progress = transfer.byte_progress
        byte_progress.completed_nbytes += transfer.planned_chunk.chunk.nbytes
        if byte_progress is self._awaited_progress and not byte_progress.lag_nbytes:
            self._wake_model.set()

    def _describe_missing(self) -> str:
        begun_transfers = chain.from_iterable([*self._under_way.values()])
        return _describe_first([*begun_transfers, *self._inbox])


def _make_side_cuda_stream(slots: Sequence[torch.Tensor]) -> SideCudaStream | None:
    """Return the CUDA stream on which slots of a device are filled, beside the model's."""
    on_device = bool(slots) and slots[0].is_cuda
    return SideCudaStream(slots[0].device) if on_device else None


def _post_direct(
    transfer: Transfer,
    side_cuda_stream: SideCudaStream | None,
    post: Callable[[Transfer, torch.Tensor | None], None],
) -> None:
    """Post a chunk that is not packed: behind the model's work, if it is on a device."""
    if transfer.ready_event is None:
        transfer.stamp(GATHERED)
        post(transfer, None)
    else:
        assert side_cuda_stream is not None, "a cache on a device needs staging there"
        with side_cuda_stream.follow_ready(transfer):
            post(transfer, None)


def _describe_first(transfers: Sequence[Transfer]) -> str:
    """Return which chunk is missing first."""
    if not transfers:
        return "no chunk is under way"
    stream = transfers[0].planned_chunk.stream
    chunk = transfers[0].planned_chunk.chunk
    return f"the first missing is chunk {chunk.index} (step {chunk.step}) of stream {stream.id}"
