"""A rank's NIXL agent as the destination needs it: registered memory, writes and notifications.

The agent has no progress thread: NIXL's spins on a core. Writes move while somebody calls
:meth:`Agent.advance` or :meth:`Agent.has_finished`; a side that waits calls one of them, sleeps,
and calls again.
"""

from __future__ import annotations

import logging
import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np
import torch
from mpi4py import MPI

from ...waiting import DeadlineError, wait_asleep
from ..base import CONNECT_S, WAIT_FOR_PEER_REPORT_S, Stream, StreamingError

Pieces = Sequence[tuple[int, int]]
"""Pieces of memory as (address, bytes)."""

_P = ParamSpec("_P")
_T = TypeVar("_T")

_NOTIFICATION = struct.Struct("<BIQQQ")  # kind, stream, number, address, bytes
_METADATA_TAG = 0  # of messages that carry metadata


class WriteHandle(Protocol):
    """NIXL's handle of a write."""

    def release(self) -> None:
        """Free the handle; called once, when the write is done."""


class Notification(IntEnum):
    """Kinds of messages between agents about one chunk, by its number since they connected."""

    HELLO = 0
    BUFFER = 1  # sink: it may be written, to (address, bytes), or at address 0 to the cache itself
    WRITTEN = 2  # source: it has been written
    DONE = 3  # sink: it is in its place


def load() -> Any:
    """Return NIXL's Python module, silent unless ``NIXL_LOG_LEVEL`` is set.

    Raises:
        StreamingError: it cannot be loaded.
    """
    try:
        from nixl import _api
    except ImportError as error:
        raise StreamingError(f"NIXL cannot be loaded: {error}") from None
    if "NIXL_LOG_LEVEL" not in os.environ:
        logging.getLogger("nixl").setLevel(logging.WARNING)
    return _api


