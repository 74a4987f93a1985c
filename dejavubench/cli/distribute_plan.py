"""The start of a run under MPI: rank 0's plan reaches every rank, and every rank can run it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dejavubench.cli import host_checks
from dejavubench.config.plan import Plan
from dejavubench.errors import UsageError
from dejavubench.machine import liveness
from dejavubench.machine.launcher import read_rank, read_rank_count
from dejavubench.machine.mpi_library import find_ending_library
from dejavubench.machine.shared_memory import say_shortage_and_wait
from dejavubench.transports.registry import find_destination_problem
from dejavubench.units import format_count_of

if TYPE_CHECKING:
    from dejavubench.watchdog.starting import WatchdogProcess

LEAST_START_S = 60.0
"""The least time for all ranks to start: imports from a busy file system take a while."""


def agree_on_plan(
    read_plan: Callable[[], Plan], rank_timeout: float
) -> tuple[Plan, WatchdogProcess | None]:
    """Start MPI and return rank 0's plan on every rank.

    Files and environment of other hosts do not count. From now on the ranks are watched, by the
    watchdog process that is returned on one rank per host.

    Args:
        read_plan: makes the plan; called on rank 0 alone.
        rank_timeout: seconds, read from this rank's own flags; the plan may not be readable here.

    Raises:
        UsageError: rank 0 could not read it, or it does not run under this many ranks, or MPI would
            end this process as it starts. On every rank.
    """
    from dejavubench.watchdog import heartbeat
    from dejavubench.watchdog.mpi_start import import_mpi
    from dejavubench.watchdog.starting import start_watchdog

    if (foreign_mpi := find_ending_library()) is not None:
        raise UsageError(foreign_mpi.message)
    plan_or_error = None if read_rank() else _read_outcome(read_plan)
    say_shortage_and_wait(
        os.environ, lambda note: print(f"note: {note}", file=sys.stderr, flush=True)
    )
    timeout_s = (
        max(LEAST_START_S, heartbeat.NO_PROGRESS_FACTOR * rank_timeout) if rank_timeout else 0.0
    )
    own_heartbeat = heartbeat.start_heartbeat(f"rank {read_rank() or 0}")
    import_mpi(own_heartbeat, timeout_s)
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    check_launcher(world.size, MPI.get_vendor())
    # A launcher may number ranks unlike MPI: then MPI's rank 0 has not read the plan yet.
    if plan_or_error is None and world.rank == 0:
        plan_or_error = _read_outcome(read_plan)
    if isinstance(plan_or_error, Exception) and not isinstance(plan_or_error, UsageError):
        raise plan_or_error  # the caller aborts all ranks, which wait for the plan
    plan_or_error = world.bcast(plan_or_error)
    if isinstance(plan_or_error, UsageError):
        raise plan_or_error
    assert plan_or_error is not None
    plan = plan_or_error
    problems = world.allgather(find_destination_problem(plan.experiment.streaming))
    for rank, problem in enumerate(problems):
        if problem is not None:  # this host may not have the plugin that rank 0's has
            raise UsageError(f"rank {rank}: {problem}")
    # The user's own arguments: without --continue DIR a start anew would measure something else.
    command = shlex.join(["dejavubench", *sys.argv[1:]])
    plan.check_ranks(world.size, command)  # before torch is imported, which takes a while
    facts = world.allgather((len(os.sched_getaffinity(0)), host_checks.find_problem()))
    plan.check_threads(min(cores for cores, _ in facts))
    for rank, (_, problem) in enumerate(facts):
        if problem is not None:
            raise UsageError(f"rank {rank}: {problem}")
    watchdog = start_watchdog(world, own_heartbeat, plan.experiment.rank_timeout)
    own_heartbeat.give_up_at(None)
    return plan, watchdog


def end_complete_job(
    folder: Path, on_end: Callable[[Path], None], watchdog: WatchdogProcess | None
) -> None:
    """End a job that was to measure what is missing in a run that lacks nothing. Collective.

    Args:
        on_end: called on rank 0 with the run's folder.
    """
    from mpi4py import MPI

    liveness.begin_phase("end")
    with liveness.show_state(liveness.PATIENT):
        if MPI.COMM_WORLD.rank == 0:
            on_end(folder)
            print(f"nothing is missing in {folder}", file=sys.stderr, flush=True)
        MPI.COMM_WORLD.Barrier()
    if watchdog is not None:
        watchdog.allow_exits()


def _read_outcome(read_plan: Callable[[], Plan]) -> Plan | Exception:
    """Return the plan, or under a launcher the error that every rank is to end with.

    An error of any kind waits until MPI runs: only then can this rank end the other ones.
    """
    try:
        return read_plan()
    except Exception as error:
        if read_rank() is None:
            raise
        return error


def check_launcher(known_rank_count: int, vendor: tuple[str, tuple[int, ...]]) -> None:
    """Refuse ranks that another MPI's launcher has started: each of them would be alone.

    Raises:
        UsageError: the launcher started more ranks than this MPI knows.
    """
    started_rank_count = read_rank_count()
    name, version = vendor
    if started_rank_count is not None and started_rank_count > known_rank_count:
        library = f"{name} {'.'.join(map(str, version))}"
        raise UsageError(
            f"the launcher started {format_count_of(started_rank_count, 'rank')}, but this MPI "
            f"knows {known_rank_count}: it is not the launcher of {library}, which mpi4py uses. "
            f"Start the ranks with {name}'s mpirun"
        )
