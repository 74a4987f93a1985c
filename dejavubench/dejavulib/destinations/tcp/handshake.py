"""How a ``tcp`` stream's two sides come to terms: each proves to know the token, then the source says what will come.

Before anything else, in fixed sizes; little-endian like all numbers here::

    source → sink   magic "DEJAVUTC", version u32, nonce [32]
    sink → source   the same, with a nonce of its own
    source → sink   proof [32]
    sink → source   proof [32], machine [32], network [32]; or, where the source's proof was wrong, the end

A proof is the HMAC-SHA256 of both nonces and of the side that proves, keyed with the token. So the token itself never
crosses the network, what was overheard proves nothing a second time, and neither side can be answered with its own
words. Both prove: no stranger's bytes are taken as cache, and no stranger is sent any. What follows is not encrypted,
and its checksums are against accidents, not against somebody who changes packets: the network has to be trusted. The
machine is a digest of what the running kernel is known by, the network one of the network namespace on it that a side
is in: two sides in one network of one machine are never called remote, and two networks of one machine are told apart
from two machines.

Only then is anything sized from what the source says: :class:`Setup`, a JSON text of bounded length and numbers.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import socket
import struct
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.destinations.tcp.wire import (
    ClosedError,
    Frame,
    Kind,
    Wire,
    WireError,
    set_buffers,
)
from dejavubench.dejavulib.kvcache import KVGeometry, KVLayout, Region, Span
from dejavubench.dejavulib.schedule import StreamSchedule

VERSION = 3
_HELLO = struct.Struct("<8sI32s")
_MAGIC = b"DEJAVUTC"

Address = tuple[str, int]

MOST_STREAMS = 1024
MOST_CHUNKS = 1 << 20
"""Of one step: keeps a sink from being made to count for ever."""

CONNECTION_NBYTES = 1 << 20
"""Memory of a connection beside caches and staging: its thread, and what a service of the owner takes at a time."""

STREAM_NBYTES = 16 << 10
"""The Python objects of one stream."""

CHUNK_NBYTES = 2 << 10
"""The Python objects of one chunk of a step, in the few lists of them that are made at a time."""

TEXT_TIMES = 64
"""Bytes that reading a setup takes for each byte of its text."""

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


class Setup(_Strict):
    """Geometry and type of the caches, and the schedule of each stream; on the sink each has a cache of its own.

    The level is no part of it: frames say how each chunk comes, and a chunk must be the schedule's next one.
    """

    geometry: _Geometry
    dtype: _Dtype
    streams: Annotated[tuple[_Stream, ...], Field(min_length=1, max_length=MOST_STREAMS)]

    @classmethod
    def of(cls, streams: list[Stream], dtype: torch.dtype) -> Setup:
        """What these streams, of caches of one geometry, are announced as."""
        (geometry,) = {stream.schedule.geometry for stream in streams}
        announced = []
        for stream in streams:
            schedule, region = stream.schedule, stream.schedule.region
            cuts = {axis: tuple(getattr(region, axis)) for axis in ("layers", "requests", "heads")}
            numbers = {
                name: getattr(schedule, name) for name in ("input_len", "steps", "slot_nbytes")
            }
            announced.append({"id": stream.id, **cuts, **numbers})
        sizes = {name: getattr(geometry, name) for name in _Geometry.model_fields}
        named = {
            "geometry": {**sizes, "layout": geometry.layout.value},
            "dtype": str(dtype).removeprefix("torch."),
        }
        return cls.model_validate({**named, "streams": tuple(announced)})

    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def nbytes(self) -> int:
        """The most memory that a sink needs, whatever frames come: a cache for each stream, staging, Python's objects.

        Only numbers are looked at, which need not fit together yet.
        """
        sizes = self.geometry
        cache = (
            2
            * sizes.layers
            * sizes.requests
            * sizes.heads
            * sizes.positions
            * sizes.head_size
            * sizes.itemsize
        )
        objects = sum(
            STREAM_NBYTES + CHUNK_NBYTES * self._chunks(stream) for stream in self.streams
        )
        return cache * len(self.streams) + self.slot_nbytes + objects + CONNECTION_NBYTES

    def _chunks(self, stream: _Stream) -> int:
        """The most chunks of one step of a stream: what :meth:`StreamSchedule.atoms` lists."""
        layers, requests, heads = (
            max(0, stop - start) for start, stop in (stream.layers, stream.requests, stream.heads)
        )
        per_position = 2 * heads * self.geometry.head_size * self.geometry.itemsize
        per_request = per_position * stream.input_len
        if per_request <= stream.slot_nbytes:
            return layers * -(-requests * max(per_request, 1) // stream.slot_nbytes) * 2
        return (
            layers * requests * -(-stream.input_len // max(1, stream.slot_nbytes // per_position))
        )

    @property
    def slot_nbytes(self) -> int:
        """Bytes of the largest staging slot."""
        return max(stream.slot_nbytes for stream in self.streams)


def read_setup(text: str) -> Setup:
    """Raises:
    ValueError: the text is no setup; the message says where, in one line.
    """
    try:
        return Setup.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"setup: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def schedules(setup: Setup) -> dict[int, StreamSchedule]:
    """The streams' schedules by id, once the sink has agreed to :attr:`Setup.nbytes`.

    Raises:
        ValueError: the numbers do not fit together; the message says which.
    """
    if setup.torch_dtype().itemsize != setup.geometry.itemsize:
        raise ValueError(f"{setup.dtype} does not have {setup.geometry.itemsize} bytes an element")
    geometry = KVGeometry(**{**dict(setup.geometry), "layout": KVLayout(setup.geometry.layout)})
    found: dict[int, StreamSchedule] = {}
    for stream in setup.streams:
        if stream.id in found:
            raise ValueError(f"stream {stream.id} is announced twice")
        region = Region(
            Span(*stream.layers), Span(*stream.requests), Span(*stream.heads), Span(0, 0)
        )
        if not (region.layers.size and region.requests.size and region.heads.size):
            raise ValueError(f"stream {stream.id} has nothing in it: {region}")
        schedule = StreamSchedule(
            geometry, region, stream.input_len, stream.steps, stream.slot_nbytes
        )
        if region.layers.size * -(-schedule.layer_nbytes(0) // stream.slot_nbytes) > MOST_CHUNKS:
            raise ValueError(
                f"stream {stream.id} is cut into more than {MOST_CHUNKS} chunks a step"
            )
        found[stream.id] = schedule
    return found


# ---- who is there ----


def address_text(address: Address) -> str:
    """``127.0.0.1:7601``, ``[::1]:7601``: as it is given on the command line."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def connect(address: Address, token: bytes, timeout: float) -> Wire:
    """A connection to a sink that has proven to know the token, and to which this side has proven it.

    Raises:
        WireError: nobody listens there, or not a sink, or one with another token or version.
    """
    where = address_text(address)
    try:
        connected = socket.create_connection(address, timeout)
    except OSError as error:
        raise WireError(f"{where} cannot be reached: {error.strerror or error}") from None
    set_buffers(connected)
    wire = Wire(connected, where, timeout)
    try:
        nonce = secrets.token_bytes(32)
        wire.send(_HELLO.pack(_MAGIC, VERSION, nonce))
        of_sink = _hello(wire)
        wire.send(_proof(token, b"source", nonce, of_sink))
        proof, machine, network = (memoryview(bytearray(32)) for _ in range(3))
        try:
            wire.receive_into(proof)
            wire.receive_into(machine)
            wire.receive_into(network)
        except ClosedError:
            raise WireError(f"{where} does not accept this token: it has another one") from None
        if not hmac.compare_digest(proof, _proof(token, b"sink", nonce, of_sink)):
            raise WireError(f"{where} does not know this token")
        own_address = connected.getsockname()[0] == connected.getpeername()[0]
        wire.same_machine = machine == machine_digest() or own_address
        wire.same_host = network == _network_digest() or own_address
        wire.proven(timeout)
        return wire
    except WireError:
        wire.close()
        raise


