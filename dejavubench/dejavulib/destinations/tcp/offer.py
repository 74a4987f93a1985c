"""The offer that a source makes a ``tcp`` sink: its caches and the schedules of its streams.

A sink sizes nothing from what a source says before it has checked the numbers here, and compared
:attr:`TCPOffer.nbytes` with its limit.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...geometry import KVGeometry, KVLayout
from ...regions import Region, Span
from ...schedule import StreamSchedule
from ..base import Stream

MOST_STREAMS = 1024
MOST_CHUNKS = 1 << 20
"""Most chunks of one step, so that no source makes a sink count for ever."""

CONNECTION_NBYTES = 1 << 20
"""Memory of a connection beside caches and staging: its thread, and what a service needs."""

STREAM_NBYTES = 16 << 10
"""Memory of one stream's Python objects."""

CHUNK_NBYTES = 2 << 10
"""Memory of the Python objects per chunk of a step, in the few lists of chunks made at a time."""

PARSING_NBYTES_PER_BYTE = 64
"""Bytes that parsing an offer takes per byte of its text."""

_Size = Annotated[int, Field(ge=1, le=1 << 31)]
_Edge = Annotated[int, Field(ge=0, le=1 << 31)]
_Span = tuple[_Edge, _Edge]
_Dtype = Literal["float32", "bfloat16", "float16", "int32", "int16", "uint8"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Geometry(_Strict):
    layers: _Size
    requests: _Size
    heads: _Size
    positions: _Size
    head_size: _Size
    itemsize: _Size
    layout: Literal["ft", "hnd", "nhd"]


class _Stream(_Strict):
    id: _Edge
    layers: _Span
    requests: _Span
    heads: _Span
    input_len: _Size
    steps: _Edge
    slot_nbytes: _Size
    flush_interval: _Size = 1  # sinks of before there was an interval take an offer without it


class TCPOffer(_Strict):
    """Geometry and data type of the caches, and each stream's schedule. A JSON text on the wire.

    The sink has a cache per stream. The level is no part of it: frames say how each chunk comes,
    and a chunk must be the schedule's next one.
    """

    geometry: _Geometry
    dtype: _Dtype
    streams: Annotated[tuple[_Stream, ...], Field(min_length=1, max_length=MOST_STREAMS)]

    @classmethod
    def for_streams(cls, streams: list[Stream], dtype: torch.dtype) -> TCPOffer:
        """Return the offer of streams whose caches have one geometry.

        Raises:
            pydantic.ValidationError: a number is beyond what a sink takes.
        """
        (geometry,) = {stream.schedule.geometry for stream in streams}
        stream_entries = []
        for stream in streams:
            schedule = stream.schedule
            region = stream.schedule.region
            cuts = {axis: tuple(getattr(region, axis)) for axis in ("layers", "requests", "heads")}
            lengths = {
                name: getattr(schedule, name)
                for name in ("input_len", "steps", "slot_nbytes", "flush_interval")
            }
            stream_entries.append({"id": stream.id} | cuts | lengths)
        sizes = {name: getattr(geometry, name) for name in _Geometry.model_fields}
        cache_entries = {
            "geometry": {**sizes, "layout": geometry.layout.value},
            "dtype": str(dtype).removeprefix("torch."),
        }
        return cls.model_validate({**cache_entries, "streams": tuple(stream_entries)})

    def text(self) -> str:
        """Return the offer as it is sent."""
        # Sinks refuse keys that they do not know: an older one must not see a newer key's default.
        return self.model_dump_json(exclude_defaults=True)

    def torch_dtype(self) -> torch.dtype:
        """Return the data type of the caches."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def nbytes(self) -> int:
        """Most bytes that the sink needs, whatever frames come: caches, staging, Python objects.

        It looks at numbers alone, which need not fit together yet.
        """
        # Python's integers do not overflow: hostile sizes give a huge number, and are refused.
        sizes = self.geometry
        per_head = 2 * sizes.layers * sizes.requests * sizes.positions * sizes.head_size
        cache_nbytes = per_head * sizes.heads * sizes.itemsize
        objects_nbytes = sum(
            STREAM_NBYTES + CHUNK_NBYTES * self._count_chunks(stream) for stream in self.streams
        )
        return (
            cache_nbytes * len(self.streams) + self.slot_nbytes + objects_nbytes + CONNECTION_NBYTES
        )

    def _count_chunks(self, stream: _Stream) -> int:
        """Return the most chunks of one group of a stream, as StreamSchedule.atoms() lists them."""
        # Counted from numbers alone: listing the chunks of a hostile offer would take the memory
        # that is limited here. Spans may still run backwards.
        layers, requests, heads = (
            max(0, stop - start) for start, stop in (stream.layers, stream.requests, stream.heads)
        )
        per_position = 2 * heads * self.geometry.head_size * self.geometry.itemsize
        longest_group = max(stream.input_len, min(stream.flush_interval, stream.steps))
        per_request = per_position * longest_group
        if per_request <= stream.slot_nbytes:
            return layers * -(-requests * max(per_request, 1) // stream.slot_nbytes) * 2
        most_positions = max(1, stream.slot_nbytes // per_position)
        return layers * requests * -(-longest_group // most_positions)

    @property
    def slot_nbytes(self) -> int:
        """Bytes of the largest staging slot."""
        return max(stream.slot_nbytes for stream in self.streams)


def read_offer(text: str) -> TCPOffer:
    """Parse an offer.

    Raises:
        ValueError: the text is no offer; the message says where, in one line.
    """
    try:
        return TCPOffer.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"offer: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None


def make_schedules(offer: TCPOffer) -> dict[int, StreamSchedule]:
    """Return the streams' schedules by id, once the sink has agreed to :attr:`TCPOffer.nbytes`.

    Raises:
        ValueError: the numbers do not fit together; the message says which.
    """
    if offer.torch_dtype().itemsize != offer.geometry.itemsize:
        raise ValueError(f"{offer.dtype} does not have {offer.geometry.itemsize} bytes per element")
    geometry = KVGeometry(**{**dict(offer.geometry), "layout": KVLayout(offer.geometry.layout)})
    by_stream: dict[int, StreamSchedule] = {}
    for stream in offer.streams:
        if stream.id in by_stream:
            raise ValueError(f"stream {stream.id} is announced twice")
        region = Region(
            Span(*stream.layers), Span(*stream.requests), Span(*stream.heads), Span(0, 0)
        )
        if not (region.layers.size and region.requests.size and region.heads.size):
            raise ValueError(f"stream {stream.id} is empty: {region}")
        schedule = StreamSchedule(
            geometry=geometry,
            region=region,
            input_len=stream.input_len,
            steps=stream.steps,
            slot_nbytes=stream.slot_nbytes,
            flush_interval=stream.flush_interval,
        )
        layer_nbytes = schedule.largest_nbytes // region.layers.size
        if region.layers.size * -(-layer_nbytes // stream.slot_nbytes) > MOST_CHUNKS:
            raise ValueError(
                f"stream {stream.id} is cut into more than {MOST_CHUNKS} chunks per step"
            )
        by_stream[stream.id] = schedule
    return by_stream
