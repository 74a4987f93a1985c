"""The sink of ``tcp`` streams: listens, asks every peer for a proof, and keeps what the proven ones stream.

One connection is one source worker's, with caches and a thread of its own; what is wrong with one ends that one alone.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable, Mapping

import torch

from dejavubench.dejavulib.destinations.tcp.connection import Connection, Service
from dejavubench.dejavulib.destinations.tcp.handshake import (
    TEXT_TIMES,
    Address,
    Setup,
    address_text,
    read_setup,
    welcome,
)
from dejavubench.dejavulib.destinations.tcp.held import RefusalError
from dejavubench.dejavulib.destinations.tcp.unproven import MOST_UNPROVEN, PROVE_WITHIN, Unproven
from dejavubench.dejavulib.destinations.tcp.wire import (
    FIRST_SERVICE,
    MOST_TEXT,
    Frame,
    Kind,
    Wire,
    WireError,
    set_buffers,
)

MOST_PEERS = 128
"""Peers at a time that have proven themselves; a further one is told so and closed. Others have places of their own."""

NO_MORE_FILES = frozenset({errno.EMFILE, errno.ENFILE})

LAST_WORDS = 2.0
"""Seconds that a refused source has for reading why."""


class TCPSink:
    """Listens from now on; :meth:`serve` takes who comes.

    Args:
        address: port 0 is any that is free.
        token: what sources have to know.
        limit: bytes of memory for all caches and staging together.
        timeout: seconds that a source may be silent in the middle of something; a proof has 2 s at most.
        log: is told of every peer in one line.
        services: answers to kinds of frames that the owner adds to the protocol, from ``FIRST_SERVICE`` on.

    Raises:
        OSError: nobody can listen there.
    """

    def __init__(
        self,
        address: Address,
        token: bytes,
        limit: int,
        timeout: float,
        log: Callable[[str], None],
        services: Mapping[int, Service] | None = None,
    ) -> None:
        if not token:
            raise ValueError("a sink needs a token")
        self._services = services or {}
        if any(kind < FIRST_SERVICE for kind in self._services):
            raise ValueError(f"kinds of frames below {FIRST_SERVICE} are the protocol's own")
        self._listening = _listen(address)
        set_buffers(self._listening)  # accepted connections have them from the start
        self.address: Address = self._listening.getsockname()[:2]
        self._token = token
        self._timeout = timeout
        self._log = log
        self._room = _Room(limit)
        self._unproven = Unproven()
        self._lock = threading.Lock()
        self._wires: dict[Wire, threading.Thread] = {}
        self._proven: set[Wire] = set()
        self._stopping = False

    def serve(self) -> None:
        """Take connections until :meth:`stop`."""
        while True:
            try:
                connected, (host, port, *_) = self._listening.accept()
            except OSError as error:
                if self._stopping:
                    return
                self._log(f"cannot take a connection: {error.strerror or error}")
                if error.errno in NO_MORE_FILES:
                    self._unproven.drop_oldest()
                time.sleep(0.1)
                continue
            while not self._stopping and (wait := self._unproven.make_room(host)):
                time.sleep(wait)
            self._take(connected, host, address_text((host, port)))

    def _take(self, connected: socket.socket, host: str, peer: str) -> None:
        if self._stopping:
            connected.close()
            return
        try:
            wire = Wire(connected, peer, min(self._timeout, PROVE_WITHIN))
        except OSError as error:  # gone again
            self._log(f"refused {peer}: {error.strerror or error}")
            connected.close()
            return
        thread = threading.Thread(target=self._serve, args=[wire], name=peer, daemon=True)
        self._unproven.enter(wire, host)
        with self._lock:
            self._wires[wire] = thread
        try:
            thread.start()
        except RuntimeError as error:  # no more threads: the sources that are here go on
            self._log(f"refused {peer}: {error}")
            self._unproven.leave(wire)
            with self._lock:
                del self._wires[wire]
            wire.close()

    def stop(self) -> None:
        """End :meth:`serve` and every connection; may be called from a signal handler."""
        self._stopping = True
        with contextlib.suppress(OSError):  # not a second time
            self._listening.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Once :meth:`serve` has returned: wait until all is given back."""
        self._listening.close()
        with self._lock:
            wires = dict(self._wires)
        for wire, thread in wires.items():
            wire.shutdown()
            thread.join(self._timeout)

    # ---- one peer, in a thread of its own ----

    def _serve(self, wire: Wire) -> None:
        torch.set_num_threads(1)
        verb, needed = "refused", 0
        try:
            self._let_in(wire)
            setup = self._read_setup(wire)
            if setup is None:
                self._log(f"ended {wire.peer}: it only asked whether it may come")
                return
            self._room.take(setup.nbytes)
            needed = setup.nbytes
            connection = Connection(wire, setup, self._services)
            wire.send_frame(Frame(Kind.ACCEPTED))
            self._log(f"accepted {wire.peer}: {connection.what}")
            verb = "dropped"
            connection.serve()
            self._log(f"ended {wire.peer}: {connection.nbytes} bytes in {connection.chunks} chunks")
        except RefusalError as error:
            self._log(f"{verb} {wire.peer}: {error}")
            _tell(wire, str(error))
        except WireError as error:
            self._log(f"{verb} {wire.peer}: {error}")
        except Exception as error:  # noqa: BLE001 - whatever it is, the other sources go on
            self._log(f"{verb} {wire.peer}: {type(error).__name__}: {error}")
            _tell(wire, f"the sink failed: {type(error).__name__}: {error}")
        finally:
            connection = None  # type: ignore[assignment] # its memory goes before anybody is told that it has
            self._room.give_back(needed)
            with self._lock:
                self._proven.discard(wire)
                del self._wires[wire]
            wire.close()

    def _let_in(self, wire: Wire) -> None:
        """Wait for a peer's proof, and give it a place among those that have proven themselves.

        Raises:
            WireError: it proves nothing, or had to make room for others before it did.
            RefusalError: there is no place left.
        """
        try:
            welcome(wire, self._token)
        finally:
            dropped = self._unproven.leave(wire)
            if dropped:
                raise WireError(
                    f"{wire.peer} had proven nothing when others came; {MOST_UNPROVEN} may wait"
                )
        wire.proven(self._timeout)
        with self._lock:
            if len(self._proven) >= MOST_PEERS:
                raise RefusalError(f"{MOST_PEERS} peers are connected")
            self._proven.add(wire)

    def _read_setup(self, wire: Wire) -> Setup | None:
        frame = wire.receive_head()
        if frame.kind == Kind.BYE:
            return None
        if frame.kind != Kind.SETUP:
            raise RefusalError(f"a frame of kind {frame.kind} came before the setup")
        reading = TEXT_TIMES * min(frame.nbytes, MOST_TEXT)
        self._room.take(reading)
        try:
            return read_setup(wire.receive_text(frame))
        except ValueError as error:
            raise RefusalError(str(error)) from None
        finally:
            self._room.give_back(reading)


