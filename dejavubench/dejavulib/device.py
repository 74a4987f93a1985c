"""Bring chunks, or single extents, from a CUDA cache to pinned host memory, beside the model."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import repeat
from operator import itemgetter
from typing import Literal, NamedTuple, overload
from weakref import WeakKeyDictionary

import numpy as np
import torch

from .chunk_times import LatencyPart
from .destinations.registry import DestinationEntry
from .extents import BaseAddresses, find_extent_addresses
from .kv_cache import KVCache
from .packing import Packing, pinned_buffer
from .schedule import Chunk, StreamSchedule
from .strided import StridedCopy, WayChoice, choose
from .transfers import Transfer

Kind = Literal["prompt", "token"]
"""Chunks of a kind are alike: one measurement decides how all of them come to the host."""

TIE_SHARES: Mapping[Kind, float] = {"prompt": 0.03, "token": 0.0}
"""Share of the kernel's time by which strided DMA may be slower and is still chosen.

Beside a prompt the gather kernel takes compute time that the model could use.
"""


class SideCudaStream:
    """A CUDA stream that packs chunks into slots on the device, beside the model's CUDA stream."""

    def __init__(self, device: torch.device) -> None:
        self._cuda_stream = torch.cuda.Stream(device)

    @contextmanager
    def pack_chunk(
        self, transfer: Transfer, packing: Packing, packed: torch.Tensor
    ) -> Iterator[None]:
        """Pack a chunk behind its ``ready`` event. The context makes this the current stream."""
        with self._order_behind_ready(transfer):
            packing.gather(packed)
            if transfer.marks is not None:
                transfer.marks.record("gathered", self._cuda_stream)
            yield

    @contextmanager
    def follow_ready(self, transfer: Transfer) -> Iterator[None]:
        """Pack nothing. The context makes this the current stream, behind the ``ready`` event."""
        with self._order_behind_ready(transfer) as begun:
            if transfer.marks is not None and begun is not None:
                transfer.marks.add("gathered", begun)  # a second event would only take time
            yield

    @contextmanager
    def _order_behind_ready(self, transfer: Transfer) -> Iterator[torch.cuda.Event | None]:
        assert transfer.ready_event is not None
        with torch.cuda.stream(self._cuda_stream):
            # The device waits for the model's kernels; this thread does not.
            self._cuda_stream.wait_event(transfer.ready_event)
            marks = transfer.marks
            yield None if marks is None else marks.record("begun", self._cuda_stream)


class _Copy(NamedTuple):
    transfer: Transfer
    packed: torch.Tensor
    slot: torch.Tensor | None
    copied_event: torch.cuda.Event


