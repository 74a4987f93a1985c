"""``nixl``: chunks written by NVIDIA NIXL into a sink's memory: what serving engines move their caches with.

Writing is one-sided, so the sink says beforehand where: it has a bounded number of slots for each stream, and names a
free one to the source for each chunk to come. The source writes the chunk there, from a slot of its own, and a letter
behind the last byte says so. The chunk is complete when the sink has scattered it and has said *that*; only then its
slot is named again.

At the levels that are not buffered no slot is needed. What a run is follows from the plan on both sides, so the sink
tells once how its cache is planned and where it lies, and the source writes each run from its own cache into its place
in the sink's. At level 0 a run is a transfer of its own, over before the next begins; at ``0-batched`` up to
:data:`GROUP` runs are the pieces of one transfer; all are issued, then waited for. NIXL puts each piece by itself.

Host memory to host memory, or device to device, as the caches are: all that is registered is of one kind. A CUDA event
tells when a packed chunk may be read on the source; on the sink chunks are scattered on a stream of the endpoint's own.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mpi4py import MPI

from dejavubench.dejavulib.addresses import Bases, RunAddresses
from dejavubench.dejavulib.destinations.base import (
    Capabilities,
    RemoteDestination,
    Stream,
    StreamingError,
)
from dejavubench.dejavulib.destinations.nixl.agent import Agent, Letter
from dejavubench.dejavulib.schedule import Chunk, StreamSchedule
from dejavubench.dejavulib.waiting import wait_asleep

GROUP = 2048
"""Runs that are the pieces of one transfer at most, where they are not waited for one by one."""

Planned = dict[int, tuple[StreamSchedule, Bases]]
"""By a stream's id, how the sink's cache is planned and where it lies: what a sink tells a source."""


@dataclass
class _Sending:
    """A chunk on its way, and its number among all of its stream's. ``filled``: after which ``packed`` holds it."""

    number: int
    packed: torch.Tensor | None = None
    filled: torch.cuda.Event | None = None
    transfer: Any = None
    written: bool = False


class NIXLDestination(RemoteDestination[_Sending]):
    """The source's side. Making one needs the sinks to make their :class:`NIXLSinkEndpoint`.

    Args:
        comm: of all sources and sinks; nothing else may be on its way there meanwhile.
        sinks: ranks in ``comm`` that something is streamed to.
        memory: staging slots, and the caches' tensors where single runs are moved: all on the host, or on one device.

    Raises:
        StreamingError: NIXL cannot be used, or a sink did not come.
    """

    name = "nixl"

    def __init__(
        self, comm: MPI.Intracomm, sinks: Sequence[int], memory: Sequence[torch.Tensor]
    ) -> None:
        super().__init__()
        self.capabilities = Capabilities(
            remote=True, device_memory=memory[0].is_cuda, by_address=True
        )
        self.agent = Agent(comm, memory, dict.fromkeys(sinks))
        self._places: dict[tuple[int | None, int], RunAddresses] = {}
        self._numbers: Counter[tuple[int | None, int]] = Counter()
        self._given_up = threading.Event()

    def flush(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        sending = self._add(stream)
        sending.packed = packed
        if packed.is_cuda:
            sending.filled = torch.cuda.Event()
            sending.filled.record(torch.cuda.current_stream(packed.device))
        self._issue(stream)

    def flush_runs(
        self, stream: Stream, chunk: Chunk, runs: Sequence[tuple[int, int]], each_complete: bool
    ) -> None:
        """Write runs, given as (address, bytes), from where they lie to where they belong in the sink's cache."""
        sending = self._add(stream)
        places = self._places_of(stream).of(chunk.step)
        self._await_place(stream, chunk, sending.number)
        if each_complete:
            transfers = self.agent.write_each(stream, runs, places)
            for block in self.counted(runs):
                for _ in block:
                    self._finish(next(transfers), stream, chunk)
        else:
            begun = [
                self.agent.write(stream, block, places[number * GROUP : (number + 1) * GROUP])
                for number, block in enumerate(self.counted(runs, GROUP))
            ]
            for transfer in begun:
                self._finish(transfer, stream, chunk)
        self.agent.say(stream, Letter.WRITTEN, sending.number, nbytes=chunk.nbytes)
        sending.written = True

    def completed(self, stream: Stream) -> int:
        self._issue(stream)
        under_way = self._under_way[stream.key]
        while under_way and self._is_complete(stream, under_way[0]):
            under_way.popleft()
            self._completed[stream.key] += 1
        return self._completed[stream.key]

    def give_up(self) -> None:
        self._given_up.set()

    def close(self) -> None:
        if not self._given_up.is_set():  # else something may still be read here
            self.agent.close()

    def _add(self, stream: Stream) -> _Sending:
        sending = _Sending(self._numbers[stream.key])
        self._numbers[stream.key] += 1
        self._under_way[stream.key].append(sending)
        return sending

    def _issue(self, stream: Stream) -> None:
        """Write what is packed and has a place."""
        self.agent.listen()
        for sending in self._under_way[stream.key]:
            if sending.packed is None or sending.transfer is not None or sending.written:
                continue
            if sending.filled is not None and not sending.filled.query():
                break
            place = self.agent.take(stream, Letter.PLACE, sending.number)
            if place is None:
                break
            here = sending.packed.data_ptr(), sending.packed.numel()
            if place[1] != here[1]:
                raise StreamingError(
                    f"rank {stream.peer} has a place of {place[1]} bytes for a chunk of {here[1]} of stream {stream.id}"
                )
            sending.transfer = self.agent.write(stream, [here], [place], sending.number)

    def _is_complete(self, stream: Stream, sending: _Sending) -> bool:
        if sending.transfer is not None and self.agent.moved(sending.transfer):
            sending.transfer, sending.written = None, True
        return sending.written and self.agent.take(stream, Letter.DONE, sending.number) is not None

    def _places_of(self, stream: Stream) -> RunAddresses:
        if stream.key not in self._places:
            assert stream.peer is not None
            schedule, bases = self.agent.told[stream.peer][stream.id]
            self._places[stream.key] = RunAddresses(bases, schedule)
        return self._places[stream.key]

    def _finish(self, transfer: Any, stream: Stream, chunk: Chunk) -> None:
        """Wait for one transfer without sleeping: so does whoever has nothing else to do."""
        while not self.agent.moved(transfer):
            self._go_on(stream, chunk)

    def _await_place(self, stream: Stream, chunk: Chunk, number: int) -> None:
        def named() -> bool:
            self._go_on(stream, chunk)
            self.agent.listen()
            return self.agent.take(stream, Letter.PLACE, number) is not None

        wait_asleep(named, "a place")

    def _go_on(self, stream: Stream, chunk: Chunk) -> None:
        if self._given_up.is_set():
            raise StreamingError(
                f"chunk {chunk.index} of stream {stream.id} to rank {stream.peer} was given up"
            )
