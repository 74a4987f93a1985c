"""The disk destination: its file read back by a reader of its own, durability, damage, and no room."""

from __future__ import annotations

import errno
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from caches import packed_stream, play_model, random_cache

from dejavubench.dejavulib.blockfile import Durability
from dejavubench.dejavulib.destinations import disk
from dejavubench.dejavulib.destinations.base import Stream, StreamingError
from dejavubench.dejavulib.destinations.disk import DiskDestination
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.manager import CacheManager, Streamer
from dejavubench.dejavulib.schedule import StreamSchedule
from dejavubench.dejavulib.streamfile import StepTrailer, file_nbytes
from dejavubench.kvcache import KVCache, KVGeometry, KVLayout, Region, Span

PAGE = 4096
INPUT_LEN, STEPS = 4, 3
WHOLE_LAYERS, CUT_LAYERS = 1 << 16, 300
DURABILITIES: list[Durability] = ["fdatasync", "direct", "page-cache"]
IDENTITY = {"run": "r1", "model": "tiny", "weights": "seed 0", "data_type": "fp16"}

PROMPT = np.arange(8).reshape(2, INPUT_LEN) + 100
NEW_TOKENS = np.arange(6).reshape(2, STEPS) + 200


# ---- a reader that shares no code with the writer ----


@dataclass
class Record:
    """One step of a file."""

    packed: bytes
    layers: list[bytes]
    tokens: np.ndarray
    checksums: list[int]

    @property
    def sound(self) -> bool:
        return [xxhash.xxh3_64_intdigest(layer) for layer in self.layers] == self.checksums


@dataclass
class Document:
    header: dict[str, Any]
    watermark: int | None
    records: list[Record]
    padding: set[int]