def _report_lost_peer(
    method: Callable[Concatenate[Agent, _P], _T],
) -> Callable[Concatenate[Agent, _P], _T]:
    """Turn NIXL's error about a lost peer into a StreamingError, after WAIT_FOR_PEER_REPORT_S."""

    @wraps(method)
    def call_method(agent: Agent, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return method(agent, *args, **kwargs)
        except agent.disconnected:
            time.sleep(WAIT_FOR_PEER_REPORT_S)
            raise StreamingError(
                f"NIXL: lost the agent of rank {' or '.join(map(str, agent.peers))}; "
                "its process has ended"
            ) from None

    return call_method


class Agent:
    """One rank's agent, connected to its peers. Making one needs the peers to make theirs.

    Args:
        comm: names the ranks; nothing else may be on its way there meanwhile.
        memory: contiguous tensors of one device, registered once. It is read here, or written by
            others.
        shared_objects: objects by peer; each goes to its peer along with this agent's metadata.

    Raises:
        StreamingError: NIXL cannot be used here, or a peer did not connect.

    Attributes:
        shared: objects by peer, as each peer has sent it.
        peers: ranks of the peers.
        disconnected: the exception that NIXL raises once a peer is gone.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        memory: Sequence[torch.Tensor],
        shared_objects: Mapping[int, object],
    ) -> None:
        nixl = load()
        device = memory[0].device
        self.peers = sorted(shared_objects)
        self.disconnected: type[Exception] = nixl.nixlBind.nixlRemoteDisconnectError
        self._kind, self._device = ("VRAM", device.index) if device.type == "cuda" else ("DRAM", 0)
        config = nixl.nixl_agent_config(
            enable_prog_thread=False,
            # One thread makes the agent, another one uses it.
            sync_mode=nixl.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT,
        )
        self._agent = nixl.nixl_agent(str(comm.rank), config)
        self._registered = self._agent.register_memory([tensor.view(-1) for tensor in memory])
        # The device's number in each agent's process; NIXL's name for one's own is the first key.
        self._device_of = {"NIXL_INIT_AGENT": self._device}
        # (address, bytes) by sender, stream, kind and number.
        self._notifications: dict[tuple[int, int, int, int], tuple[int, int]] = {}
        try:
            self.shared = self._connect(comm, shared_objects)
        except DeadlineError as error:
            raise StreamingError(f"NIXL: {error}") from None

    def _connect(self, comm: MPI.Intracomm, shared_objects: Mapping[int, object]) -> dict[int, Any]:
        """Exchange metadata; everyone sends before anyone waits, so nobody waits in a circle."""
        metadata = self._agent.get_agent_metadata()
        shared_by_peer: dict[int, Any] = {}
        send_requests = [
            comm.isend((metadata, self._device, shared_object), peer, _METADATA_TAG)
            for peer, shared_object in shared_objects.items()
        ]
        for peer in shared_objects:
            awaited_message = f"the metadata of rank {peer}'s agent"
            wait_asleep(partial(comm.iprobe, peer, _METADATA_TAG), awaited_message, CONNECT_S)
            peer_metadata, self._device_of[str(peer)], shared_by_peer[peer] = comm.recv(
                None, peer, _METADATA_TAG
            )
            self._agent.add_remote_agent(peer_metadata)
        wait_asleep(
            lambda: bool(MPI.Request.testall(send_requests)[0]),
            "sending this agent's metadata",
            CONNECT_S,
        )
        # UCX connects lazily: the first notification makes the connection, now and not in the
        # first timed chunk.
        for peer in shared_objects:
            hello = _NOTIFICATION.pack(Notification.HELLO, 0, 0, 0, 0)
            self._agent.send_notif(str(peer), hello)
        for peer in shared_objects:
            awaited_message = f"a notification of rank {peer}'s agent"
            wait_asleep(partial(self._has_come, peer), awaited_message, CONNECT_S)
        return shared_by_peer

    def _has_come(self, peer: int) -> bool:
        self.advance()
        return (peer, 0, Notification.HELLO, 0) in self._notifications

    # ---- notifications ----

    @_report_lost_peer
    def advance(self) -> None:
        """Let writes move, and collect the notifications that have come, in any order."""
        if self._kind == "VRAM":
            torch.cuda.set_device(self._device)  # UCX uses the CUDA context of the calling thread
        for sender, messages in self._agent.get_new_notifs().items():
            for message in messages:
                kind, stream, chunk_number, address, nbytes = _NOTIFICATION.unpack(message)
                # Kept by number: UCX may deliver notifications in another order than they left.
                self._notifications[int(sender), stream, kind, chunk_number] = address, nbytes

    @_report_lost_peer
    def notify(
        self,
        stream: Stream,
        kind: Notification,
        chunk_number: int,
        address: int = 0,
        nbytes: int = 0,
    ) -> None:
        """Send a notification about a chunk of a stream to the stream's peer."""
        message = _NOTIFICATION.pack(kind, stream.id, chunk_number, address, nbytes)
        self._agent.send_notif(str(stream.peer), message)

    def take(self, stream: Stream, kind: Notification, chunk_number: int) -> tuple[int, int] | None:
        """Return (address, bytes) of a notification, once, when it has come; else None.

        DONE has nanoseconds in place of bytes: how long the sink took.
        """
        return self._notifications.pop((stream.peer_rank, stream.id, kind, chunk_number), None)

    # ---- writes into a peer's memory ----

    @_report_lost_peer
    def write(
        self, stream: Stream, source: Pieces, target: Pieces, chunk_number: int | None = None
    ) -> WriteHandle:
        """Begin one write of pieces of memory; return its handle, for :meth:`has_finished`.

        Args:
            target: pieces of the peer's memory, as many and of the same sizes.
            chunk_number: number of the chunk, which NIXL notifies the peer of behind the last byte.
                None: the peer is not notified.
        """
        message = b""
        if chunk_number is not None:
            message = _NOTIFICATION.pack(Notification.WRITTEN, stream.id, chunk_number, 0, 0)
        peer = str(stream.peer)
        sources = self._agent.get_xfer_descs(self._make_table(source), self._kind)
        targets = self._agent.get_xfer_descs(self._make_table(target, peer), self._kind)
        return self._begin(self._agent.initialize_xfer("WRITE", sources, targets, peer, message))

    def write_each(self, stream: Stream, source: Pieces, target: Pieces) -> Iterator[WriteHandle]:
        """Yield a write per piece, begun when it is asked for. NIXL prepares all beforehand."""
        peer = str(stream.peer)
        sources = self._agent.prep_xfer_dlist(
            "NIXL_INIT_AGENT", self._make_table(source), self._kind
        )
        targets = self._agent.prep_xfer_dlist(peer, self._make_table(target, peer), self._kind)
        make = self._agent.make_prepped_xfer
        for piece_index in range(len(source)):
            yield self._begin(make("WRITE", sources, [piece_index], targets, [piece_index]))

    def _make_table(self, extents: Pieces, agent: str = "NIXL_INIT_AGENT") -> np.ndarray:
        """Return (address, bytes, device number) of each piece, uint64 [n, 3]."""
        device = self._device_of[agent]
        return np.array([(address, nbytes, device) for address, nbytes in extents], dtype=np.uint64)

    @_report_lost_peer
    def _begin(self, write: WriteHandle) -> WriteHandle:
        self._agent.transfer(write)  # NIXL's name for starting a prepared operation
        return write

    @_report_lost_peer
    def has_finished(self, write: WriteHandle) -> bool:
        """Return whether a write's bytes are in the peer's memory.

        Raises:
            StreamingError: the write failed.
        """
        transfer_state = self._agent.check_xfer_state(write)
        if transfer_state == "ERR":
            raise StreamingError("NIXL: a write failed")
        if transfer_state == "DONE":
            write.release()  # NIXL keeps the operation until it is told
        return bool(transfer_state == "DONE")

    def close(self) -> None:
        """Disconnect from the peers, which may be gone already, and release the memory."""
        for peer in self.shared:
            self._agent.remove_remote_agent(str(peer))
        self._agent.deregister_memory(self._registered)
        del self._agent
