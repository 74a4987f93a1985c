"""Extents that are copied from a device one by one, with CUDA's copies played by the CPU."""

from __future__ import annotations

import ctypes
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from dejavubench.dejavulib import device
from dejavubench.dejavulib.device import BounceBuffer, DeviceExtents
from dejavubench.dejavulib.extents import cut_extent_views
from dejavubench.dejavulib.packing import aligned_buffer
from helpers.caches import random_cache
from helpers.fake_destination import STEPS, schedule_of, small_geometry


class Runtime:
    """CUDA's runtime as far as extents need it; it notes the calls."""

    memcpyDeviceToHost = 2  # noqa: N815 - CUDA's name

    def __init__(self) -> None:
        self.calls: list[str] = []

    def memcpyAsync(  # noqa: N802 - CUDA's name
        self, destination: int, source: int, nbytes: int, kind: int, stream: int
    ) -> None:
        assert (kind, stream) == (self.memcpyDeviceToHost, 7)
        ctypes.memmove(destination, source, nbytes)
        self.calls.append("copy")

    def streamSynchronize(self, stream: int) -> None:  # noqa: N802 - CUDA's name
        assert stream == 7
        self.calls.append("wait")


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    played: Any = ModuleType("cupy.cuda")
    played.runtime = Runtime()
    monkeypatch.setitem(sys.modules, "cupy", ModuleType("cupy"))
    monkeypatch.setitem(sys.modules, "cupy.cuda", played)
    stream = SimpleNamespace(cuda_stream=7)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: stream)
    monkeypatch.setattr(device, "pinned_buffer", aligned_buffer)
    fake_runtime: Runtime = played.runtime
    return fake_runtime


def test_each_extent_is_copied_and_waited_for_when_the_iteration_comes_to_it(
    runtime: Runtime,
) -> None:
    cache, schedule = random_cache(small_geometry(), 1), schedule_of(small_geometry())
    extents = DeviceExtents(cache, schedule, True, BounceBuffer())
    for step in range(STEPS + 1):
        expected = cut_extent_views(cache, schedule.extents(step))
        step_extents = extents.of_step(step)
        runtime.calls.clear()
        assert len(step_extents) == len(expected)
        assert not runtime.calls  # nothing is copied before it is asked for
        contents = []
        for start in range(0, len(step_extents), 5):  # block by block, as destinations do
            for extent in step_extents[start : start + 5]:
                contents.append(bytes(extent))
                assert runtime.calls == ["copy", "wait"] * len(contents)
        assert contents == [bytes(view) for view in expected]
        assert bytes(step_extents[2]) == contents[2]
        with pytest.raises(IndexError):
            step_extents[len(step_extents)]


def test_batched_extents_are_all_copied_then_waited_for_once(runtime: Runtime) -> None:
    cache, schedule = random_cache(small_geometry(), 2), schedule_of(small_geometry())
    extents = DeviceExtents(cache, schedule, False, BounceBuffer())
    for step in range(STEPS + 1):
        expected = cut_extent_views(cache, schedule.extents(step))
        runtime.calls.clear()
        step_extents = extents.of_step(step)
        assert runtime.calls == ["copy"] * len(expected) + ["wait"]
        assert [bytes(view) for view in step_extents] == [bytes(view) for view in expected]
        extents.prepare(step + 1)
        assert len(runtime.calls) == len(expected) + 1  # preparing copies nothing