class _Room:
    """The memory that all peers may take together; called from several threads."""

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()
        self._limit = limit
        self._taken = 0

    def take(self, nbytes: int) -> None:
        """Called before anything of it is made. Raises RefusalError: there is not so much left."""
        with self._lock:
            left = self._limit - self._taken
            if nbytes > left:
                raise RefusalError(
                    f"{nbytes / 2**30:.2f} GiB are needed; of the limit of {self._limit / 2**30:.2f} GiB "
                    f"{left / 2**30:.2f} are left"
                )
            self._taken += nbytes

    def give_back(self, nbytes: int) -> None:
        with self._lock:
            self._taken -= nbytes


def _listen(address: Address) -> socket.socket:
    """Listen at the first address of this name that can be had: where there is no IPv6, a name may still have one."""
    found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    for number, (family, _, _, _, at) in enumerate(found):
        try:
            return socket.create_server(at[:2], family=family, backlog=MOST_PEERS)
        except OSError:
            if number == len(found) - 1:
                raise
    raise OSError(f"{address[0]} has no address")


def _tell(wire: Wire, why: str) -> None:
    """Say why before closing, and let pass what is still being sent: else the closing would overtake the words."""
    text = why.encode()[:MOST_TEXT]
    until = time.monotonic() + LAST_WORDS
    try:
        wire.send_frame(Frame(Kind.REFUSED, nbytes=len(text)), text)
        wire.socket.shutdown(socket.SHUT_WR)
        wire.socket.settimeout(LAST_WORDS)
        passing = bytearray(1 << 16)
        while wire.socket.recv_into(passing) and time.monotonic() < until:
            pass
    except (WireError, OSError):  # it does not listen any more
        return
