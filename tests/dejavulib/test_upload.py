"""Chunks that come in host memory for a cache on a device: in place before they count as such."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch

from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.kv_cache import BOTH, KVCache, KVLayout
from dejavubench.dejavulib.levels import LEVELS, Level
from dejavubench.dejavulib.packing import Packing, staging
from dejavubench.dejavulib.receiver import CacheReceiver, receive_all
from dejavubench.dejavulib.schedule import StreamSchedule
from dejavubench.dejavulib.upload import DeviceUpload
from helpers.caches import packed_bytes, packed_stream, random_cache
from helpers.fake_destination import (
    CUT_LAYERS,
    WHOLE_LAYERS,
    schedule_of,
    small_geometry,
)
from helpers.gpu_marks import needs_gpus


class Arrived:
    """A receive whose chunk has come; ``deliver`` puts it in its place."""

    received_ns = 1

    def __init__(self, deliver: Callable[[], None]) -> None:
        self._deliver = deliver

    def poll(self) -> bool:
        self._deliver()
        return True


class PackedEndpoint:
    """The sink's side of a link over which a whole stream has come already.

    Attributes:
        asked_count: chunks that were asked for so far.
        acknowledged_count: chunks that were acknowledged so far.
    """

    by_address = False

    def __init__(self, cache: KVCache, schedule: StreamSchedule) -> None:
        self._packed = torch.frombuffer(
            bytearray(packed_stream(cache, schedule)), dtype=torch.uint8
        )
        self._offset = 0
        self.asked_count = self.acknowledged_count = 0

    def _take(self, nbytes: int) -> torch.Tensor:
        begin, self._offset = self._offset, self._offset + nbytes
        return self._packed[begin : self._offset]

    def receive(
        self, stream: Stream, packed: torch.Tensor, scatter: Callable[[torch.Tensor], None]
    ) -> Arrived:
        self.asked_count += 1
        chunk = self._take(packed.numel())

        def deliver() -> None:
            packed.copy_(chunk)
            scatter(packed)

        return Arrived(deliver)

    def receive_extents(
        self, stream: Stream, extents: Sequence[Any], each_complete: bool
    ) -> Arrived:
        self.asked_count += 1
        chunk = self._take(sum(map(len, extents))).numpy().tobytes()

        def deliver() -> None:
            offset = 0
            for extent in extents:
                extent[:] = chunk[offset : offset + len(extent)]
                offset += len(extent)

        return Arrived(deliver)

    def acknowledge(self, stream: Stream) -> None:
        self.acknowledged_count += 1

    def finish(self) -> None: ...

    def close(self) -> None: ...


class SlowUpload:
    """An upload whose bytes are in their place when the test says so."""

    def __init__(self) -> None:
        self.marks: list[SlowMark] = []

    def put(self, packed: torch.Tensor, scatter: Callable[[torch.Tensor], None]) -> None:
        scatter(packed.clone())

    def mark(self) -> SlowMark:
        self.marks.append(SlowMark())
        return self.marks[-1]


class SlowMark:
    reached = False

    def query(self) -> bool:
        return self.reached


def test_a_chunk_counts_and_frees_its_slot_once_its_upload_has_ended() -> None:
    source = random_cache(small_geometry())
    stream = Stream(0, schedule_of(source.geometry))
    cache = KVCache.allocate(source.geometry, source.k.dtype)
    endpoint, upload = PackedEndpoint(source, stream.schedule), SlowUpload()
    receiver = CacheReceiver(
        cache,
        stream,
        LEVELS["3"],
        endpoint,
        staging(WHOLE_LAYERS, 2),
        upload=cast(DeviceUpload, upload),
    )
    receiver.begin()
    assert receiver.poll()
    assert receiver.poll()
    # Both slots hold chunks that are on their way to the device.
    assert not receiver.poll()
    assert (endpoint.asked_count, endpoint.acknowledged_count, receiver.nbytes) == (2, 0, 0)
    upload.marks[0].reached = True
    assert receiver.poll()
    assert (endpoint.asked_count, endpoint.acknowledged_count) == (3, 1)
    for _ in range(2 * receiver.missing_count):
        for mark in upload.marks:
            mark.reached = True
        receiver.poll()
    assert receiver.done
    assert endpoint.acknowledged_count == endpoint.asked_count == stream.schedule.count(LEVELS["3"])
    written = source.geometry.region(positions=stream.schedule.region.positions)
    assert all(torch.equal(cache.piece(kv, written), source.piece(kv, written)) for kv in BOTH)


# ---- on a device ----

on_a_device = needs_gpus(1)


@pytest.mark.gpu
@on_a_device
@pytest.mark.parametrize("slot", [WHOLE_LAYERS, CUT_LAYERS])
@pytest.mark.parametrize("layout", list(KVLayout))
@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
def test_every_byte_that_comes_in_host_memory_gets_to_the_device(
    level: Level, layout: KVLayout, slot: int
) -> None:
    source = random_cache(small_geometry(layout))
    stream = Stream(0, schedule_of(source.geometry, slot))
    cache = KVCache.allocate(source.geometry, source.k.dtype, "cuda")
    upload = DeviceUpload(cache.k.device, 64)  # grows with the first chunks
    for pattern in (0x11, 0x22):
        endpoint = PackedEndpoint(source, stream.schedule)
        receiver = CacheReceiver(cache, stream, level, endpoint, upload=upload)
        cache.fill(pattern)
        receiver.begin()
        receive_all([receiver])
        assert endpoint.acknowledged_count == stream.schedule.count(level)
        back = KVCache(cache.geometry, cache.k.cpu(), cache.v.cpu())
        assert packed_stream(back, stream.schedule) == packed_stream(source, stream.schedule)


@pytest.mark.gpu
@on_a_device
def test_blocks_that_share_the_staging_keep_their_order() -> None:
    geometry = small_geometry()
    cache = KVCache.allocate(geometry, torch.int16, "cuda")
    sources = [random_cache(geometry, seed) for seed in range(20)]
    upload = DeviceUpload(cache.k.device, 64)
    packing = Packing(cache, geometry.whole)
    regions = [geometry.whole.layer(number) for number in range(geometry.layers)]
    torch.cuda._sleep(20_000_000)
    event = torch.cuda.Event()
    event.record()
    upload.wait_for(event)
    for source in sources:
        packed = torch.frombuffer(bytearray(packed_bytes(source, regions)), dtype=torch.uint8)
        upload.put(packed, packing.scatter)
    upload.mark().synchronize()
    assert torch.equal(cache.k.cpu(), sources[-1].k)
    assert torch.equal(cache.v.cpu(), sources[-1].v)
