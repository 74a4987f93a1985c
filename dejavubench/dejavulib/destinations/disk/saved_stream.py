"""``SavedStream``: a stream's file that an earlier process has left, read as far as it is good."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import xxhash

from ...kv_cache import KVCache
from ...levels import DEFAULT_LEVEL, LEVELS
from ...packing import PAGE_NBYTES, scatter
from ..base import Stream, StreamingError
from . import stream_file


@dataclass
class RestoredStream:
    """The part of a stream's file that was put back.

    Attributes:
        tokens: token ids that went into each good step from the first one on, int32 [requests, P]
            for the prompt and [requests, 1] for a decode step; −1 if the worker did not know them.
        fault: the reason if fewer steps are good than the watermark says; else None.
    """

    tokens: list[np.ndarray] = field(default_factory=list)
    fault: str | None = None

    @property
    def steps(self) -> int:
        """Number of steps, from the first one on, whose keys and values are in the cache again."""
        return len(self.tokens)


class SavedStream:
    """A file of :mod:`.stream_file`, for reading.

    Args:
        stream: the stream that the file should hold.
        identity: entries that its header must have besides the stream and its schedule.

    Attributes:
        watermark: steps that were complete; :meth:`restore` compares their checksums.

    Raises:
        StreamingError: the file cannot be read, has another version, holds something else, or its
            header or watermark is damaged. The message names the file.
    """

    def __init__(self, path: Path, stream: Stream, identity: Mapping[str, str]) -> None:
        self.path = path
        self.schedule = stream.schedule
        _check_header(
            path,
            self._read(0, PAGE_NBYTES, "its header"),
            stream_file.make_header(stream, identity),
        )
        self.watermark = self._read_watermark()

    def restore(self, cache: KVCache) -> RestoredStream:
        """Put keys and values of the complete steps in their place, as far as checksums agree."""
        # The packed order does not depend on the level, so any buffered one reads the file.
        level = LEVELS[DEFAULT_LEVEL]
        restored_stream = RestoredStream()
        for step in map(self.schedule.last_step, range(self.schedule.find_group(self.watermark))):
            try:
                record = self._read_record(step)
            except StreamingError as error:
                restored_stream.fault = (
                    f"{error}; of {self.watermark} steps under the watermark "
                    f"{restored_stream.steps} are good"
                )
                break
            packed_step = torch.from_numpy(record)
            for chunk in self.schedule.chunks(level, step):
                offset = chunk.offset - self.schedule.step_offset(step)
                scatter(
                    packed_step[offset : offset + chunk.nbytes].to(cache.k.device),
                    cache,
                    chunk.region,
                )
            tokens = self._copy_tokens(step, record)
            restored_stream.tokens += (
                [tokens] if step == 0 else np.split(tokens, tokens.shape[1], axis=1)
            )
        return restored_stream

    def _read_watermark(self) -> int:
        page = self._read(stream_file.WATERMARK_OFFSET, PAGE_NBYTES, "its watermark")
        (step_count,) = struct.unpack_from("<Q", page.data)
        # It moves by whole groups, and a count in the middle of one cannot have been written.
        schedule = self.schedule
        is_within_group = 0 < step_count <= schedule.steps and not schedule.leaves(step_count - 1)
        is_beyond_end = step_count > schedule.steps + 1
        if (
            is_within_group
            or is_beyond_end
            or not np.array_equal(page, stream_file.make_watermark_page(step_count))
        ):
            raise StreamingError(
                f"{self.path}: the watermark is damaged, so that no step of it can be trusted"
            )
        return int(step_count)

    def _read_record(self, step: int) -> np.ndarray:
        """Return a group's record, uint8; StreamingError if its checksums do not agree."""
        nbytes = self.schedule.step_nbytes(step) + stream_file.count_trailer_nbytes(
            self.schedule, step
        )
        record = self._read(
            stream_file.find_record_offset(self.schedule, step), nbytes, f"step {step}"
        )
        wrong_part = stream_file.find_wrong_part(self.schedule, step, record)
        if wrong_part is not None:
            raise StreamingError(
                f"{self.path}: checksum of step {step}, {wrong_part} does not agree"
            )
        return record

    def _copy_tokens(self, step: int, record: np.ndarray) -> np.ndarray:
        """Return a group's token ids. A view would keep its keys and values in memory."""
        nbytes = self.schedule.step_nbytes(step)
        stop = nbytes + stream_file.count_token_nbytes(self.schedule, step)
        return (
            record[nbytes:stop].copy().view("<i4").reshape(-1, self.schedule.positions(step).size)
        )

    def _read(self, offset: int, nbytes: int, part_name: str) -> np.ndarray:
        try:
            content = np.fromfile(self.path, np.uint8, nbytes, offset=offset)
        except OSError as error:
            raise StreamingError(f"{self.path}: {error.strerror}") from None
        if len(content) < nbytes:
            raise StreamingError(
                f"{self.path} ends at byte {offset + len(content)}, within {part_name}"
            )
        return content


_DEFAULTS = {"flush_interval": 1}
"""Entries that a header may lack, and what it means without them."""


def _check_header(path: Path, page: np.ndarray, expected_header: Mapping[str, object]) -> None:
    """Raise StreamingError unless page 0 is an undamaged header with the expected content."""
    header_bytes = page.tobytes()
    if not header_bytes.startswith(stream_file.MAGIC):
        raise StreamingError(
            f"{path} is no stream's file: it does not begin with {stream_file.MAGIC.decode()}"
        )
    version, length = struct.unpack_from("<II", header_bytes, len(stream_file.MAGIC))
    if version != stream_file.VERSION:
        raise StreamingError(
            f"{path} is of version {version}, this program reads {stream_file.VERSION}"
        )
    begin = len(stream_file.MAGIC) + 8
    text, digest = (
        header_bytes[begin : begin + length],
        header_bytes[begin + length : begin + length + 8],
    )
    if xxhash.xxh3_64_digest(text) != digest:
        raise StreamingError(f"{path}: its header is damaged")
    # Every entry is compared, also one that this version does not know: a newer program may mean
    # something else by the same bytes.
    stored_entries = _DEFAULTS | _flatten(json.loads(text))
    # By JSON, so that tuples become lists here too.
    expected_entries = _DEFAULTS | _flatten(json.loads(json.dumps(expected_header)))
    # Geometry comes last: it differs as a consequence of another model or batch size.
    for key in sorted(
        {*stored_entries, *expected_entries},
        key=lambda key: (key.startswith(("geometry", "region")), key),
    ):
        if stored_entries.get(key) != expected_entries.get(key):
            raise StreamingError(
                f"{path} does not match: {key} is {stored_entries.get(key)} there, "
                f"{expected_entries.get(key)} here"
            )


def _flatten(document: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return the values by dotted name, so that a message can name one that differs."""
    flat_entries: dict[str, object] = {}
    for key, value in document.items():
        flat_entries |= (
            _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat_entries
