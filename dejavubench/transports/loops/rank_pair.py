"""Two ranks that measure the link between them."""

from __future__ import annotations

from dataclasses import dataclass

from mpi4py import MPI

from dejavubench.dejavulib.waiting import wait_asleep


@dataclass(frozen=True)
class RankPair:
    """Brings rank 0 and the first sink together before and after a measurement.

    Attributes:
        comm: nothing else may be under way there meanwhile.
        peer: the other rank.
        is_source: this is rank 0.
    """

    comm: MPI.Intracomm
    peer: int
    is_source: bool

    def begin(self) -> None:
        """Begin together: sleep until the other side has come, then start at the same moment."""
        # The other side may still be measuring its memory, so the first wait must cost no CPU.
        exchange = [
            self.comm.Isend(bytearray(1), self.peer),
            self.comm.Irecv(bytearray(1), self.peer),
        ]
        wait_asleep(lambda: MPI.Request.Testall(exchange), "the other side of a link")
        # Naps end up to 2 % late. This exchange, without sleep, makes both start together.
        self.comm.Sendrecv(bytearray(1), self.peer, recvbuf=bytearray(1), source=self.peer)

    def confirm(self) -> None:
        """Send one byte from the sink, for which the source waits without sleeping."""
        if self.is_source:
            self.comm.Recv(bytearray(1), self.peer)
        else:
            self.comm.Send(bytearray(1), self.peer)
