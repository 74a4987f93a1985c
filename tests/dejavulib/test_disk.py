"""The disk destination: its file read back by a reader of its own, and when it is how durable."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dejavubench.dejavulib.destinations.base import StreamingError
from dejavubench.dejavulib.destinations.disk.block_file import Durability
from dejavubench.dejavulib.destinations.disk.stream_file import StepTrailer, count_file_nbytes
from dejavubench.dejavulib.kv_cache import KVLayout, Region, Span
from dejavubench.dejavulib.levels import LEVELS
from helpers.caches import packed_stream, play_model, random_cache
from helpers.disk_files import (
    CUT_LAYERS,
    DURABILITIES,
    IDENTITY,
    INPUT_LEN,
    NEW_TOKENS,
    PROMPT,
    STEPS,
    WHOLE_LAYERS,
    open_stream_file,
    path_of,
    read,
    read_watermark,
    schedule_of,
    stream_microbatch,
)


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("slot", [WHOLE_LAYERS, CUT_LAYERS])
@pytest.mark.parametrize("layout", list(KVLayout))
def test_the_file_has_the_documented_content_at_every_level(
    layout: KVLayout, slot: int, durability: Durability, tmp_path: Path
) -> None:
    schedule = schedule_of(layout, slot)
    source = random_cache(schedule.geometry, seed=7)
    contents = []
    for level in LEVELS:
        with open_stream_file(tmp_path, schedule, level, durability, name=level) as (
            manager,
            destination,
        ):
            # Nothing of this first microbatch may remain.
            stream_microbatch(manager, random_cache(schedule.geometry, seed=8), pattern=0x11)
            stream_microbatch(manager, source)
            destination.check(manager.streams[0])
        contents.append(path_of(tmp_path, level).read_bytes())
    assert all(content == contents[0] for content in contents[1:])
    document = read(contents[0])
    assert len(contents[0]) == count_file_nbytes(schedule)
    assert document.watermark == STEPS + 1
    assert b"".join(record.packed for record in document.records) == packed_stream(source, schedule)
    assert all(record.sound for record in document.records)
    ids = [PROMPT, *(NEW_TOKENS[:, [step]] for step in range(STEPS))]
    assert all(
        np.array_equal(record.tokens, expected)
        for record, expected in zip(document.records, ids, strict=True)
    )
    # O_DIRECT writes whole pages; otherwise the pattern stays.
    assert document.padding == ({0} if durability == "direct" else {0x5A})


@pytest.mark.parametrize("slot", [WHOLE_LAYERS, CUT_LAYERS])
@pytest.mark.parametrize("layout", list(KVLayout))
def test_the_head_of_a_file_has_its_geometry_region_slots_and_identity(
    layout: KVLayout, slot: int, tmp_path: Path
) -> None:
    schedule = schedule_of(layout, slot)
    with open_stream_file(tmp_path, schedule) as (manager, _):
        stream_microbatch(manager, random_cache(schedule.geometry))
    document = read(path_of(tmp_path, "test").read_bytes())
    assert document.header["geometry"] == {
        "layers": 3, "requests": 2, "heads": 2, "positions": 9, "head_size": 16, "itemsize": 2,
        "layout": layout.value,
    }  # fmt: skip
    assert document.header["region"] == {
        "layers": [0, 3],
        "requests": [0, 2],
        "heads": [0, 2],
        "positions": [0, 7],
    }
    assert document.header["slot_nbytes"] == slot, (
        "without it, nobody knows how larger layers are cut"
    )
    assert IDENTITY.items() <= document.header.items()


def test_a_part_of_a_cache_has_its_own_requests_tokens(tmp_path: Path) -> None:
    region = Region(Span(1, 3), Span(1, 2), Span(0, 2), Span(0, 7))
    schedule = schedule_of(KVLayout.HND, region=region)
    with open_stream_file(tmp_path, schedule) as (manager, destination):
        source = random_cache(schedule.geometry)
        stream_microbatch(manager, source)
        destination.check(manager.streams[0])
    document = read(path_of(tmp_path).read_bytes())
    assert b"".join(record.packed for record in document.records) == packed_stream(source, schedule)
    assert [record.tokens.tolist() for record in document.records] == [
        PROMPT[1:].tolist(), [[NEW_TOKENS[1, 0]]], [[NEW_TOKENS[1, 1]]], [[NEW_TOKENS[1, 2]]],
    ]  # fmt: skip


def test_unknown_token_ids_are_minus_one(tmp_path: Path) -> None:
    schedule = schedule_of(KVLayout.HND)
    with open_stream_file(tmp_path, schedule) as (manager, _):
        source = random_cache(schedule.geometry)
        manager.begin()
        play_model(source, manager.cache, schedule, manager)
        manager.drain()
    document = read(path_of(tmp_path).read_bytes())
    assert all((record.tokens == -1).all() for record in document.records)
    assert [record.tokens.shape for record in document.records] == [
        (2, INPUT_LEN),
        (2, 1),
        (2, 1),
        (2, 1),
    ]


# ---- durability ----


def watch_writes(monkeypatch: pytest.MonkeyPatch, on_call: Callable[[str, int], None]) -> None:
    """Call ``seen(call, fd)`` after each write and each fdatasync of this process."""
    for name in ("pwrite", "fdatasync"):
        real = getattr(os, name)

        def watched(
            fd: int, *args: Any, _name: str = name, _real: Callable[..., Any] = real
        ) -> Any:
            written_nbytes = _real(fd, *args)
            on_call(_name, fd)
            return written_nbytes

        monkeypatch.setattr(os, name, watched)


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("level", LEVELS)
def test_killed_at_any_instant_the_watermark_covers_whole_steps_only(
    level: str, durability: Durability, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps under the watermark are sound after each single write, here and on the device."""
    schedule = schedule_of(KVLayout.HND, CUT_LAYERS)
    sources = [random_cache(schedule.geometry, seed) for seed in range(2)]
    packed = [packed_stream(source, schedule) for source in sources]
    watermarks: list[int | None] = []
    on_device = [b""]  # what a loss of power leaves for certain
    number = 0

    def check(call: str, fd: int) -> None:
        content = path_of(tmp_path).read_bytes()
        if call == "fdatasync":
            on_device[0] = content
        contents = [content] if durability == "page-cache" else [content, on_device[0]]
        # The device may have taken any page since, and its watermark not yet.
        old_watermark = read_watermark(on_device[0]) if durability != "page-cache" else None
        if old_watermark:
            records = read(content).records[:old_watermark]
            assert all(record.sound for record in records), f"{call}: {old_watermark} on the device"
        watermark = read_watermark(content)
        watermarks.append(watermark)
        for bytes_ in contents if watermark else ():
            records = read(bytes_).records[:watermark]
            assert all(record.sound for record in records), f"{call}: {watermark} complete"
            written = b"".join(record.packed for record in records)
            assert written == packed[number][: len(written)], f"{call}: another microbatch's bytes"

    with (
        open_stream_file(tmp_path, schedule, level, durability) as (manager, _),
        monkeypatch.context() as patch,
    ):
        watch_writes(patch, check)
        for number, source in enumerate(sources):  # noqa: B007 - check looks at it
            stream_microbatch(manager, source)
    assert watermarks.count(STEPS + 1) >= 2
    steps = [
        mark for previous_mark, mark in pairwise(watermarks) if mark not in (previous_mark, None)
    ]
    assert steps in ([0, 1, 2, 3, 4, 0, 1, 2, 3, 4], [1, 2, 3, 4, 0, 1, 2, 3, 4])


