"""The sink of ``tcp`` streams: listens, asks peers for a proof, and keeps what proven ones send.

One connection belongs to one source worker and has caches and a thread of its own. An error of one
connection ends that connection alone.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable, Mapping

import torch

from .connection import Connection, Service
from .handshake import Address, format_address, welcome_source
from .offer import PARSING_NBYTES_PER_BYTE, TCPOffer, read_offer
from .sink_stream import RefusalError
from .unauthenticated_peers import MOST_UNAUTHENTICATED, PROVE_WITHIN_S, UnauthenticatedPeers
from .wire import (
    FIRST_SERVICE,
    MOST_TEXT_NBYTES,
    Frame,
    FrameKind,
    Wire,
    WireError,
    set_socket_buffers,
)

MOST_PEERS = 128
"""Most peers at a time that have proven themselves; a further one is refused.

Peers that have proven nothing yet have places of their own.
"""

NO_MORE_FILES = frozenset({errno.EMFILE, errno.ENFILE})
"""Errors of ``accept`` that pass once another connection is closed."""

LAST_WORDS_S = 2.0
"""Seconds that a refused source has for reading the reason."""


class TCPSinkServer:
    """Listens from now on; :meth:`serve` takes the peers that come.

    Args:
        address: port 0 is any that is free.
        token: the secret that sources must know.
        limit: bytes of memory for all caches and staging together.
        timeout: seconds that a source may be silent within a frame.
        log: called with one line about every peer.
        services: handlers of frames that the owner adds to the protocol, by kind, from
            ``FIRST_SERVICE`` on.
        prove_within: seconds that a peer has for its proof.
        most_peers: peers that may be connected at a time, once they have proven themselves.

    Raises:
        OSError: this address cannot be bound.
        ValueError: the token is empty, or a service has a kind of the protocol's own.

    Attributes:
        address: the address that it listens on.
    """

    def __init__(
        self,
        address: Address,
        token: bytes,
        limit: int,
        timeout: float,
        log: Callable[[str], None],
        services: Mapping[int, Service] | None = None,
        prove_within: float = PROVE_WITHIN_S,
        most_peers: int = MOST_PEERS,
    ) -> None:
        if not token:
            raise ValueError("a sink needs a token")
        self._services = services or {}
        if any(kind < FIRST_SERVICE for kind in self._services):
            raise ValueError(f"kinds of frames below {FIRST_SERVICE} are the protocol's own")
        self._listening_socket = _listen(address)
        set_socket_buffers(self._listening_socket)  # accepted connections have them from the start
        self.address: Address = self._listening_socket.getsockname()[:2]
        self._token = token
        self._timeout_s = timeout
        self._prove_within_s = prove_within
        self._most_peers = most_peers
        self._log = log
        self._budget = _MemoryBudget(limit)
        self._unauthenticated = UnauthenticatedPeers()
        self._lock = threading.Lock()
        self._wires: dict[Wire, threading.Thread] = {}
        self._proven_wires: set[Wire] = set()
        self._stopping = False

    def serve(self) -> None:
        """Take connections until :meth:`stop`."""
        while True:
            try:
                peer_socket, (host, port, *_) = self._listening_socket.accept()
            except OSError as error:
                if self._stopping:
                    return
                self._log(f"cannot take a connection: {error.strerror or error}")
                if error.errno in NO_MORE_FILES:
                    self._unauthenticated.drop_oldest()
                time.sleep(0.1)
                continue
            # Further peers wait in the kernel's queue meanwhile; their 2 s have not begun.
            while not self._stopping and (wait_s := self._unauthenticated.make_room(host)):
                time.sleep(wait_s)
            self._accept(peer_socket, host, format_address((host, port)))

    def _accept(self, peer_socket: socket.socket, host: str, peer: str) -> None:
        """Give a new peer a thread and a place among those that have proven nothing yet."""
        if self._stopping:
            peer_socket.close()
            return
        try:
            wire = Wire(peer_socket, peer, min(self._timeout_s, self._prove_within_s))
        except OSError as error:  # the peer is gone again
            self._log(f"refused {peer}: {error.strerror or error}")
            peer_socket.close()
            return
        thread = threading.Thread(target=self._serve, args=[wire], name=peer, daemon=True)
        self._unauthenticated.enter(wire, host)
        with self._lock:
            self._wires[wire] = thread
        try:
            thread.start()
        except RuntimeError as error:  # the limit of threads
            self._log(f"refused {peer}: {error}")
            self._unauthenticated.leave(wire)
            with self._lock:
                del self._wires[wire]
            wire.close()

    def stop(self) -> None:
        """End :meth:`serve` and every connection; may be called from a signal handler."""
        self._stopping = True
        with contextlib.suppress(OSError):  # not a second time
            # close() would leave accept() waiting in the other thread; shutdown() ends it.
            self._listening_socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Wait until everything is released, once :meth:`serve` has returned."""
        self._listening_socket.close()
        with self._lock:
            wires = dict(self._wires)
        for wire, thread in wires.items():
            wire.shutdown()
            thread.join(self._timeout_s)

    # ---- one peer, in a thread of its own ----

    def _serve(self, wire: Wire) -> None:
        """Serve one peer to its end, in its own thread; give back all that it took."""
        torch.set_num_threads(1)  # scatters of many sources must not share torch's pool
        verb = "refused"
        needed_nbytes = 0
        connection: Connection | None = None
        try:
            self._let_in(wire)
            offer = self._read_offer(wire)
            if offer is None:
                self._log(f"ended {wire.peer}: it only tested the connection")
                return
            self._budget.take(offer.nbytes)
            needed_nbytes = offer.nbytes
            connection = Connection(wire, offer, self._services)
            wire.send_frame(Frame(FrameKind.ACCEPTED))
            self._log(f"accepted {wire.peer}: {connection.summary}")
            verb = "dropped"
            connection.serve()
            self._log(
                f"ended {wire.peer}: {connection.nbytes} bytes in {connection.chunk_count} chunks"
            )
        except RefusalError as error:
            self._log(f"{verb} {wire.peer}: {error}")
            _send_refusal(wire, str(error))
        except WireError as error:
            self._log(f"{verb} {wire.peer}: {str(error).removeprefix(f'{wire.peer}: ')}")
        except Exception as error:  # noqa: BLE001 - the other sources go on
            self._log(f"{verb} {wire.peer}: {type(error).__name__}: {error}")
            _send_refusal(wire, f"the sink failed: {type(error).__name__}: {error}")
        finally:
            connection = None  # frees its memory before that is counted as free
            self._budget.give_back(needed_nbytes)
            with self._lock:
                self._proven_wires.discard(wire)
                del self._wires[wire]
            wire.close()

    def _let_in(self, wire: Wire) -> None:
        """Wait for a peer's proof, and give it a place among the proven ones.

        Raises:
            WireError: it proved nothing, or had to make room for others before it did.
            RefusalError: there is no place left.
        """
        try:
            welcome_source(wire, self._token)
        finally:
            was_dropped = self._unauthenticated.leave(wire)
            if was_dropped:
                raise WireError(
                    f"{wire.peer} was dropped: it had not authenticated, and all "
                    f"{MOST_UNAUTHENTICATED} waiting places were needed"
                )
        wire.end_handshake(self._timeout_s)
        with self._lock:
            if len(self._proven_wires) >= self._most_peers:
                raise RefusalError(f"{self._most_peers} peers are connected")
            self._proven_wires.add(wire)

    def _read_offer(self, wire: Wire) -> TCPOffer | None:
        """Return the peer's offer; None if it leaves at once, as a mere test does."""
        frame = wire.receive_head()
        if frame.kind == FrameKind.BYE:
            return None
        if frame.kind != FrameKind.OFFER:
            raise RefusalError(f"a frame of kind {frame.kind} came before the offer")
        # Parsing takes many times the text's bytes, so it counts against the limit, too.
        parsing_nbytes = PARSING_NBYTES_PER_BYTE * min(frame.nbytes, MOST_TEXT_NBYTES)
        self._budget.take(parsing_nbytes)
        try:
            return read_offer(wire.receive_text(frame))
        except ValueError as error:
            raise RefusalError(str(error)) from None
        finally:
            self._budget.give_back(parsing_nbytes)


