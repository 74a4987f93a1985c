"""The handshake of a ``tcp`` stream: both sides prove that they know the token.

Fixed sizes, before anything else; little-endian like all numbers here::

    source → sink   magic "DEJAVUTC", version u32, nonce [32]
    sink → source   the same, with a nonce of its own
    source → sink   proof [32]
    sink → source   proof [32], machine [32], network [32]; or nothing, if the proof was wrong

A proof is the HMAC-SHA256, keyed with the token, of both nonces and of the side that proves. So the
token itself never crosses the network, an overheard proof is worth nothing later, and no side can
be answered with its own words. Both sides prove: no stranger's bytes are taken as cache, and no
stranger is sent any. What follows is not encrypted. Its checksums are against accidents, not
against somebody who changes packets: the network has to be trusted.

The machine is a digest that identifies the running kernel; the network, one that identifies the
network namespace on it. Two sides in one network of one machine are never called remote, and two
networks of one machine are told apart from two machines.

Then the source makes its :class:`~.offer.TCPOffer`, a JSON text of bounded length and numbers.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import socket
import struct
from pathlib import Path
from typing import Literal

from .offer import TCPOffer
from .wire import (
    MOST_TEXT_NBYTES,
    ClosedError,
    Frame,
    FrameKind,
    TokenError,
    Wire,
    WireError,
    set_socket_buffers,
)

VERSION = 4
"""Version of the protocol; both ends must have the same."""

_HELLO = struct.Struct("<8sI32s")
_MAGIC = b"DEJAVUTC"

Address = tuple[str, int]
"""Host and port."""


def format_address(address: Address) -> str:
    """Return an address as the command line takes it: ``127.0.0.1:7601`` or ``[::1]:7601``."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def connect(address: Address, token: bytes, timeout_s: float) -> Wire:
    """Connect to a sink; both sides have proven the token afterwards.

    Args:
        timeout_s: seconds for the whole handshake.

    Raises:
        TokenError: the two sides do not have the same token.
        WireError: nobody listens there, or the listener is no sink, or has another version.
    """
    sink_text = format_address(address)
    try:
        connected_socket = socket.create_connection(address, timeout_s)
    except OSError as error:
        raise WireError(f"{sink_text} cannot be reached: {error.strerror or error}") from None
    set_socket_buffers(connected_socket)
    wire = Wire(connected_socket, sink_text, timeout_s)
    try:
        nonce = secrets.token_bytes(32)
        wire.send(_HELLO.pack(_MAGIC, VERSION, nonce))
        sink_nonce = _receive_hello(wire)
        wire.send(_make_proof(token, b"source", nonce, sink_nonce))
        proof, machine, network = (memoryview(bytearray(32)) for _ in range(3))
        try:
            wire.receive_into(proof)
            wire.receive_into(machine)
            wire.receive_into(network)
        except ClosedError:
            raise TokenError(
                f"{sink_text} does not accept this token: it has another one"
            ) from None
        if not hmac.compare_digest(proof, _make_proof(token, b"sink", nonce, sink_nonce)):
            raise TokenError(f"{sink_text} does not know this token")
        # A connection from an address to itself never leaves the machine, whatever /proc says.
        is_own_address = connected_socket.getsockname()[0] == connected_socket.getpeername()[0]
        wire.same_machine = machine == hash_machine() or is_own_address
        wire.same_host = network == _hash_network() or is_own_address
        wire.end_handshake(timeout_s)
        return wire
    except WireError:
        wire.close()
        raise


def welcome_source(wire: Wire, token: bytes) -> None:
    """Do the sink's side of :func:`connect`.

    Raises:
        WireError: the peer is no source, is too slow, or does not know the token.
    """
    source_nonce = _receive_hello(wire)
    sink_nonce = secrets.token_bytes(32)
    proof = memoryview(bytearray(32))
    wire.send(_HELLO.pack(_MAGIC, VERSION, sink_nonce))
    wire.receive_into(proof)
    # In constant time, so that a stranger cannot find a proof byte by byte.
    if not hmac.compare_digest(proof, _make_proof(token, b"source", source_nonce, sink_nonce)):
        raise WireError(f"{wire.peer} does not know the token")
    wire.send(
        _make_proof(token, b"sink", source_nonce, sink_nonce), hash_machine(), _hash_network()
    )


def _receive_hello(wire: Wire) -> bytes:
    """Receive the other side's nonce."""
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


def _make_proof(
    token: bytes, side: Literal[b"source", b"sink"], source_nonce: bytes, sink_nonce: bytes
) -> bytes:
    return hmac.digest(token, side + source_nonce + sink_nonce, hashlib.sha256)


def hash_machine() -> bytes:
    """Return a digest that all processes under one kernel share, containers included.

    It is random if the kernel does not identify itself.
    """
    file = Path("/proc/sys/kernel/random/boot_id")
    return hashlib.sha256(file.read_bytes()).digest() if file.exists() else secrets.token_bytes(32)


def _hash_network() -> bytes:
    """Return a digest that all processes of one network namespace of one kernel share."""
    namespace = Path("/proc/self/ns/net")
    # A kernel without namespaces has one network.
    network_name = os.readlink(namespace).encode() if namespace.is_symlink() else b""
    return hashlib.sha256(hash_machine() + network_name).digest()


def make_offer(wire: Wire, offer: TCPOffer) -> None:
    """Offer the source's caches and streams to the sink.

    Raises:
        RefusedError: the sink does not take such caches.
    """
    text = offer.text().encode()
    wire.send_frame(Frame(FrameKind.OFFER, nbytes=len(text)), text)
    reply = wire.receive_reply()
    if reply.kind != FrameKind.ACCEPTED:
        raise WireError(f"{wire.peer} answers an offer with a frame of kind {reply.kind}")


def leave(wire: Wire) -> None:
    """Send that there is nothing more, and wait until the sink has released its memory."""
    try:
        wire.send_frame(Frame(FrameKind.BYE))
        while True:
            reply = wire.receive_reply()
            wire.receive_into(memoryview(bytearray(min(reply.nbytes, MOST_TEXT_NBYTES))))
    except WireError:  # closed, as expected; or broken, when nothing is asked of it any more
        return
