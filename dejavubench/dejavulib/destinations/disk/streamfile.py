"""The file that a stream to disk is kept in: where everything is, and the pages around keys and values.

Layout, little-endian; offsets follow from the header alone and are the same at every level::

    page 0   magic "DEJAVUKV", version u32, length u32, header (JSON), xxh3-64 of the header
    page 1   watermark: number of complete steps u64, xxh3-64 of those eight bytes
    page 2…  a record a step, beginning with a page of its own:
             packed keys and values | token ids i32 [B, n] | xxh3-64 of these u64 | and of each layer u64 [L]

No two records share a page, so that a torn write cannot reach back into a step that is complete. The
watermark moves only after a record is as durable as the option says.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import xxhash

from dejavubench.dejavulib.copies import PAGE
from dejavubench.dejavulib.destinations.base import Stream, StreamingError
from dejavubench.dejavulib.schedule import Chunk, StreamSchedule

MAGIC = b"DEJAVUKV"
VERSION = 3
WATERMARK = PAGE
DATA = 2 * PAGE


def file_name(name: str, stream: int) -> str:
    """Of a stream's file; ``name`` is the destination's."""
    return f"{name}-stream{stream}.kv"


def pages(nbytes: int) -> int:
    """Bytes of the whole pages that hold so many bytes."""
    return -(-nbytes // PAGE) * PAGE


def trailer_nbytes(schedule: StreamSchedule, step: int) -> int:
    """Bytes behind a step's keys and values: its token ids and the checksums."""
    return tokens_nbytes(schedule, step) + 8 + 8 * schedule.region.layers.size


def tokens_nbytes(schedule: StreamSchedule, step: int) -> int:
    """Bytes of a step's token ids."""
    return 4 * schedule.region.requests.size * schedule.positions(step).size


def record_nbytes(schedule: StreamSchedule, step: int) -> int:
    """Bytes of a step's record, whole pages."""
    return pages(schedule.step_nbytes(step) + trailer_nbytes(schedule, step))


def record_offset(schedule: StreamSchedule, step: int) -> int:
    """Where a step's record begins in the file."""
    if step == 0:
        return DATA
    return DATA + record_nbytes(schedule, 0) + (step - 1) * record_nbytes(schedule, 1)


def chunk_offset(schedule: StreamSchedule, chunk: Chunk) -> int:
    """Where a chunk begins in the file."""
    return record_offset(schedule, chunk.step) + chunk.offset - schedule.step_offset(chunk.step)


def file_nbytes(schedule: StreamSchedule) -> int:
    """Size of a stream's file."""
    return record_offset(schedule, schedule.steps + 1)


def header(stream: Stream, identity: Mapping[str, str]) -> dict[str, Any]:
    """What a stream's file says of itself."""
    schedule = stream.schedule
    return {
        "stream": stream.id,  # which microbatch: another one's cache has the same geometry
        "geometry": asdict(schedule.geometry),
        "region": {axis: list(span) for axis, span in vars(schedule.region).items()},
        "input_len": schedule.input_len,
        "steps": schedule.steps,
        "slot_nbytes": schedule.slot_nbytes,  # how layers that are larger are cut, so their packed order
        **identity,
    }


def header_page(stream: Stream, identity: Mapping[str, str]) -> np.ndarray:
    """Page 0.

    Raises:
        StreamingError: the header does not fit a page.
    """
    text = json.dumps(header(stream, identity), sort_keys=True).encode()
    packed = MAGIC + struct.pack("<II", VERSION, len(text)) + text + xxhash.xxh3_64_digest(text)
    if len(packed) > PAGE:
        raise StreamingError(f"a header of {len(packed)} bytes does not fit a page")
    return np.frombuffer(packed.ljust(PAGE, b"\0"), np.uint8)


def watermark_page(steps: int) -> np.ndarray:
    """Page 1, when so many steps are complete."""
    count = struct.pack("<Q", steps)
    return np.frombuffer((count + xxhash.xxh3_64_digest(count)).ljust(PAGE, b"\0"), np.uint8)


def first_wrong(schedule: StreamSchedule, step: int, record: np.ndarray) -> str | None:
    """The part of a step's record that its checksum does not agree with (``token ids``, ``layer 3``), if any."""
    layers, nbytes = schedule.region.layers, schedule.step_nbytes(step)
    behind = nbytes + tokens_nbytes(schedule, step)
    names = ["token ids", *(f"layer {layer}" for layer in range(*layers))]
    contents = [record[nbytes:behind], *np.split(record[:nbytes], layers.size)]
    for name, content, written in zip(names, contents, record[behind:].view("<u8"), strict=True):
        if xxhash.xxh3_64_intdigest(content.data) != written:
            return name
    return None


class StepTrailer:
    """Collects what goes behind a step's keys and values while its chunks pass by, in order.

    One running hash covers a layer however it is cut.
    """

    def __init__(self, layer_nbytes: int, tokens: np.ndarray) -> None:
        self._layer_nbytes = layer_nbytes
        self._tokens = tokens.astype("<i4")
        self._checksums: list[int] = []
        self._hasher = xxhash.xxh3_64()
        self._hashed = 0  # bytes of the layer that the hasher has seen

    def add(self, data: memoryview) -> None:
        """Take the next packed bytes into account; other threads run meanwhile if they are many."""
        at = 0
        while at < len(data):
            take = min(len(data) - at, self._layer_nbytes - self._hashed)
            self._hasher.update(data[at : at + take])
            self._hashed += take
            at += take
            if self._hashed == self._layer_nbytes:
                self._checksums.append(self._hasher.intdigest())
                self._hasher.reset()
                self._hashed = 0

    def packed(self) -> np.ndarray:
        """The trailer's bytes, once all of the step has been added."""
        tokens = self._tokens.tobytes()
        checksums = np.asarray([xxhash.xxh3_64_intdigest(tokens), *self._checksums], "<u8")
        return np.frombuffer(tokens + checksums.tobytes(), np.uint8)