def welcome(wire: Wire, token: bytes) -> None:
    """The sink's side of :func:`connect`.

    Raises:
        WireError: the peer is no source, too slow, or does not know the token.
    """
    of_source, nonce, proof = _hello(wire), secrets.token_bytes(32), memoryview(bytearray(32))
    wire.send(_HELLO.pack(_MAGIC, VERSION, nonce))
    wire.receive_into(proof)
    if not hmac.compare_digest(proof, _proof(token, b"source", of_source, nonce)):
        raise WireError(f"{wire.peer} does not know the token")
    wire.send(_proof(token, b"sink", of_source, nonce), machine_digest(), _network_digest())


def _hello(wire: Wire) -> bytes:
    """The other side's nonce."""
    hello = memoryview(bytearray(_HELLO.size))
    wire.receive_into(hello)
    magic, version, nonce = _HELLO.unpack(hello)
    if magic != _MAGIC:
        raise WireError(f"{wire.peer} does not speak this protocol")
    if version != VERSION:
        raise WireError(
            f"{wire.peer} speaks version {version} of the protocol, this side {VERSION}"
        )
    return bytes(nonce)


def _proof(
    token: bytes, side: Literal[b"source", b"sink"], of_source: bytes, of_sink: bytes
) -> bytes:
    return hmac.digest(token, side + of_source + of_sink, hashlib.sha256)


def machine_digest() -> bytes:
    """The same for all processes of one running kernel, containers included; random where the kernel does not tell."""
    file = Path("/proc/sys/kernel/random/boot_id")
    return hashlib.sha256(file.read_bytes()).digest() if file.exists() else secrets.token_bytes(32)


def _network_digest() -> bytes:
    """The same for all processes of one network namespace of one running kernel: between them nothing is sent."""
    namespace = Path("/proc/self/ns/net")
    known = (
        os.readlink(namespace).encode() if namespace.is_symlink() else b""
    )  # a kernel without them has one network
    return hashlib.sha256(machine_digest() + known).digest()


# ---- what will come ----


def announce(wire: Wire, setup: Setup) -> None:
    """Tell the sink what will come. Raises RefusedError: it takes no such caches."""
    text = setup.model_dump_json().encode()
    wire.send_frame(Frame(Kind.SETUP, nbytes=len(text)), text)
    reply = wire.receive_reply()
    if reply.kind != Kind.ACCEPTED:
        raise WireError(f"{wire.peer} answers a setup with a frame of kind {reply.kind}")


def leave(wire: Wire) -> None:
    """Say that there is nothing more, and wait until the sink has given its memory back."""
    try:
        wire.send_frame(Frame(Kind.BYE))
        while True:
            wire.receive_reply()
    except (
        WireError
    ):  # closed: what was waited for; or broken, when nothing is asked of it any more
        return