class _MemoryBudget:
    """The memory that all peers may take together. Called from several threads."""

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()
        self._limit = limit
        self._taken_nbytes = 0

    def take(self, nbytes: int) -> None:
        """Take memory before anything in it is made; RefusalError if not so much is left."""
        with self._lock:
            free_nbytes = self._limit - self._taken_nbytes
            if nbytes > free_nbytes:
                raise RefusalError(
                    f"needs {nbytes / 2**30:.2f} GiB, but only {free_nbytes / 2**30:.2f} GiB of "
                    f"the {self._limit / 2**30:.2f} GiB limit (--max-gib) are free"
                )
            self._taken_nbytes += nbytes

    def give_back(self, nbytes: int) -> None:
        with self._lock:
            self._taken_nbytes -= nbytes


def _listen(address: Address) -> socket.socket:
    """Listen at the first address of this name that works; a host may lack IPv6."""
    infos = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    for address_index, (family, _, _, _, socket_address) in enumerate(infos):
        try:
            return socket.create_server(socket_address[:2], family=family, backlog=MOST_PEERS)
        except OSError:
            if address_index == len(infos) - 1:
                raise
    raise OSError(f"{address[0]} has no address")


def _send_refusal(wire: Wire, reason: str) -> None:
    """Send the reason before closing.

    What the peer still sends is read and dropped. A socket that closes with unread bytes resets the
    connection, and the reason would be lost.
    """
    text = reason.encode()[:MOST_TEXT_NBYTES]
    deadline_s = time.monotonic() + LAST_WORDS_S
    try:
        wire.send_frame(Frame(FrameKind.REFUSED, nbytes=len(text)), text)
        wire.socket.shutdown(socket.SHUT_WR)
        wire.socket.settimeout(LAST_WORDS_S)
        ignored_bytes = bytearray(1 << 16)
        while wire.socket.recv_into(ignored_bytes) and time.monotonic() < deadline_s:
            pass
    except (WireError, OSError):  # the peer does not listen any more
        return
