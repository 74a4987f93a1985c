"""Arms that have failed at a point while the others go on. All ranks agree, outside the clock.

Only a storage device makes an arm fail in this way. A rank whose device has failed computes its
iteration to the end, without streaming, because the other ranks wait for it in every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from types import TracebackType

from mpi4py import MPI

from dejavubench.config.arms import Arm
from dejavubench.dejavulib.destinations.base import StorageError
from dejavubench.parallel.collectives import sleeping_barrier


class Attempt(AbstractContextManager["Attempt"]):
    """Keeps the StorageError of an arm that streams to disk until all ranks have agreed.

    Attributes:
        problem: the error in words; None if there was none.
    """

    def __init__(self, arm: Arm) -> None:
        self._arm = arm
        self.problem: str | None = None

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if self._arm.on_disk and isinstance(error, StorageError):
            self.problem = str(error)
            return True
        return False


class ArmFailures:
    """The arms of a point that have failed.

    Args:
        world: all ranks.
        on_failure: called on every rank, once per arm, with the first rank that failed and why.
    """

    def __init__(self, world: MPI.Intracomm, on_failure: Callable[[Arm, int, str], None]) -> None:
        self._world = world
        self._on_failure = on_failure
        self.failed_names: set[str] = set()

    def list_working_arms(self, arms: Iterable[Arm]) -> list[Arm]:
        """Return the arms that have not failed."""
        return [arm for arm in arms if arm.name not in self.failed_names]

    def agree_on_failure(self, arm: Arm, problem: str | None) -> bool:
        """Note a failure on any rank; return whether there is one. Collective for arms on disk.

        Args:
            problem: why it fails on this rank, if it does.
        """
        if not arm.on_disk:
            return False
        # The slowest rank may still wait for its disk: ranks meet asleep, as allgather would spin.
        sleeping_barrier(self._world, "agreement")
        return self.note_first_failure(arm, self._world.allgather(problem))

    def note_first_failure(self, arm: Arm, problems: list[str | None]) -> bool:
        """Note the first of the problems of all ranks; return whether there is one."""
        # The lowest rank speaks for all, so that every rank reports the same failure.
        first_failure = next(
            ((rank, reason) for rank, reason in enumerate(problems) if reason is not None), None
        )
        if first_failure is None:
            return False
        self.failed_names.add(arm.name)
        self._on_failure(arm, *first_failure)
        return True
