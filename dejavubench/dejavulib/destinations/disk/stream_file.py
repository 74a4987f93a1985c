"""Format of the file that a stream to disk is kept in.

Little-endian. Offsets follow from the header alone and are the same at every level::

    page 0   magic "DEJAVUKV", version u32, length u32, header (JSON), xxh3-64 of the header
    page 1   watermark: number of complete steps u64, xxh3-64 of these eight bytes
    page 2…  one record per group of steps, each beginning with a page of its own:
             packed keys and values | token ids i32 [B, n] | xxh3-64 of these u64
             | xxh3-64 of each layer u64 [L]

The prompt is a group of its own. A group of decode steps is one step, unless the header has a
``flush_interval``. Functions below name a group by its last step.

No two records share a page, so a torn write cannot reach back into a step that is complete. The
watermark moves only after a record is as durable as the option says.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import xxhash

from ...packing import PAGE_NBYTES
from ...schedule import Chunk, StreamSchedule
from ..base import Stream, StreamingError

MAGIC = b"DEJAVUKV"
"""First bytes of every file."""

VERSION = 3
"""Version of the layout that is written; files of other versions are refused."""

WATERMARK_OFFSET = PAGE_NBYTES
DATA_OFFSET = 2 * PAGE_NBYTES
"""Offsets of the watermark and of the first record."""


def make_file_name(name: str, stream_id: int) -> str:
    """Return the name of a stream's file; ``name`` is the destination's."""
    return f"{name}-stream{stream_id}.kv"


def round_up_to_pages(nbytes: int) -> int:
    """Return the bytes of the whole pages that hold ``nbytes``."""
    return -(-nbytes // PAGE_NBYTES) * PAGE_NBYTES


def count_trailer_nbytes(schedule: StreamSchedule, step: int) -> int:
    """Return the bytes behind a group's keys and values: its token ids and the checksums."""
    return count_token_nbytes(schedule, step) + 8 + 8 * schedule.region.layers.size


def count_token_nbytes(schedule: StreamSchedule, step: int) -> int:
    """Return the bytes of a group's token ids."""
    return 4 * schedule.region.requests.size * schedule.positions(step).size


def count_record_nbytes(schedule: StreamSchedule, step: int) -> int:
    """Return the bytes of a group's record, whole pages."""
    return round_up_to_pages(schedule.step_nbytes(step) + count_trailer_nbytes(schedule, step))


def find_record_offset(schedule: StreamSchedule, step: int) -> int:
    """Return where a group's record begins in the file; ``steps + 1``: where the last one ends."""
    group_count_before = schedule.find_group(step)
    if group_count_before == 0:
        return DATA_OFFSET
    if group_count_before == 1:
        return DATA_OFFSET + count_record_nbytes(schedule, 0)
    # Only the last group may be shorter.
    prompt_nbytes, group_nbytes, last_group_nbytes = (
        count_record_nbytes(schedule, schedule.last_step(group))
        for group in (0, 1, group_count_before - 1)
    )
    return DATA_OFFSET + prompt_nbytes + (group_count_before - 2) * group_nbytes + last_group_nbytes


def find_chunk_offset(schedule: StreamSchedule, chunk: Chunk) -> int:
    """Return where a chunk begins in the file."""
    return (
        find_record_offset(schedule, chunk.step) + chunk.offset - schedule.step_offset(chunk.step)
    )


def count_file_nbytes(schedule: StreamSchedule) -> int:
    """Return the size of a stream's file."""
    return find_record_offset(schedule, schedule.steps + 1)


def make_header(stream: Stream, identity: Mapping[str, str]) -> dict[str, object]:
    """Return the header of a stream's file as a JSON object."""
    schedule = stream.schedule
    # Left out at 1: those files are the same as before there was an interval.
    interval = {"flush_interval": schedule.flush_interval} if schedule.flush_interval > 1 else {}
    entries: dict[str, object] = {
        "stream": stream.id,  # which microbatch: another one's cache has the same geometry
        "geometry": asdict(schedule.geometry),
        "region": {axis: list(span) for axis, span in vars(schedule.region).items()},
        "input_len": schedule.input_len,
        "steps": schedule.steps,
        "slot_nbytes": schedule.slot_nbytes,  # cuts larger layers, so it decides the packed order
    }
    return entries | interval | dict(identity)


def make_header_page(stream: Stream, identity: Mapping[str, str]) -> np.ndarray:
    """Return page 0, uint8.

    Raises:
        StreamingError: the header does not fit a page.
    """
    text = json.dumps(make_header(stream, identity), sort_keys=True).encode()
    header_bytes = (
        MAGIC + struct.pack("<II", VERSION, len(text)) + text + xxhash.xxh3_64_digest(text)
    )
    if len(header_bytes) > PAGE_NBYTES:
        raise StreamingError(f"a header of {len(header_bytes)} bytes does not fit a page")
    return np.frombuffer(header_bytes.ljust(PAGE_NBYTES, b"\0"), np.uint8)


def make_watermark_page(step_count: int) -> np.ndarray:
    """Return page 1, uint8, for a number of complete steps."""
    count = struct.pack("<Q", step_count)
    return np.frombuffer((count + xxhash.xxh3_64_digest(count)).ljust(PAGE_NBYTES, b"\0"), np.uint8)


def find_wrong_part(schedule: StreamSchedule, step: int, record: np.ndarray) -> str | None:
    """Return the first part of a record that differs from its checksum, or None.

    Args:
        record: uint8, without the padding.

    Returns:
        ``token ids``, or ``layer 3``.
    """
    layers = schedule.region.layers
    nbytes = schedule.step_nbytes(step)
    checksums_offset = nbytes + count_token_nbytes(schedule, step)
    part_names = ["token ids", *(f"layer {layer}" for layer in range(*layers))]
    parts = [record[nbytes:checksums_offset], *np.split(record[:nbytes], layers.size)]
    for name, part, written_checksum in zip(
        part_names, parts, record[checksums_offset:].view("<u8"), strict=True
    ):
        if xxhash.xxh3_64_intdigest(part.data) != written_checksum:
            return name
    return None


class StepTrailer:
    """Computes what follows a step's keys and values while its chunks pass by, in order.

    One running hash covers a layer, however the layer is cut.

    Args:
        layer_nbytes: packed bytes of one layer of the step.
        tokens: token ids [B, n].
    """

    def __init__(self, layer_nbytes: int, tokens: np.ndarray) -> None:
        self._layer_nbytes = layer_nbytes
        self._tokens = tokens.astype("<i4")
        self._checksums: list[int] = []
        self._hasher = xxhash.xxh3_64()
        self._hashed_nbytes = 0  # bytes of the current layer that are in the hash

    def add(self, data: memoryview) -> None:
        """Hash the next packed bytes. Python's lock is free meanwhile if there are many."""
        offset = 0
        while offset < len(data):
            take = min(len(data) - offset, self._layer_nbytes - self._hashed_nbytes)
            self._hasher.update(data[offset : offset + take])
            self._hashed_nbytes += take
            offset += take
            if self._hashed_nbytes == self._layer_nbytes:
                self._checksums.append(self._hasher.intdigest())
                self._hasher.reset()
                self._hashed_nbytes = 0

    def pack(self) -> np.ndarray:
        """Return the trailer, uint8, once all of the step has been added."""
        tokens = self._tokens.tobytes()
        checksums = np.asarray([xxhash.xxh3_64_intdigest(tokens), *self._checksums], "<u8")
        return np.frombuffer(tokens + checksums.tobytes(), np.uint8)
