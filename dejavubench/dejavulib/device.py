"""Taking chunks, or single runs, out of a CUDA cache into pinned host memory, on a stream beside the model's."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch

from dejavubench.dejavulib.addresses import Bases, run_addresses
from dejavubench.dejavulib.copies import Packing, pinned_buffer
from dejavubench.dejavulib.kvcache import KVCache
from dejavubench.dejavulib.schedule import Chunk, StreamSchedule
from dejavubench.dejavulib.strided import Choice, StridedCopy, choose

if TYPE_CHECKING:
    from dejavubench.dejavulib.streamer import Job


Kind = Literal["prompt", "token"]
"""Chunks of a kind are alike, so that which way is faster is measured for one of them."""

TIES: Mapping[Kind, float] = {"prompt": 0.03, "token": 0.0}
"""By how much strided DMA may be slower: beside a prompt the kernel takes what the model could use."""


class _Copy(NamedTuple):
    job: Job
    packed: torch.Tensor
    slot: torch.Tensor | None
    done: torch.cuda.Event


class DeviceStaging:
    """Brings chunks to the host, in order; nothing here waits.

    By the gather kernel into staging on the device and a copy of that, or by strided DMA straight from the cache. It is
    the kernel until :meth:`calibrate` has measured which one is faster.

    Args:
        slots: staging on the device: as many gathered chunks can be on their way to the host at once.
        choices: which way, where that is known already.
    """

    def __init__(
        self, slots: Sequence[torch.Tensor], choices: Mapping[Kind, Choice] | None = None
    ) -> None:
        self.slot_nbytes = min(slot.numel() for slot in slots)
        self._slots = deque(slots)
        self._stream = torch.cuda.Stream(slots[0].device)
        self._copies: deque[_Copy] = deque()
        self._choices: dict[Kind, Choice] = {
            "prompt": Choice("kernel"),
            "token": Choice("kernel"),
            **(choices or {}),
        }
        self._strided: WeakKeyDictionary[Packing, StridedCopy] = WeakKeyDictionary()

    @property
    def has_room(self) -> bool:
        """Whether any chunk can begin; those that come by strided DMA hold no slot."""
        return bool(self._slots)

    @property
    def ways(self) -> dict[str, str]:
        """For the record: how the chunks of each kind come to the host."""
        return {kind: str(choice) for kind, choice in self._choices.items()}

    def calibrate(self, cache: KVCache, chunks: Iterable[Chunk]) -> None:
        """Choose a way for each kind by its first chunk; outside any clock, with nothing under way."""
        first: dict[Kind, Chunk] = {}
        for chunk in chunks:
            first.setdefault(_kind(chunk), chunk)
        for kind, chunk in first.items():
            self._choices[kind] = choose(cache, chunk.region, TIES[kind], self._slots[0])

    def begin(self, job: Job, packing: Packing, packed: torch.Tensor) -> None:
        """Once the keys and values are in place: bring them to ``packed`` (pinned, of the chunk's bytes)."""
        assert job.ready is not None
        self._stream.wait_event(job.ready)
        slot = None
        with torch.cuda.stream(self._stream):
            if self._choices[_kind(job.chunk)].way == "strided DMA":
                self._strided_copy(job, packing).to_host(packed, self._stream)
            else:
                slot = self._slots.popleft()
                chunk = slot[: packed.numel()]
                packing.gather(chunk)
                packed.copy_(chunk, non_blocking=True)
            done = torch.cuda.Event()
            done.record(self._stream)
        self._copies.append(_Copy(job, packed, slot, done))

    def _strided_copy(self, job: Job, packing: Packing) -> StridedCopy:
        """That of a planned chunk, made when it first comes and kept as long as its ``packing``."""
        if packing not in self._strided:
            self._strided[packing] = StridedCopy(job.manager.cache, job.chunk.region)
        return self._strided[packing]

    def arrived(self) -> Iterator[tuple[Job, torch.Tensor]]:
        """Chunks that are in host memory now, oldest first."""
        while self._copies and self._copies[0].done.query():
            copy = self._copies.popleft()
            if copy.slot is not None:
                self._slots.append(copy.slot)
            yield copy.job, copy.packed

    def give_up(self) -> None:
        """Forget what is under way: nobody waits for it any more."""
        self._stream.synchronize()
        self._slots.extend(copy.slot for copy in self._copies if copy.slot is not None)
        self._copies.clear()


def _kind(chunk: Chunk) -> Kind:
    return "token" if chunk.step else "prompt"


class Landing:
    """Pinned memory in which single runs land, as large as the largest step that comes by it: one for all streamers of
    which only one at a time has something under way."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def of(self, nbytes: int) -> torch.Tensor:
        if self._buffer.numel() < nbytes:
            self._buffer = pinned_buffer(nbytes)
        return self._buffer[:nbytes]


class DeviceRuns:
    """The runs of a stream's steps, each pulled to the host by a copy of its own as it is iterated over.

    They land in pinned memory of the largest step's bytes, the price of moving a step's runs one by one.

    Args:
        landing: gives it when the runs are found; what lands there is passed on before the next step's.
        each_complete: each copy is waited for before its run is given out. Off: all of a step's are issued, then one
            synchronisation.
    """

    def __init__(
        self, cache: KVCache, schedule: StreamSchedule, each_complete: bool, landing: Landing
    ) -> None:
        self._cache = cache
        self._schedule = schedule
        self._each_complete = each_complete
        self._landing = landing.of(
            max(schedule.step_nbytes(step) for step in range(min(schedule.steps, 1) + 1))
        )
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
        starts, sizes = run_addresses(Bases.of(self._cache), self._schedule.runs(step))
        return _PulledRuns(
            starts, sizes, self._landing, self._stream.cuda_stream, self._each_complete
        )


class _PulledRuns(Sequence[memoryview]):
    """One step's runs. Slices are iterators: a run is pulled when it is asked for, with no line of Python for each."""

    def __init__(
        self,
        starts: np.ndarray,
        sizes: np.ndarray,
        landing: torch.Tensor,
        stream: int,
        each_complete: bool,
    ) -> None:
        ends = np.cumsum(sizes)
        places = landing.data_ptr() + ends - sizes
        self._places, self._starts, self._sizes = places.tolist(), starts.tolist(), sizes.tolist()
        memory = landing.numpy().data
        self._views = [
            memory[end - size : end] for end, size in zip(ends.tolist(), self._sizes, strict=True)
        ]
        self._stream = stream
        self._each_complete = each_complete

    def __len__(self) -> int:
        return len(self._views)

    def __getitem__(self, which: Any) -> Any:
        from cupy.cuda import runtime

        if not isinstance(which, slice):
            if which >= len(self):
                raise IndexError(which)
            return next(iter(self[which : which + 1]))
        views = self._views[which]
        if self._each_complete:
            waited = map(runtime.streamSynchronize, repeat(self._stream))
            # a view is taken first, so that the iteration ends with the last one
            return map(itemgetter(0), zip(views, self._copied(which), waited, strict=False))
        if which.start in (0, None):  # the first block issues them all
            deque(self._copied(slice(None)), maxlen=0)
            runtime.streamSynchronize(self._stream)
        return iter(views)

    def _copied(self, which: slice) -> Iterator[None]:
        """Issues one copy each time it is asked for the next."""
        from cupy.cuda import runtime

        prepared = (self._places[which], self._starts[which], self._sizes[which])
        return map(
            runtime.memcpyAsync, *prepared, repeat(runtime.memcpyDeviceToHost), repeat(self._stream)
        )
