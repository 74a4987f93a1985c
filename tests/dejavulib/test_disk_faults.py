"""The disk destination: damage is found, what cannot be is refused, and nothing is left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dejavubench.dejavulib.destinations.base import Stream, StreamingError
from dejavubench.dejavulib.destinations.disk import DiskDestination
from dejavubench.dejavulib.destinations.disk.block_file import Durability
from dejavubench.dejavulib.kv_cache import KVLayout, Region, Span
from helpers.caches import random_cache
from helpers.disk_files import (
    DURABILITIES,
    IDENTITY,
    PAGE,
    PROMPT,
    STEPS,
    open_stream_file,
    path_of,
    read,
    schedule_of,
    stream_microbatch,
)

# ---- damage ----


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize(("step", "layer"), [(0, 0), (0, 2), (1, 1), (STEPS, 2)])
def test_a_flipped_bit_is_found(
    step: int, layer: int, durability: Durability, tmp_path: Path
) -> None:
    schedule = schedule_of(KVLayout.HND)
    with open_stream_file(tmp_path, schedule, durability=durability) as (manager, destination):
        stream_microbatch(manager, random_cache(schedule.geometry))
        destination.check(manager.streams[0])
        content = path_of(tmp_path).read_bytes()
        packed = read(content).records[step].layers[layer]
        offset = content.index(packed) + len(packed) // 3
        with path_of(tmp_path).open("r+b") as file:
            file.seek(offset)
            file.write(bytes([content[offset] ^ 0x10]))
        with pytest.raises(
            StreamingError,
            match=f"test-stream0.kv: checksum of step {step}, layer {layer} does not",
        ):
            destination.check(manager.streams[0])


@pytest.mark.parametrize("step", [0, STEPS])
def test_a_damaged_token_id_is_found(step: int, tmp_path: Path) -> None:
    schedule = schedule_of(KVLayout.HND)
    with open_stream_file(tmp_path, schedule) as (manager, destination):
        stream_microbatch(manager, random_cache(schedule.geometry))
        content = path_of(tmp_path).read_bytes()
        record = read(content).records[step]
        offset = content.index(record.packed) + len(record.packed) + record.tokens.nbytes - 1
        with path_of(tmp_path).open("r+b") as file:
            file.seek(offset)
            file.write(bytes([content[offset] ^ 0x10]))
        with pytest.raises(
            StreamingError, match=f"checksum of step {step}, token ids does not agree"
        ):
            destination.check(manager.streams[0])


def test_a_damaged_layer_is_named_in_the_caches_numbers(tmp_path: Path) -> None:
    schedule = schedule_of(
        KVLayout.HND, region=Region(Span(1, 3), Span(0, 2), Span(0, 2), Span(0, 7))
    )
    with open_stream_file(tmp_path, schedule) as (manager, destination):
        stream_microbatch(manager, random_cache(schedule.geometry))
        with path_of(tmp_path).open("r+b") as file:
            file.seek(2 * PAGE)
            byte = file.read(1)
            file.seek(2 * PAGE)
            file.write(bytes([byte[0] ^ 1]))
        with pytest.raises(StreamingError, match="checksum of step 0, layer 1"):
            destination.check(manager.streams[0])


def test_a_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    schedule = schedule_of(KVLayout.HND)
    with open_stream_file(tmp_path, schedule) as (manager, destination):
        stream_microbatch(manager, random_cache(schedule.geometry))
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
from dejavubench.dejavulib.kv_cache import KVGeometry

directory, action = Path(sys.argv[1]), sys.argv[2]
if action == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, 64 << 10))
geometry = KVGeometry(4, 2, 2, 64, 16, 2)  # 64 KiB, and the pages before and behind
stream = Stream(0, StreamSchedule(geometry, geometry.whole, 60, 4, 1 << 20))
for keep in (False, True):
    destination = DiskDestination(directory, f"child-{keep}", "fdatasync", keep, {})
    try:
        destination.begin(stream, np.zeros((2, 60), np.int64))
    except StreamingError as error:
        print("refused:", error)
    else:
        print("begun", flush=True)
if action == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
"""


def run_child(directory: Path, action: str = "begin") -> tuple[int, list[str]]:
    """Run a process that makes two files, keeps the second, and does ``action``."""
    command = [sys.executable, "-c", CHILD, str(directory), action]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert completed.returncode in (0, -signal.SIGKILL), completed.stderr
    return completed.returncode, completed.stdout.splitlines()


def test_a_killed_process_leaves_only_the_files_to_be_kept(tmp_path: Path) -> None:
    assert run_child(tmp_path, "kill") == (-signal.SIGKILL, ["begun", "begun"])
    (path,) = tmp_path.iterdir()
    assert path.name == "child-True-stream0.kv"
    assert read(path.read_bytes()).watermark == 0


def test_a_file_size_limit_is_noticed_before_anything_streams(tmp_path: Path) -> None:
    _, lines = run_child(tmp_path, "limit")
    assert len(lines) == 2
    for line in lines:
        assert re.fullmatch(
            rf"refused: no room for \d+ bytes in {re.escape(str(tmp_path))}: File too large", line
        )
    assert list(tmp_path.iterdir()) == []


def test_a_full_file_system_is_noticed_before_anything_streams(tmp_path: Path) -> None:
    small_folder = tmp_path / "small"
    small_folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small_folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small tmpfs is not allowed: {mounted.stderr.decode().strip()}")
    try:
        _, lines = run_child(small_folder)
        paths = list(small_folder.iterdir())
    finally:
        subprocess.run(["umount", str(small_folder)], check=True)
    assert len(lines) == 2
    assert all(
        line.endswith(f"bytes in {small_folder}: No space left on device") for line in lines
    ), lines
    assert paths == []


@pytest.mark.parametrize("keep", [False, True])
def test_closing_leaves_a_file_only_with_keep(keep: bool, tmp_path: Path) -> None:
    destination = DiskDestination(tmp_path, "test", "fdatasync", keep, IDENTITY)
    destination.begin(Stream(id=0, schedule=schedule_of(KVLayout.HND)), PROMPT)
    destination.close()
    assert list(tmp_path.iterdir()) == ([path_of(tmp_path)] if keep else [])


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    path_of(tmp_path).write_bytes(b"precious")
    with (
        open_stream_file(tmp_path, schedule_of(KVLayout.HND)) as (manager, _),
        pytest.raises(
            StreamingError,
            match=r"cannot create .*test-stream0.kv for fdatasync streaming: File exists",
        ),
    ):
        manager.begin()
    assert path_of(tmp_path).read_bytes() == b"precious"


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with (
        open_stream_file(tmp_path / "nowhere", schedule_of(KVLayout.HND)) as (manager, _),
        pytest.raises(StreamingError, match="No such file or directory"),
    ):
        manager.begin()


def test_a_header_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    destination = DiskDestination(tmp_path, "test", "fdatasync", False, {"weights": "x" * PAGE})
    with pytest.raises(StreamingError, match="does not fit a page"):
        destination.begin(Stream(id=0, schedule=schedule_of(KVLayout.HND)))
    destination.close()
