"""The staging memory of one source, and the helper threads that use it."""

from __future__ import annotations

import torch

from dejavubench.bench.point.rank import RankAtPoint
from dejavubench.bench.profiling.nvtx import choose_ranged_maker
from dejavubench.dejavulib.destinations.base import Destination
from dejavubench.dejavulib.device import BounceBuffer, DeviceStaging
from dejavubench.dejavulib.kv_cache import KVCache
from dejavubench.dejavulib.levels import DEFAULT_LEVEL, LEVELS
from dejavubench.dejavulib.packing import device_staging, staging
from dejavubench.dejavulib.ranged_streamer import RangedStreamer
from dejavubench.dejavulib.streamer import Streamer


class SourceStaging:
    """The staging memory of one source, shared by all its arms: only one works at a time."""

    def __init__(self, rank_at_point: RankAtPoint, cache: KVCache) -> None:
        self._slot_nbytes = rank_at_point.worker_view.slot_nbytes
        self._count = rank_at_point.point.settings.staging_slots
        self._is_timed = rank_at_point.experiment.chunk_times
        self._make_streamer = choose_ranged_maker(
            rank_at_point.experiment, Streamer, RangedStreamer
        )
        ((whole_stream, *_), *_) = rank_at_point.worker_view.local_streams()
        self._whole_schedule = whole_stream.schedule
        self._cache = cache
        self._device = cache.k.device
        self._slots: dict[str, list[torch.Tensor]] = {}  # by the type of device they are on
        self._on_device: DeviceStaging | None = None
        self._bounce = BounceBuffer()
        self._fetched: torch.Tensor | None = None

    @property
    def on_cuda(self) -> bool:
        """Whether the source's caches are on a CUDA device."""
        return self._device.type == "cuda"

    @property
    def ways(self) -> dict[str, str]:
        """The way that chunks of each kind leave the device, as calibrated; empty on a CPU."""
        return {} if self._on_device is None else self._on_device.ways

    def make_streamer(self, destination: Destination, holds_failure: bool) -> Streamer:
        """Make the helper thread of a destination, with the staging that it needs."""
        is_timed = self._is_timed
        # Chunks that leave from device memory are packed there, and no host slot is needed.
        if destination.device_memory:
            return self._make_streamer(destination, self.slots("cuda"), timed=is_timed)
        # All others leave through host memory: from a GPU by slots on the device, whose way to the
        # host is measured once.
        if self.on_cuda and self._on_device is None:
            self._on_device = self._stage_on_device()
        slots = self.slots("cpu") if destination.entry.staged else ()
        return self._make_streamer(
            destination,
            slots,
            self._on_device,
            self._bounce,
            holds_failure=holds_failure,
            timed=is_timed,
        )

    def fetch_slot(self) -> torch.Tensor:
        """Return a slot of its own for what verification reads back."""
        if self._fetched is None:
            self._fetched = staging(self._slot_nbytes, 1, self.on_cuda)[0]
        return self._fetched

    def slots(self, memory: str) -> list[torch.Tensor]:
        """Return the staging slots on a type of device, ``cpu`` or ``cuda``."""
        if memory not in self._slots:
            nbytes = self._slot_nbytes
            slot_count = self._count
            self._slots[memory] = (
                device_staging(nbytes, slot_count, self._device)
                if memory == "cuda"
                else staging(nbytes, slot_count, self.on_cuda)
            )
        return self._slots[memory]

    def _stage_on_device(self) -> DeviceStaging:
        on_device = DeviceStaging(device_staging(self._slot_nbytes, self._count, self._device))
        on_device.calibrate(self._cache, self._whole_schedule.all_chunks(LEVELS[DEFAULT_LEVEL]))
        return on_device
