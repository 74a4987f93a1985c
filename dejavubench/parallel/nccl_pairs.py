"""Pairs of ranks, each connected by an NCCL communicator and a CUDA stream of its own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from mpi4py import MPI

from dejavubench.parallel.nccl import INIT_TIMEOUT_S, NCCLCommunicator, call_within


class NCCLPair:
    """The connection of two ranks: one sends and the other receives, in the same order.

    Args:
        communicator: communicator of the two ranks.
        sends: this rank sends; else it receives.

    Attributes:
        cuda_stream: the one that sends or receives are issued on.
    """

    def __init__(self, communicator: NCCLCommunicator, sends: bool) -> None:
        self._communicator = communicator
        self._peer = 1 - communicator.rank
        self.cuda_stream = torch.cuda.Stream(communicator.device)
        self._handle = self.cuda_stream.cuda_stream
        self._side_cuda_stream = torch.cuda.Stream(communicator.device)
        self._connect(sends)

    def _connect(self, sends: bool) -> None:
        """Move one byte: the first message connects, and waits on the host for the other rank's."""

        def exchange_byte() -> None:
            torch.cuda.set_device(self._communicator.device)  # this is another thread
            self.cuda_stream.wait_stream(torch.cuda.current_stream())
            (self._communicator.send if sends else self._communicator.recv)(
                byte, self._peer, self.cuda_stream
            )
            self.cuda_stream.synchronize()

        with torch.cuda.device(self._communicator.device):
            byte = torch.zeros(1, dtype=torch.uint8, device=self._communicator.device)
            torch.cuda.current_stream().synchronize()
        call_within(INIT_TIMEOUT_S, exchange_byte, "the first message between two ranks by NCCL")

    def send(self, address: int, nbytes: int) -> None:
        """Issue a send of device memory to the other rank."""
        self._communicator.send_bytes(address, nbytes, self._peer, self._handle)

    def recv(self, address: int, nbytes: int) -> None:
        """Issue a receive into device memory from the other rank."""
        self._communicator.recv_bytes(address, nbytes, self._peer, self._handle)

    def group(self) -> AbstractContextManager[None]:
        """Return a context; the operations issued inside become one."""
        return self._communicator.group()

    def mark_filled(self) -> torch.cuda.Event:
        """Return an event after the work issued so far on torch's current stream."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._communicator.device))
        return event

    def wait_for_mark(self, mark: torch.cuda.Event) -> None:
        """Begin the operations that are issued from now on after a mark."""
        self.cuda_stream.wait_event(mark)

    def side_cuda_stream(self) -> AbstractContextManager[object]:
        """Make a stream beside the pair's torch's current one, after all receives issued so far."""
        # Receives go on meanwhile: a scatter waits for those before it and delays none behind it.
        self._side_cuda_stream.wait_event(self.mark())
        return torch.cuda.stream(self._side_cuda_stream)

    def mark(self) -> torch.cuda.Event:
        """Return an event that is complete (``query()``) when all operations issued so far are."""
        event = torch.cuda.Event()
        event.record(self.cuda_stream)
        return event

    def synchronize(self) -> None:
        """Wait until all operations are complete; :meth:`abort` ends the wait."""
        self.cuda_stream.synchronize()

    def check(self) -> None:
        """Raise NCCLError if an operation that was issued has failed since."""
        self._communicator.check()

    def abort(self) -> None:
        """End the operations under way and every wait for them. From any thread."""
        self._communicator.abort()

    def close(self) -> None:
        """Free the communicator; the other rank must do the same."""
        self._communicator.close()


def connect_pairs(
    comm: MPI.Intracomm,
    pairs: Sequence[tuple[int, int]],
    device: torch.device,
    timeout_s: float = INIT_TIMEOUT_S,
) -> dict[int, NCCLPair]:
    """Return this rank's pairs, by the rank at the other end.

    Collective over the ranks in ``pairs``.

    Args:
        comm: the communicator whose ranks ``pairs`` name.
        pairs: (sending rank, receiving rank) of all pairs, any number per rank.
    """
    own_pairs: dict[int, NCCLPair] = {}
    # One order for all ranks: no two of them wait for each other in a circle.
    for pair_index, (source, sink) in enumerate(sorted(pairs)):
        if comm.rank not in (source, sink):
            continue
        # Collective over these two alone: other ranks may be elsewhere.
        pair_comm = comm.Create_group(comm.Get_group().Incl([source, sink]), tag=pair_index)
        other_rank = sink if comm.rank == source else source
        own_pairs[other_rank] = NCCLPair(
            NCCLCommunicator(pair_comm, device, timeout_s), sends=comm.rank == source
        )
        pair_comm.Free()
    return own_pairs
