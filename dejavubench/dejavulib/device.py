"""Taking chunks, or single runs, out of a CUDA cache into pinned host memory, on a stream beside the model's."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from dejavubench.dejavulib.copies import Packing, pinned_buffer
from dejavubench.dejavulib.schedule import StreamSchedule
from dejavubench.kvcache import BOTH, KVCache

if TYPE_CHECKING:
    from dejavubench.dejavulib.streamer import Job


class _Copy(NamedTuple):
    job: Job
    packed: torch.Tensor
    slot: torch.Tensor
    done: torch.cuda.Event


class DeviceStaging:
    """Gathers chunks into staging on the device and copies them to the host, in order; nothing here waits.

    Args:
        slots: staging on the device: as many chunks can be on their way to the host at once.
    """

    def __init__(self, slots: Sequence[torch.Tensor]) -> None:
        self.slot_nbytes = min(slot.numel() for slot in slots)
        self._slots = deque(slots)
        self._stream = torch.cuda.Stream(slots[0].device)
        self._copies: deque[_Copy] = deque()

    @property
    def has_room(self) -> bool:
        return bool(self._slots)

    def begin(self, job: Job, packing: Packing, packed: torch.Tensor) -> None:
        """Once the keys and values are in place: gather, then copy to ``packed`` (pinned, of the chunk's bytes)."""
        assert job.ready is not None
        slot = self._slots.popleft()
        self._stream.wait_event(job.ready)
        with torch.cuda.stream(self._stream):
            chunk = slot[: packed.numel()]
            packing.gather(chunk)
            packed.copy_(chunk, non_blocking=True)
            done = torch.cuda.Event()
            done.record(self._stream)
        self._copies.append(_Copy(job, packed, slot, done))

    def arrived(self) -> Iterator[tuple[Job, torch.Tensor]]:
        """Chunks that are in host memory now, oldest first."""
        while self._copies and self._copies[0].done.query():
            copy = self._copies.popleft()
            self._slots.append(copy.slot)
            yield copy.job, copy.packed


class DeviceRuns:
    """The runs of a stream's steps, each pulled to the host by a copy of its own as it is iterated over.

    They land in a pinned buffer of the largest step's bytes, the price of moving a step's runs one by one.

    Args:
        each_complete: each copy is waited for before its run is given out. Off: all of a step's are issued, then one
            synchronisation.
    """

    def __init__(self, cache: KVCache, schedule: StreamSchedule, each_complete: bool) -> None:
        self._cache = cache
        self._schedule = schedule
        self._each_complete = each_complete
        self._landing = pinned_buffer(max(schedule.step_nbytes(step) for step in range(min(schedule.steps, 1) + 1)))
        self._stream = torch.cuda.Stream(cache.k.device)
        self._ahead: dict[int, _PulledRuns] = {}

    def prepare(self, step: int) -> None:
        """Find the addresses of a step that will be asked for next."""
        if step <= self._schedule.steps:
            self._ahead = {step: self._find(step)}

    def of(self, step: int) -> Sequence[memoryview]:
        """The runs of a step whose keys and values are in place."""
        return self._ahead.get(step) or self._find(step)

    def _find(self, step: int) -> _PulledRuns:
        starts, sizes = [], []
        for atom in self._schedule.atoms(step):
            for kv in BOTH:
                runs = self._cache.geometry.runs(kv, atom)
                starts.append(runs.offsets + self._cache.tensor(kv).data_ptr())
                sizes.append(np.full(len(runs.offsets), runs.nbytes))
        return _PulledRuns(
            np.concatenate(starts), np.concatenate(sizes), self._landing, self._stream.cuda_stream, self._each_complete
        )


class _PulledRuns(Sequence[memoryview]):
    """One step's runs. Slices are iterators: a run is pulled when it is asked for."""

    def __init__(
        self, starts: np.ndarray, sizes: np.ndarray, landing: torch.Tensor, stream: int, each_complete: bool
    ) -> None:
        ends = np.cumsum(sizes)
        places = landing.data_ptr() + ends - sizes
        self._copies: list[tuple[int, int, int]] = list(
            zip(places.tolist(), starts.tolist(), sizes.tolist(), strict=True)
        )
        memory = landing.numpy().data
        self._views = [memory[end - size : end] for end, size in zip(ends.tolist(), sizes.tolist(), strict=True)]
        self._stream = stream
        self._each_complete = each_complete

    def __len__(self) -> int:
        return len(self._copies)

    def __getitem__(self, which: Any) -> Any:
        from cupy.cuda import runtime

        if not isinstance(which, slice):
            if which >= len(self):
                raise IndexError(which)
            return next(iter(self[which : which + 1]))
        copies, stream = self._copies[which], self._stream
        if self._each_complete:
            return self._one_by_one(copies, self._views[which])
        if which.start in (0, None):  # the first block issues them all
            for place, start, nbytes in self._copies:
                runtime.memcpyAsync(place, start, nbytes, runtime.memcpyDeviceToHost, stream)
            runtime.streamSynchronize(stream)
        return iter(self._views[which])

    def _one_by_one(self, copies: list[tuple[int, int, int]], views: list[memoryview]) -> Iterator[memoryview]:
        from cupy.cuda import runtime

        copy, wait, kind, stream = (
            runtime.memcpyAsync,
            runtime.streamSynchronize,
            runtime.memcpyDeviceToHost,
            self._stream,
        )
        for (place, start, nbytes), view in zip(copies, views, strict=True):
            copy(place, start, nbytes, kind, stream)
            wait(stream)
            yield view
