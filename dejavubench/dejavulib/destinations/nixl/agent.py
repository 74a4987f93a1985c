"""NIXL as the destination needs it: a rank's agent, its registered memory, and short letters between agents.

The agent has no progress thread: NIXL's spins on a core, model or no model. What is on its way moves while somebody
looks (:meth:`Agent.listen`, :meth:`Agent.moved`); whoever waits looks, sleeps, and looks again.
"""

from __future__ import annotations

import logging
import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import torch
from mpi4py import MPI

from dejavubench.dejavulib.destinations.base import Stream, StreamingError
from dejavubench.dejavulib.waiting import DeadlineError, wait_asleep

Runs = Sequence[tuple[int, int]]
"""Pieces of memory by address and bytes."""

_P = ParamSpec("_P")
_T = TypeVar("_T")

_WORDS = struct.Struct("<BIQQQ")  # kind, stream, number, address, bytes
_TAG = 0  # of cards

MEETING = 60.0
"""Seconds within which the agents of other ranks must come."""

LAST_WORD = 3.0
"""Seconds in which whoever started the ranks can end this one too, before it complains of a peer that has gone."""


class Letter(IntEnum):
    """What agents tell each other of one chunk of a stream, by its number since they met."""

    HELLO = 0
    PLACE = 1  # the sink has room for it: so many bytes at that address, or, at 0, where its runs belong
    WRITTEN = 2  # the source has written it there
    DONE = 3  # the sink has it where it belongs


def load() -> Any:
    """NIXL's Python module, silent unless ``NIXL_LOG_LEVEL`` is set. Raises StreamingError: it cannot be loaded."""
    try:
        from nixl import _api
    except ImportError as error:
        raise StreamingError(f"NIXL cannot be loaded: {error}") from None
    if "NIXL_LOG_LEVEL" not in os.environ:
        logging.getLogger("nixl").setLevel(logging.WARNING)
    return _api