@pytest.mark.parametrize("level", LEVELS)
def test_a_failing_fdatasync_leaves_the_watermark_behind_and_fails(
    level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = schedule_of(KVLayout.HND)
    with open_stream_file(tmp_path, schedule, level) as (manager, destination):
        manager.begin(PROMPT)

        def fail(fd: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        def stream() -> None:
            play_model(manager.cache, manager.cache, schedule, manager)
            manager.drain()

        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fail)
            with pytest.raises(StreamingError, match="Input/output error"):
                stream()
        assert read_watermark(path_of(tmp_path).read_bytes()) == 0
        assert destination.poll_completed(manager.streams[0]) == 0


@pytest.mark.parametrize(
    ("level", "syncs"), [("0", "extents"), ("0-batched", 1), ("1", 1), ("2", 3), ("3", 3)]
)
def test_the_device_is_synced_as_often_as_the_level_says(
    level: str, syncs: int | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Naive: after each extent and the checksums. Batched: once per step. Buffered: per chunk."""
    schedule = schedule_of(KVLayout.FT)
    calls: list[str] = []
    with open_stream_file(tmp_path, schedule, level) as (manager, _):
        manager.begin(PROMPT)
        with monkeypatch.context() as patch:
            watch_writes(patch, lambda call, fd: calls.append(call))
            play_model(manager.cache, manager.cache, schedule, manager)
            manager.drain()
        copies = manager.prompt.copies, manager.tokens.copies
    prompt, tokens = (
        (copies[0] + 1, copies[1] + STEPS) if isinstance(syncs, str) else (syncs, STEPS)
    )
    assert calls.count("fdatasync") == prompt + tokens


@pytest.mark.parametrize(
    ("durability", "syncs"), [("fdatasync", 3 + STEPS), ("direct", 3 + STEPS), ("page-cache", 0)]
)
def test_a_chunk_is_synced_unless_the_page_cache_will_do(
    durability: Durability, syncs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = schedule_of(KVLayout.HND)
    calls: list[str] = []
    with open_stream_file(tmp_path, schedule, "3", durability) as (manager, _):
        manager.begin(PROMPT)
        with monkeypatch.context() as patch:
            watch_writes(patch, lambda call, fd: calls.append(call))
            play_model(manager.cache, manager.cache, schedule, manager)
            manager.drain()
    assert calls.count("fdatasync") == syncs
    assert calls.count("pwrite") >= 3 + STEPS


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = schedule_of(KVLayout.HND)
    source = random_cache(schedule.geometry)
    with open_stream_file(tmp_path, schedule) as (manager, destination):
        real = os.pwrite
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:100], offset))
            stream_microbatch(manager, source)
        destination.check(manager.streams[0])
    document = read(path_of(tmp_path).read_bytes())
    assert b"".join(record.packed for record in document.records) == packed_stream(source, schedule)


def test_a_step_ends_when_its_checksums_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every chunk is hashed beside the write here, and the hash takes longer than the write."""
    schedule = schedule_of(KVLayout.HND, CUT_LAYERS)
    source = random_cache(schedule.geometry)
    add = StepTrailer.add
    hashing: set[str] = set()

    def slow(trailer: StepTrailer, data: memoryview) -> None:
        hashing.add(threading.current_thread().name)
        threading.Event().wait(0.01)
        add(trailer, data)

    monkeypatch.setattr(StepTrailer, "add", slow)
    with open_stream_file(tmp_path, schedule, durability="page-cache", hashed_beside=0) as (
        manager,
        destination,
    ):
        stream_microbatch(manager, source)
        destination.check(manager.streams[0])
    assert all(name.startswith("checksums") for name in hashing)
    document = read(path_of(tmp_path).read_bytes())
    assert b"".join(record.packed for record in document.records) == packed_stream(source, schedule)
