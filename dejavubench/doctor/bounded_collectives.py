"""Ranks that meet with a deadline: rank 0 learns which ranks do not answer, and nothing hangs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from dejavubench.dejavulib.waiting import DeadlineError, Naps, wait_asleep

if TYPE_CHECKING:
    from mpi4py import MPI

T = TypeVar("T")

_TO_RANK_0 = 1  # tag of messages to rank 0
_FROM_RANK_0 = 2  # tag of rank 0's messages

NAPS = Naps(1 / 8, 5e-3)
"""Long naps: ranks that wait must not disturb a probe beside them."""

SPIN_S = 500e-6
"""Seconds of a probe's wait before it offers its core to other processes."""

DEADLINE_FACTOR = 2.0
"""Times rank 0's deadline that other ranks wait for it: it is the one that reports."""


class MissingRanksError(Exception):
    """Ranks did not answer in time.

    Attributes:
        ranks: their numbers.
        phase: the part of the examination in which they did not answer, in words.
    """

    def __init__(self, ranks: list[int], phase: str, seconds: float) -> None:
        rank_list = ", ".join(map(str, ranks))
        noun = "rank" if len(ranks) == 1 else "ranks"
        super().__init__(f"no answer from {noun} {rank_list} within {seconds:g} s: {phase}")
        self.ranks = ranks
        self.phase = phase


class BoundedCollectives:
    """All ranks of a job, or this process alone.

    Args:
        comm: nothing else may be under way there; None without MPI.
        deadline: seconds that rank 0 waits for the others in one phase.
    """

    def __init__(self, comm: MPI.Intracomm | None, deadline: float) -> None:
        self._comm = comm
        self._deadline = deadline
        self.rank = 0 if comm is None else comm.rank
        self.size = 1 if comm is None else comm.size

    def allgather(self, value: T, phase: str) -> list[T]:
        """Return every rank's value on every rank. Waiting ranks sleep.

        Raises:
            MissingRanksError: some ranks did not come in time.
        """
        values = self.gather(value, phase)
        if self._comm is None:
            assert values is not None
            return values
        if values is not None:
            for rank in range(1, self.size):
                self._complete(self._comm.isend(values, rank, _FROM_RANK_0), rank, phase)
            return values
        return list(self._receive(0, _FROM_RANK_0, phase))

    def gather(self, value: T, phase: str) -> list[T] | None:
        """Return every rank's value on rank 0, None on the others. See :meth:`allgather`."""
        if self._comm is None:
            return [value]
        if self.rank:
            self._complete(self._comm.isend(value, 0, _TO_RANK_0), 0, phase)
            return None
        # One by one and not MPI's gather, which would wait for ever for a rank that hangs.
        value_by_rank = {0: value}
        missing_ranks = set(range(1, self.size))

        def have_all_come() -> bool:
            for rank in sorted(missing_ranks):
                assert self._comm is not None
                # Matched as it is probed, so no other message of this rank is received instead.
                message = self._comm.improbe(rank, _TO_RANK_0)
                if message is not None:
                    value_by_rank[rank] = message.recv()
                    missing_ranks.discard(rank)
            return not missing_ranks

        try:
            wait_asleep(have_all_come, phase, self._deadline, NAPS)
        except DeadlineError:
            raise MissingRanksError(sorted(missing_ranks), phase, self._deadline) from None
        return [value_by_rank[rank] for rank in range(self.size)]

    def barrier(self, phase: str) -> None:
        """Wait until every rank has come here."""
        self.allgather(None, phase)

    def _receive(self, rank: int, tag: int, phase: str) -> Any:
        """Return the next object from a rank; MissingRanksError if it does not come."""
        assert self._comm is not None
        messages: list[Any] = []

        def has_come() -> bool:
            assert self._comm is not None
            message = self._comm.improbe(rank, tag)
            if message is not None:
                messages.append(message.recv())
            return bool(messages)

        self._wait(has_come, rank, phase)
        return messages[0]

    def _complete(self, request: MPI.Request, rank: int, phase: str) -> None:
        self._wait(lambda: bool(request.Test()), rank, phase)

    def _wait(self, test: Callable[[], bool], rank: int, phase: str) -> None:
        seconds = DEADLINE_FACTOR * self._deadline
        try:
            wait_asleep(test, phase, seconds, NAPS)
        except DeadlineError:
            raise MissingRanksError([rank], phase, seconds) from None


def wait_busy(test: Callable[[], bool], seconds: float) -> None:
    """Call ``test`` until it is true, as a blocking call of MPI does, but with a deadline.

    Raises:
        DeadlineError: it was not true within ``seconds``.
    """
    began_s = time.perf_counter()
    while not test():
        waited_s = time.perf_counter() - began_s
        if waited_s > seconds:
            raise DeadlineError(f"nothing came within {seconds:g} s")
        if waited_s > SPIN_S:
            os.sched_yield()  # ranks may share a core: the other one must run to answer