def _leaving_the_last_word(
    method: Callable[Concatenate[Agent, _P], _T],
) -> Callable[Concatenate[Agent, _P], _T]:
    """What failed is the peer, which knows why: StreamingError only if nobody ends this process meanwhile."""

    @wraps(method)
    def work(agent: Agent, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return method(agent, *args, **kwargs)
        except agent.disconnected:
            time.sleep(LAST_WORD)
            raise StreamingError("NIXL: a peer's agent has gone") from None

    return work


class Agent:
    """One rank's agent, which has met its peers: making one needs them to make theirs.

    Args:
        comm: names the ranks; nothing else may be on its way there meanwhile.
        memory: what is read here, or written by others: contiguous tensors of one device, registered once.
        tell: what each peer is told.

    Raises:
        StreamingError: NIXL cannot be used here, or a peer did not come.

    Attributes:
        told: what each peer has told.
        disconnected: what NIXL raises once a peer has gone.
    """

    def __init__(
        self, comm: MPI.Intracomm, memory: Sequence[torch.Tensor], tell: Mapping[int, Any]
    ) -> None:
        nixl, device = load(), memory[0].device
        self.disconnected: type[Exception] = nixl.nixlBind.nixlRemoteDisconnectError
        self._kind, self._device = ("VRAM", device.index) if device.type == "cuda" else ("DRAM", 0)
        config = nixl.nixl_agent_config(
            enable_prog_thread=False,
            sync_mode=nixl.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT,  # one thread makes it, another uses it
        )
        self._agent = nixl.nixl_agent(str(comm.rank), config)
        self._registered = self._agent.register_memory([tensor.view(-1) for tensor in memory])
        self._device_of = {"NIXL_INIT_AGENT": self._device}  # by agent; NIXL's name for one's own
        self._letters: dict[
            tuple[int, int, int, int], tuple[int, int]
        ] = {}  # by sender, stream, kind and number
        try:
            self.told = self._meet(comm, tell)
        except DeadlineError as error:
            raise StreamingError(f"NIXL: {error}") from None

    def _meet(self, comm: MPI.Intracomm, tell: Mapping[int, Any]) -> dict[int, Any]:
        """Everyone sends before anyone waits, so nobody waits in a circle. The first letters make the connections."""
        card, told = self._agent.get_agent_metadata(), {}
        sent = [comm.isend((card, self._device, words), peer, _TAG) for peer, words in tell.items()]
        for peer in tell:
            wait_asleep(
                partial(comm.iprobe, peer, _TAG), f"the card of rank {peer}'s agent", MEETING
            )
            theirs, self._device_of[str(peer)], told[peer] = comm.recv(None, peer, _TAG)
            self._agent.add_remote_agent(theirs)
        wait_asleep(
            lambda: bool(MPI.Request.testall(sent)[0]), "this agent's card on its way", MEETING
        )
        for peer in tell:
            self._agent.send_notif(str(peer), _WORDS.pack(Letter.HELLO, 0, 0, 0, 0))
        for peer in tell:
            wait_asleep(partial(self._has_come, peer), f"a letter of rank {peer}'s agent", MEETING)
        return told

    def _has_come(self, peer: int) -> bool:
        self.listen()
        return (peer, 0, Letter.HELLO, 0) in self._letters

    # ---- letters ----

    @_leaving_the_last_word
    def listen(self) -> None:
        """Let move what is on its way, and sort the letters that have come; they may overtake each other."""
        if self._kind == "VRAM":
            torch.cuda.set_device(self._device)  # of the thread that calls, whose context UCX uses
        for sender, letters in self._agent.get_new_notifs().items():
            for letter in letters:
                kind, stream, number, address, nbytes = _WORDS.unpack(letter)
                self._letters[int(sender), stream, kind, number] = address, nbytes

    @_leaving_the_last_word
    def say(
        self, stream: Stream, kind: Letter, number: int, address: int = 0, nbytes: int = 0
    ) -> None:
        self._agent.send_notif(
            str(stream.peer), _WORDS.pack(kind, stream.id, number, address, nbytes)
        )

    def take(self, stream: Stream, kind: Letter, number: int) -> tuple[int, int] | None:
        """Address and bytes that a letter named, once it has come; it is taken once."""
        assert stream.peer is not None
        return self._letters.pop((stream.peer, stream.id, kind, number), None)

    # ---- what is written into a peer's memory ----

    @_leaving_the_last_word
    def write(self, stream: Stream, here: Runs, there: Runs, number: int | None = None) -> Any:
        """Begin one transfer of pieces to places of the same bytes; with ``number``, the peer is told of its end."""
        letter = b"" if number is None else _WORDS.pack(Letter.WRITTEN, stream.id, number, 0, 0)
        peer = str(stream.peer)
        own = self._agent.get_xfer_descs(self._table(here), self._kind)
        theirs = self._agent.get_xfer_descs(self._table(there, peer), self._kind)
        return self._begin(self._agent.initialize_xfer("WRITE", own, theirs, peer, letter))

    def write_each(self, stream: Stream, here: Runs, there: Runs) -> Iterator[Any]:
        """A transfer for each piece, begun when it is asked for; all pieces are made known to NIXL beforehand."""
        peer = str(stream.peer)
        own = self._agent.prep_xfer_dlist("NIXL_INIT_AGENT", self._table(here), self._kind)
        theirs = self._agent.prep_xfer_dlist(peer, self._table(there, peer), self._kind)
        make = self._agent.make_prepped_xfer
        for number in range(len(here)):
            yield self._begin(make("WRITE", own, [number], theirs, [number]))

    def _table(self, runs: Runs, agent: str = "NIXL_INIT_AGENT") -> np.ndarray:
        """Pieces of an agent's memory, with the number that their device has there."""
        device = self._device_of[agent]
        return np.array([(address, nbytes, device) for address, nbytes in runs], dtype=np.uint64)

    @_leaving_the_last_word
    def _begin(self, transfer: Any) -> Any:
        self._agent.transfer(transfer)
        return transfer

    @_leaving_the_last_word
    def moved(self, transfer: Any) -> bool:
        """Whether a transfer is over: its bytes are in the peer's memory. Raises StreamingError: it failed."""
        state = self._agent.check_xfer_state(transfer)
        if state == "ERR":
            raise StreamingError("NIXL: a transfer failed")
        if state == "DONE":
            transfer.release()
        return bool(state == "DONE")

    def close(self) -> None:
        """Part from the peers, which may have done so before, and give the memory back."""
        for peer in self.told:
            self._agent.remove_remote_agent(str(peer))
        self._agent.deregister_memory(self._registered)
        del self._agent