def read(content: bytes) -> Document:
    """Follow the documented layout, from the header alone."""
    assert content[:8] == b"DEJAVUKV"
    version, length = struct.unpack_from("<II", content, 8)
    assert version == 1
    text = content[16 : 16 + length]
    assert content[16 + length : 24 + length] == xxhash.xxh3_64_digest(text)
    header = json.loads(text)
    at, records, padding = 2 * PAGE, [], set[int]()
    for step in range(header["steps"] + 1):
        positions = 1 if step else header["input_len"]
        layers, requests, heads = (stop - start for start, stop in (header["region"][a] for a in AXES))
        geometry = header["geometry"]
        layer_nbytes = 2 * requests * heads * positions * geometry["head_size"] * geometry["itemsize"]
        packed = content[at : at + layers * layer_nbytes]
        at += len(packed)
        tokens = np.frombuffer(content, "<i4", requests * positions, at).reshape(requests, positions)
        at += tokens.nbytes
        checksums = np.frombuffer(content[at : at + 8 * layers], "<u8").tolist()
        at += 8 * layers
        cut = [packed[layer * layer_nbytes : (layer + 1) * layer_nbytes] for layer in range(layers)]
        records.append(Record(packed, cut, tokens, checksums))
        end, at = at, -(-at // PAGE) * PAGE  # each record begins a page
        padding |= set(content[end:at])
    assert len(content) == at
    return Document(header, read_watermark(content), records, padding)


AXES = ("layers", "requests", "heads")


def read_watermark(content: bytes) -> int | None:
    """Complete steps; None where the page says nothing that can be trusted."""
    count, checksum = content[PAGE : PAGE + 8], content[PAGE + 8 : PAGE + 16]
    return struct.unpack("<Q", count)[0] if xxhash.xxh3_64_digest(count) == checksum else None


# ---- writing ----


def schedule_of(layout: KVLayout, slot: int = WHOLE_LAYERS, region: Region | None = None) -> StreamSchedule:
    geometry = KVGeometry(3, 2, 2, 9, 16, 2, layout)
    return StreamSchedule(geometry, region or geometry.whole, INPUT_LEN, STEPS, slot)


@contextmanager
def writing(
    directory: Path,
    schedule: StreamSchedule,
    level: str = "3",
    durability: Durability = "fdatasync",
    name: str = "test",
) -> Iterator[tuple[CacheManager, DiskDestination]]:
    """A manager whose stream is kept in ``<name>-stream0.kv``; skips where O_DIRECT is refused."""
    probe = directory / "probe"
    if durability == "direct":
        try:
            os.close(os.open(probe, os.O_CREAT | os.O_RDWR | os.O_DIRECT))
        except OSError as error:
            pytest.skip(f"the temporary folder's file system refuses O_DIRECT: {error.strerror}")
        finally:
            probe.unlink(missing_ok=True)
    destination = DiskDestination(directory, name, durability, True, IDENTITY)
    streamer = Streamer(destination, schedule.slot_nbytes, 2)
    cache = KVCache.allocate(schedule.geometry, torch.int16)
    try:
        yield CacheManager(cache, [Stream(0, schedule)], LEVELS[level], streamer, 30.0), destination
    finally:
        streamer.close()


def microbatch(manager: CacheManager, source: KVCache, pattern: int = 0x5A) -> None:
    manager.begin(PROMPT, pattern)
    play_model(source, manager.cache, manager.streams[0].schedule, manager, NEW_TOKENS)
    manager.drain()


def path_of(directory: Path, name: str = "test") -> Path:
    return directory / f"{name}-stream0.kv"


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("slot", [WHOLE_LAYERS, CUT_LAYERS])
@pytest.mark.parametrize("layout", list(KVLayout))
def test_the_file_is_as_documented_and_the_same_at_every_level(
    layout: KVLayout, slot: int, durability: Durability, tmp_path: Path
) -> None:
    schedule = schedule_of(layout, slot)
    source = random_cache(schedule.geometry, seed=7)
    contents = []
    for level in LEVELS:
        with writing(tmp_path, schedule, level, durability, name=level) as (manager, destination):
            microbatch(manager, random_cache(schedule.geometry, seed=8), pattern=0x11)  # what is left of it must go
            microbatch(manager, source)
            destination.check(manager.streams[0])
        contents.append(path_of(tmp_path, level).read_bytes())
    assert all(content == contents[0] for content in contents[1:])
    document = read(contents[0])
    assert len(contents[0]) == file_nbytes(schedule)
    assert document.watermark == STEPS + 1
    assert b"".join(record.packed for record in document.records) == packed_stream(source, schedule)
    assert all(record.sound for record in document.records)
    ids = [PROMPT, *(NEW_TOKENS[:, [step]] for step in range(STEPS))]
    assert all(np.array_equal(record.tokens, seen) for record, seen in zip(document.records, ids, strict=True))
    assert document.padding == (
        {0} if durability == "direct" else {0x5A}
    )  # whole pages are written, or the pattern stays
    assert document.header["geometry"] == {
        "layers": 3, "requests": 2, "heads": 2, "positions": 9, "head_size": 16, "itemsize": 2, "layout": layout.value,
    }  # fmt: skip
    assert document.header["region"] == {"layers": [0, 3], "requests": [0, 2], "heads": [0, 2], "positions": [0, 7]}
    assert document.header["slot_nbytes"] == slot, "without it, nobody knows how larger layers are cut"
    assert IDENTITY.items() <= document.header.items()


def test_a_part_of_a_cache_has_its_own_requests_tokens(tmp_path: Path) -> None:
    region = Region(Span(1, 3), Span(1, 2), Span(0, 2), Span(0, 7))
    schedule = schedule_of(KVLayout.HND, region=region)
    with writing(tmp_path, schedule) as (manager, destination):
        source = random_cache(schedule.geometry)
        microbatch(manager, source)
        destination.check(manager.streams[0])
    document = read(path_of(tmp_path).read_bytes())
    assert b"".join(record.packed for record in document.records) == packed_stream(source, schedule)
    assert [record.tokens.tolist() for record in document.records] == [
        PROMPT[1:].tolist(), [[NEW_TOKENS[1, 0]]], [[NEW_TOKENS[1, 1]]], [[NEW_TOKENS[1, 2]]],
    ]  # fmt: skip


def test_unknown_token_ids_are_minus_one(tmp_path: Path) -> None:
    schedule = schedule_of(KVLayout.HND)
    with writing(tmp_path, schedule) as (manager, _):
        source = random_cache(schedule.geometry)
        manager.begin()
        play_model(source, manager.cache, schedule, manager)
        manager.drain()
    document = read(path_of(tmp_path).read_bytes())
    assert all((record.tokens == -1).all() for record in document.records)
    assert [record.tokens.shape for record in document.records] == [(2, INPUT_LEN), (2, 1), (2, 1), (2, 1)]


# ---- durability ----


def watch(monkeypatch: pytest.MonkeyPatch, seen: Callable[[str, int], None]) -> None:
    """Call ``seen(what, fd)`` after each write and each fdatasync of this process."""
    for name in ("pwrite", "fdatasync"):
        real = getattr(os, name)

        def watched(fd: int, *args: Any, _name: str = name, _real: Callable[..., Any] = real) -> Any:
            result = _real(fd, *args)
            seen(_name, fd)
            return result

        monkeypatch.setattr(os, name, watched)


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("level", LEVELS)
def test_killed_at_any_instant_the_watermark_covers_whole_steps_only(
    level: str, durability: Durability, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is under the watermark is sound after each single write, in this process and on the device."""
    schedule = schedule_of(KVLayout.HND, CUT_LAYERS)
    sources = [random_cache(schedule.geometry, seed) for seed in range(2)]
    packed = [packed_stream(source, schedule) for source in sources]
    watermarks: list[int | None] = []
    on_device = [b""]  # what a loss of power leaves for certain
    number = 0

    def check(what: str, fd: int) -> None:
        content = path_of(tmp_path).read_bytes()
        if what == "fdatasync":
            on_device[0] = content
        old = read_watermark(on_device[0]) if durability != "page-cache" else None
        if old:  # the device may have taken any page since, and its watermark not yet
            assert all(record.sound for record in read(content).records[:old]), (
                f"after {what}: {old} steps on the device"
            )
        watermark = read_watermark(content)
        watermarks.append(watermark)
        if not watermark:
            return
        known = [content] if durability == "page-cache" else [content, on_device[0]]
        for bytes_ in known:
            records = read(bytes_).records[:watermark]
            assert all(record.sound for record in records), f"after {what}: {watermark} steps are said to be complete"
            written = b"".join(record.packed for record in records)
            assert written == packed[number][: len(written)], f"after {what}: bytes of another microbatch"

    with writing(tmp_path, schedule, level, durability) as (manager, _), monkeypatch.context() as patch:
        watch(patch, check)
        for number, source in enumerate(sources):  # noqa: B007 - check looks at it
            microbatch(manager, source)
    assert watermarks.count(STEPS + 1) >= 2
    steps = [mark for mark, before in zip(watermarks[1:], watermarks, strict=False) if mark not in (before, None)]
    assert steps in ([0, 1, 2, 3, 4, 0, 1, 2, 3, 4], [1, 2, 3, 4, 0, 1, 2, 3, 4])


@pytest.mark.parametrize("level", LEVELS)
def test_a_failing_fdatasync_leaves_the_watermark_behind_and_fails(
    level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = schedule_of(KVLayout.HND)
    with writing(tmp_path, schedule, level) as (manager, destination):
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
        assert destination.completed(manager.streams[0]) == 0


@pytest.mark.parametrize(("level", "syncs"), [("0", "runs"), ("0-batched", 1), ("1", 1), ("2", 3), ("3", 3)])
def test_how_often_the_device_is_waited_for(
    level: str, syncs: int | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Naive: after each run, and the checksums; batched: once a step; buffered: once a chunk."""
    schedule = schedule_of(KVLayout.FT)
    calls: list[str] = []
    with writing(tmp_path, schedule, level) as (manager, _):
        manager.begin(PROMPT)
        with monkeypatch.context() as patch:
            watch(patch, lambda what, fd: calls.append(what))
            play_model(manager.cache, manager.cache, schedule, manager)
            manager.drain()
        runs = manager.prompt.copies, manager.tokens.copies
    prompt, tokens = (runs[0] + 1, runs[1] + STEPS) if syncs == "runs" else (syncs, STEPS)
    assert calls.count("fdatasync") == prompt + tokens


@pytest.mark.parametrize(("durability", "syncs"), [("fdatasync", 3 + STEPS), ("direct", 3 + STEPS), ("page-cache", 0)])
def test_a_chunk_is_synced_unless_the_page_cache_will_do(
    durability: Durability, syncs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = schedule_of(KVLayout.HND)
    calls: list[str] = []
    with writing(tmp_path, schedule, "3", durability) as (manager, destination):
        manager.begin(PROMPT)
        with monkeypatch.context() as patch:
            watch(patch, lambda what, fd: calls.append(what))
            play_model(manager.cache, manager.cache, schedule, manager)
            manager.drain()
        assert destination.capabilities.durable == (durability != "page-cache")
    assert calls.count("fdatasync") == syncs
    assert calls.count("pwrite") >= 3 + STEPS


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = schedule_of(KVLayout.HND)
    source = random_cache(schedule.geometry)
    with writing(tmp_path, schedule) as (manager, destination):
        real = os.pwrite
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:100], at))
            microbatch(manager, source)
        destination.check(manager.streams[0])
    document = read(path_of(tmp_path).read_bytes())
    assert b"".join(record.packed for record in document.records) == packed_stream(source, schedule)


