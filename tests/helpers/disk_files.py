"""For tests of stream files: a writer of small ones, and a reader that shares no code with it."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash

from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.destinations.disk import DiskDestination
from dejavubench.dejavulib.destinations.disk.block_file import Durability
from dejavubench.dejavulib.destinations.disk.destination import HASHED_BESIDE_NBYTES
from dejavubench.dejavulib.kv_cache import KVCache, KVGeometry, KVLayout, Region
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.packing import staging
from dejavubench.dejavulib.schedule import StreamSchedule
from dejavubench.dejavulib.streamer import Streamer
from helpers.caches import play_model

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
    """One group of steps in a file."""

    packed: bytes
    layers: list[bytes]
    tokens: np.ndarray
    checksums: list[int]

    @property
    def sound(self) -> bool:
        return [
            xxhash.xxh3_64_intdigest(part) for part in (self.tokens.tobytes(), *self.layers)
        ] == self.checksums


@dataclass
class Document:
    header: dict[str, Any]
    watermark: int | None
    records: list[Record]
    padding: set[int]


def read(content: bytes) -> Document:
    """Read a file by the documented layout, from its header alone."""
    assert content[:8] == b"DEJAVUKV"
    version, length = struct.unpack_from("<II", content, 8)
    assert version == 3
    text = content[16 : 16 + length]
    assert content[16 + length : 24 + length] == xxhash.xxh3_64_digest(text)
    header = json.loads(text)
    offset, records, padding = 2 * PAGE, [], set[int]()
    steps, interval = header["steps"], header.get("flush_interval", 1)
    groups = [min(interval, steps - start) for start in range(0, steps, interval)]
    for positions in (header["input_len"], *groups):
        layers, requests, heads = (
            stop - start for start, stop in (header["region"][axis] for axis in AXES)
        )
        geometry = header["geometry"]
        layer_nbytes = (
            2 * requests * heads * positions * geometry["head_size"] * geometry["itemsize"]
        )
        packed = content[offset : offset + layers * layer_nbytes]
        offset += len(packed)
        tokens = np.frombuffer(content, "<i4", requests * positions, offset).reshape(
            requests, positions
        )
        offset += tokens.nbytes
        checksums = np.frombuffer(content[offset : offset + 8 * (1 + layers)], "<u8").tolist()
        offset += 8 * (1 + layers)
        cut = [packed[layer * layer_nbytes : (layer + 1) * layer_nbytes] for layer in range(layers)]
        records.append(Record(packed, cut, tokens, checksums))
        end, offset = offset, -(-offset // PAGE) * PAGE  # each record begins a page
        padding |= set(content[end:offset])
    assert len(content) == offset
    return Document(header, read_watermark(content), records, padding)


AXES = ("layers", "requests", "heads")


def read_watermark(content: bytes) -> int | None:
    """Return the number of complete steps; None if the checksum of the page is wrong."""
    count, checksum = content[PAGE : PAGE + 8], content[PAGE + 8 : PAGE + 16]
    return struct.unpack("<Q", count)[0] if xxhash.xxh3_64_digest(count) == checksum else None


# ---- writing ----


def schedule_of(
    layout: KVLayout, slot: int = WHOLE_LAYERS, region: Region | None = None, interval: int = 1
) -> StreamSchedule:
    geometry = KVGeometry(
        layers=3, requests=2, heads=2, positions=9, head_size=16, itemsize=2, layout=layout
    )
    region = region or geometry.whole
    return StreamSchedule(geometry, region, INPUT_LEN, STEPS, slot, flush_interval=interval)


@contextmanager
def open_stream_file(
    directory: Path,
    schedule: StreamSchedule,
    level: str = "3",
    durability: Durability = "fdatasync",
    name: str = "test",
    hashed_beside: int = HASHED_BESIDE_NBYTES,
) -> Iterator[tuple[CacheManager, DiskDestination]]:
    """Make a manager that streams to ``<name>-stream0.kv``; skip where O_DIRECT is refused."""
    probe = directory / "probe"
    if durability == "direct":
        try:
            os.close(os.open(probe, os.O_CREAT | os.O_RDWR | os.O_DIRECT))
        except OSError as error:
            pytest.skip(f"the temporary folder's file system refuses O_DIRECT: {error.strerror}")
        finally:
            probe.unlink(missing_ok=True)
    destination = DiskDestination(directory, name, durability, True, IDENTITY, hashed_beside)
    streamer = Streamer(destination, staging(schedule.slot_nbytes, 2))
    cache = KVCache.allocate(schedule.geometry, torch.int16)
    try:
        yield (
            CacheManager(cache, [Stream(id=0, schedule=schedule)], LEVELS[level], streamer, 30.0),
            destination,
        )
    finally:
        streamer.close()


def stream_microbatch(manager: CacheManager, source: KVCache, pattern: int = 0x5A) -> None:
    manager.begin(PROMPT)
    for buffer in manager._streamer.destination.buffers(manager.streams[0]):
        buffer.fill_(pattern)
    play_model(source, manager.cache, manager.streams[0].schedule, manager, NEW_TOKENS)
    manager.drain()


def path_of(directory: Path, name: str = "test") -> Path:
    return directory / f"{name}-stream0.kv"