class DeviceStaging:
    """Brings packed chunks to the host, in order. Nothing here waits.

    The gather kernel packs a chunk into staging on the device, which is then copied; or strided DMA
    copies straight from the cache. The kernel is used until :meth:`calibrate` has measured both.

    Args:
        slots: staging on the device. As many gathered chunks can be on their way at once.
        choices: the way for each kind of chunk, if it is known already.

    Attributes:
        slot_nbytes: size of the smallest slot.
    """

    def __init__(
        self, slots: Sequence[torch.Tensor], choices: Mapping[Kind, WayChoice] | None = None
    ) -> None:
        self.slot_nbytes = min(slot.numel() for slot in slots)
        self._slots = deque(slots)
        self._cuda_stream = torch.cuda.Stream(slots[0].device)
        self._copies: deque[_Copy] = deque()
        self._choices: dict[Kind, WayChoice] = {
            "prompt": WayChoice("kernel"),
            "token": WayChoice("kernel"),
            **(choices or {}),
        }
        # Weak keys: a prepared copy lives as long as the manager's packing, not longer.
        self._strided_copies: WeakKeyDictionary[Packing, StridedCopy] = WeakKeyDictionary()

    @property
    def has_room(self) -> bool:
        """Whether any chunk can begin; a chunk that comes by strided DMA holds no slot."""
        return bool(self._slots)

    @property
    def ways(self) -> dict[str, str]:
        """The way in which the chunks of each kind come to the host, in words."""
        return {kind: str(choice) for kind, choice in self._choices.items()}

    def parts(self, entry: DestinationEntry, step: int) -> tuple[LatencyPart, ...]:
        """Return the parts of a chunk's latency with its way to the host in them.

        Args:
            entry: declares the parts of a chunk in host memory; they begin with queue and gather.
            step: 0 for the prompt's chunks, else those of a decode step.
        """
        queue, gather, *_ = entry.parts
        later_parts = entry.copied_parts
        if self._choices["token" if step else "prompt"].way == "strided DMA":
            return (queue, LatencyPart(f"{gather.name} + copy to host", "copied"), *later_parts)
        return (queue, gather, LatencyPart("copy to host", "copied"), *later_parts)

    def calibrate(self, cache: KVCache, chunks: Iterable[Chunk]) -> None:
        """Choose a way for each kind by its first chunk. Outside any clock, on an idle device."""
        first_chunks: dict[Kind, Chunk] = {}
        for chunk in chunks:
            first_chunks.setdefault(_name_kind(chunk), chunk)
        for phase, chunk in first_chunks.items():
            self._choices[phase] = choose(cache, chunk.region, TIE_SHARES[phase], self._slots[0])

    def begin(self, transfer: Transfer, packing: Packing, packed: torch.Tensor) -> None:
        """Issue the copies that bring a chunk to the host, behind its ``ready`` event.

        Args:
            packed: pinned buffer of the chunk's bytes.
        """
        assert transfer.ready_event is not None
        self._cuda_stream.wait_event(transfer.ready_event)
        slot = None
        marks = transfer.marks
        with torch.cuda.stream(self._cuda_stream):
            if marks is not None:
                marks.record("begun", self._cuda_stream)
            # Strided DMA needs no slot: it reads the cache, which stays as it is until complete.
            if self._choices[_name_kind(transfer.planned_chunk.chunk)].way == "strided DMA":
                self._strided_copy(packing).to_host(packed, self._cuda_stream)
            else:
                slot = self._slots.popleft()
                chunk = slot[: packed.numel()]
                packing.gather(chunk)
                if marks is not None:
                    marks.record("gathered", self._cuda_stream)
                packed.copy_(chunk, non_blocking=True)
            copied_event = torch.cuda.Event(enable_timing=marks is not None)
            copied_event.record(self._cuda_stream)
        if marks is not None:
            marks.add("copied", copied_event)
            if slot is None:  # gathered by the copy itself
                marks.add("gathered", copied_event)
        self._copies.append(_Copy(transfer, packed, slot, copied_event))

    def _strided_copy(self, packing: Packing) -> StridedCopy:
        """Return the copy of a planned chunk; made once and kept as long as its ``packing``."""
        if packing not in self._strided_copies:
            self._strided_copies[packing] = StridedCopy(packing.cache, packing.region)
        return self._strided_copies[packing]

    def take_arrived(self) -> Iterator[tuple[Transfer, torch.Tensor]]:
        """Yield the chunks that are in host memory by now, oldest first."""
        # One CUDA stream runs all copies, so the oldest is done first: no later event is asked.
        while self._copies and self._copies[0].copied_event.query():
            copy = self._copies.popleft()
            if copy.slot is not None:
                self._slots.append(copy.slot)
            yield copy.transfer, copy.packed

    def give_up(self) -> None:
        """Forget what is under way: nobody waits for it any more."""
        self._cuda_stream.synchronize()  # a slot may be reused only when no copy reads it any more
        self._slots.extend(copy.slot for copy in self._copies if copy.slot is not None)
        self._copies.clear()


def _name_kind(chunk: Chunk) -> Kind:
    return "token" if chunk.step else "prompt"


class BounceBuffer:
    """Pinned host memory that single extents from a device pass through; holds the largest step.

    Streamers of which only one at a time has something under way can share one.
    """

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def first_bytes(self, nbytes: int) -> torch.Tensor:
        """Return the first ``nbytes`` bytes; the memory grows if it is smaller."""
        if self._buffer.numel() < nbytes:
            self._buffer = pinned_buffer(nbytes)
        return self._buffer[:nbytes]