def test_a_step_ends_when_its_checksums_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large chunks are hashed beside the write; here each is, and the hash takes longer than the write."""
    schedule = schedule_of(KVLayout.HND, CUT_LAYERS)
    source = random_cache(schedule.geometry)
    add = StepTrailer.add
    hashing: set[str] = set()

    def slow(trailer: StepTrailer, data: memoryview) -> None:
        hashing.add(threading.current_thread().name)
        threading.Event().wait(0.01)
        add(trailer, data)

    monkeypatch.setattr(disk, "BESIDE", 0)
    monkeypatch.setattr(StepTrailer, "add", slow)
    with writing(tmp_path, schedule, durability="page-cache") as (manager, destination):
        microbatch(manager, source)
        destination.check(manager.streams[0])
    assert all(name.startswith("checksums") for name in hashing)
    document = read(path_of(tmp_path).read_bytes())
    assert b"".join(record.packed for record in document.records) == packed_stream(source, schedule)


# ---- damage ----


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize(("step", "layer"), [(0, 0), (0, 2), (1, 1), (STEPS, 2)])
def test_a_flipped_bit_is_found(step: int, layer: int, durability: Durability, tmp_path: Path) -> None:
    schedule = schedule_of(KVLayout.HND)
    with writing(tmp_path, schedule, durability=durability) as (manager, destination):
        microbatch(manager, random_cache(schedule.geometry))
        destination.check(manager.streams[0])
        content = path_of(tmp_path).read_bytes()
        packed = read(content).records[step].layers[layer]
        at = content.index(packed) + len(packed) // 3
        with path_of(tmp_path).open("r+b") as file:
            file.seek(at)
            file.write(bytes([content[at] ^ 0x10]))
        with pytest.raises(StreamingError, match=f"test-stream0.kv: checksum of step {step}, layer {layer} does not"):
            destination.check(manager.streams[0])


def test_a_damaged_layer_is_named_in_the_caches_numbers(tmp_path: Path) -> None:
    schedule = schedule_of(KVLayout.HND, region=Region(Span(1, 3), Span(0, 2), Span(0, 2), Span(0, 7)))
    with writing(tmp_path, schedule) as (manager, destination):
        microbatch(manager, random_cache(schedule.geometry))
        with path_of(tmp_path).open("r+b") as file:
            file.seek(2 * PAGE)
            first = file.read(1)
            file.seek(2 * PAGE)
            file.write(bytes([first[0] ^ 1]))
        with pytest.raises(StreamingError, match="checksum of step 0, layer 1"):
            destination.check(manager.streams[0])


def test_a_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    schedule = schedule_of(KVLayout.HND)
    with writing(tmp_path, schedule) as (manager, destination):
        microbatch(manager, random_cache(schedule.geometry))
        os.truncate(path_of(tmp_path), 2 * PAGE + 100)
        with pytest.raises(StreamingError, match=f"test-stream0.kv ends at byte {2 * PAGE + 100}"):
            destination.check(manager.streams[0])


# ---- what is refused, what is left behind ----

CHILD = """
import os, resource, signal, sys
from pathlib import Path
import numpy as np
from dejavubench.dejavulib.destinations.base import Stream, StreamingError
from dejavubench.dejavulib.destinations.disk import DiskDestination
from dejavubench.dejavulib.schedule import StreamSchedule
from dejavubench.kvcache import KVGeometry