class DeviceExtents:
    """The extents of a stream's steps, each copied to the host by a copy of its own.

    They pass through a bounce buffer of the largest step's bytes: the price of moving a step's
    extents one by one.

    Args:
        each_complete: each copy is waited for before its extent is given out. Off: all copies of a
            step are issued, then one synchronisation.
        bounce: gives the buffer. Its contents are passed on before the next step's arrive.
    """

    def __init__(
        self, cache: KVCache, schedule: StreamSchedule, each_complete: bool, bounce: BounceBuffer
    ) -> None:
        self._cache = cache
        self._schedule = schedule
        self._each_complete = each_complete
        self._bounce = bounce.first_bytes(schedule.largest_nbytes)
        self._cuda_stream = torch.cuda.Stream(cache.k.device)
        self._prepared_copies: dict[int, _Copies] = {}

    def prepare(self, step: int) -> None:
        """Find the addresses of a step that is needed next."""
        if step <= self._schedule.steps:
            self._prepared_copies = {step: self._find(step)}

    def of_step(self, step: int) -> Sequence[memoryview]:
        """Return the extents of a step whose keys and values are in place.

        With ``each_complete``, an extent is copied when an iteration comes to it. Without, all of
        them have been copied.
        """
        copies = self._prepared_copies.get(step) or self._find(step)
        if self._each_complete:
            return _OneByOne(copies, self._cuda_stream.cuda_stream)
        copies.issue(self._cuda_stream.cuda_stream)
        return copies.views

    def _find(self, step: int) -> _Copies:
        device_addresses, sizes = find_extent_addresses(
            BaseAddresses.of_cache(self._cache), self._schedule.extents(step)
        )
        # Extents lie one behind another in the buffer, in packed order.
        extent_ends = np.cumsum(sizes)
        buffer_addresses = self._bounce.data_ptr() + extent_ends - sizes
        memory = self._bounce.numpy().data
        byte_ranges = zip((extent_ends - sizes).tolist(), extent_ends.tolist(), strict=True)
        views = [memory[begin:end] for begin, end in byte_ranges]
        return _Copies(buffer_addresses.tolist(), device_addresses.tolist(), sizes.tolist(), views)


class _Copies(NamedTuple):
    """Copies of single extents from a device to a bounce buffer.

    Attributes:
        buffer_addresses, device_addresses: of each copy, in the buffer and on the device.
        sizes: bytes of each copy.
        views: the extents in the buffer.
    """

    buffer_addresses: list[int]
    device_addresses: list[int]
    sizes: list[int]
    views: list[memoryview]

    def cut(self, block: slice) -> _Copies:
        """Return some of the copies."""
        buffer_addresses, device_addresses, sizes, views = self
        return _Copies(buffer_addresses[block], device_addresses[block], sizes[block], views[block])

    def issuing(self, cuda_stream_handle: int) -> Iterator[None]:
        """Return an iterator that issues the next copy each time it is advanced."""
        from cupy.cuda import runtime

        # map() over prepared lists: Python runs no bytecode per extent.
        copies = (self.buffer_addresses, self.device_addresses, self.sizes)
        direction = runtime.memcpyDeviceToHost
        return map(runtime.memcpyAsync, *copies, repeat(direction), repeat(cuda_stream_handle))

    def issue(self, cuda_stream_handle: int) -> None:
        """Issue all copies and wait until they are done."""
        from cupy.cuda import runtime

        # Runs the iterator in C and keeps nothing.
        deque(self.issuing(cuda_stream_handle), maxlen=0)
        runtime.streamSynchronize(cuda_stream_handle)


class _OneByOne(Sequence[memoryview]):
    """Extents on a device, each copied and waited for when an iteration comes to it."""

    def __init__(self, copies: _Copies, cuda_stream_handle: int) -> None:
        self._copies = copies
        self._cuda_stream_handle = cuda_stream_handle

    def __len__(self) -> int:
        return len(self._copies.views)

    @overload
    def __getitem__(self, index: int) -> memoryview: ...
    @overload
    def __getitem__(self, index: slice) -> _OneByOne: ...
    def __getitem__(self, index: int | slice) -> memoryview | _OneByOne:
        if isinstance(index, slice):
            return _OneByOne(self._copies.cut(index), self._cuda_stream_handle)
        if not 0 <= index < len(self):
            raise IndexError(index)
        return next(iter(self[index : index + 1]))

    def __iter__(self) -> Iterator[memoryview]:
        from cupy.cuda import runtime

        issued_copies = self._copies.issuing(self._cuda_stream_handle)
        waits = map(runtime.streamSynchronize, repeat(self._cuda_stream_handle))
        # zip() takes a view first, so that nothing is issued behind the last one.
        return map(itemgetter(0), zip(self._copies.views, issued_copies, waits, strict=False))