directory, keep, what = Path(sys.argv[1]), sys.argv[2] == "keep", sys.argv[3]
if what == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, 64 << 10))
geometry = KVGeometry(4, 2, 2, 64, 16, 2)  # 64 KiB, and the pages before and behind
stream = Stream(0, StreamSchedule(geometry, geometry.whole, 60, 4, 1 << 20))
destination = DiskDestination(directory, "child", "fdatasync", keep, {})
try:
    destination.begin(stream, np.zeros((2, 60), np.int64))
except StreamingError as error:
    print("refused:", error, len(os.listdir(directory)))
    sys.exit(3)
print("begun", flush=True)
if what == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
destination.close()
"""


def child(directory: Path, keep: bool, what: str) -> tuple[int, str]:
    """Status and output of a process that makes a file in ``directory`` and does ``what``."""
    command = [sys.executable, "-c", CHILD, str(directory), "keep" if keep else "drop", what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 3, -signal.SIGKILL), done.stderr
    return done.returncode, done.stdout


@pytest.mark.parametrize("keep", [False, True])
def test_killed_it_leaves_a_file_only_if_told_to(keep: bool, tmp_path: Path) -> None:
    assert child(tmp_path, keep, "kill") == (-signal.SIGKILL, "begun\n")
    left = list(tmp_path.iterdir())
    assert [file.name for file in left] == (["child-stream0.kv"] if keep else [])
    if keep:
        assert read(left[0].read_bytes()).watermark == 0


@pytest.mark.parametrize("keep", [False, True])
def test_a_file_size_limit_is_noticed_before_anything_streams(keep: bool, tmp_path: Path) -> None:
    status, said = child(tmp_path, keep, "limit")
    assert status == 3
    assert said.startswith(f"refused: no room for {2 * PAGE + 65536 + 4 * PAGE} bytes in {tmp_path}: File too large")
    assert said.endswith(" 0\n"), "a file was left"


def test_a_full_file_system_is_noticed_before_anything_streams(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting a small tmpfs is not allowed: {mounted.stderr.decode().strip()}")
    try:
        status, said = child(small, True, "close")
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert status == 3
    assert f"bytes in {small}: No space left on device 0" in said


@pytest.mark.parametrize("keep", [False, True])
def test_closing_leaves_a_file_only_if_told_to(keep: bool, tmp_path: Path) -> None:
    destination = DiskDestination(tmp_path, "test", "fdatasync", keep, IDENTITY)
    destination.begin(Stream(0, schedule_of(KVLayout.HND)), PROMPT)
    destination.close()
    assert list(tmp_path.iterdir()) == ([path_of(tmp_path)] if keep else [])


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    path_of(tmp_path).write_bytes(b"precious")
    with (
        writing(tmp_path, schedule_of(KVLayout.HND)) as (manager, _),
        pytest.raises(StreamingError, match=r"cannot create .*test-stream0.kv for fdatasync streaming: File exists"),
    ):
        manager.begin()
    assert path_of(tmp_path).read_bytes() == b"precious"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with (
        writing(tmp_path / "nowhere", schedule_of(KVLayout.HND)) as (manager, _),
        pytest.raises(StreamingError, match="No such file or directory"),
    ):
        manager.begin()


def test_a_header_that_does_not_fit(tmp_path: Path) -> None:
    destination = DiskDestination(tmp_path, "test", "fdatasync", False, {"weights": "x" * PAGE})
    with pytest.raises(StreamingError, match="does not fit a page"):
        destination.begin(Stream(0, schedule_of(KVLayout.HND)))
    destination.close()
