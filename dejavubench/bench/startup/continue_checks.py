"""Checks before a session goes on with a run: same measurement, same place, and nobody else in it.

Pairs are formed within one session, so machines need not be equal for them. But a table has one
machine and one program, so a session on others is refused.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dejavubench.bench.assignment.runnable import RunnablePlan
from dejavubench.bench.recording.infos import describe_arm, describe_point
from dejavubench.bench.startup.ranks import Ranks
from dejavubench.config.continued_run import ContinuedRun
from dejavubench.errors import UsageError
from dejavubench.records import RUN_FILE
from dejavubench.records.reading import list_session_numbers

EQUAL_KEYS = (
    "machine",
    "cpu_model",
    "cpus",
    "cores",
    "cpu_capability",
    "native_bf16",
    "kernel",
    "mpi_thread_level",
    "variables",
    "gpu",
    "cuda_aware_mpi",
    "threads",
    "hostnames",
    "ranks",
    "versions",
    "mpi_library",
    "source_revision",
)
"""Keys of the environment that must not differ between two sessions of a run."""

CHANGEABLE_VARIABLES = ("SLURM_JOB_ID", "DEJAVULIB_BASELINE", "CUDA_VISIBLE_DEVICES")
"""Variables that say nothing of the machine, or that a further session does not look at."""

MOST_NAMED_DIFFERENCES = 5
"""Most differences that a refusal names."""


def check_same(
    continued_run: ContinuedRun,
    runnable: RunnablePlan,
    ranks: Ranks,
    environment: Mapping[str, Any],
) -> None:
    """Refuse a session that would measure something else, or elsewhere.

    Args:
        environment: facts about rank 0's host, as this session's header will hold them.

    Raises:
        UsageError: something differs; the message says what.
    """
    for point_id, reason in runnable.skipped.items():
        if point_id in runnable.plan.starts:
            raise UsageError(
                f"--continue: {point_id} cannot run here now: {reason}. Use --points to leave it "
                "out"
            )
    found_differences = [
        *_compare_plans(continued_run, runnable),
        *_compare_hosts(continued_run, ranks),
        *find_differences(continued_run.header.environment, environment),
    ]
    if found_differences:
        unnamed_count = len(found_differences) - MOST_NAMED_DIFFERENCES
        unnamed_text = f"; and {unnamed_count} more" if unnamed_count > 0 else ""
        raise UsageError(
            f"--continue: the run in {continued_run.folder} was measured otherwise: "
            f"{'; '.join(found_differences[:MOST_NAMED_DIFFERENCES])}{unnamed_text}. "
            "Rounds of both cannot share a table: start a new run"
        )


def _compare_plans(continued_run: ContinuedRun, runnable: RunnablePlan) -> Iterator[str]:
    """Yield how arms and points differ from those of the earlier sessions."""
    plan = runnable.plan
    header = continued_run.header
    earlier_arms = [arm.name for arm in header.arms]
    arms = [arm.name for arm in plan.arms]
    if header.arms != [describe_arm(arm) for arm in plan.arms]:
        yield f"its arms were {', '.join(earlier_arms)}, now {', '.join(arms)}"
    for earlier_point, point in zip(header.points, plan.points, strict=False):
        # Keys that the older program did not write are None, and say nothing.
        old_fields = earlier_point.model_dump(exclude_none=True, exclude={"skipped"})
        new_fields = describe_point(point, swept_options=plan.experiment.swept).model_dump()
        for key, value in old_fields.items():
            if new_fields[key] != value:
                yield f"{key} of {earlier_point.id} was {value}, now {new_fields[key]}"
    if len(header.points) != len(plan.points):
        yield f"it had {len(header.points)} points, now {len(plan.points)}"


def _compare_hosts(continued_run: ContinuedRun, ranks: Ranks) -> Iterator[str]:
    for rank, host in sorted(continued_run.hosts.items()):
        if rank < len(ranks.hosts) and ranks.hosts[rank] != host:
            yield f"rank {rank} was on {host}, now on {ranks.hosts[rank]}"


def find_differences(
    old_environment: Mapping[str, Any], new_environment: Mapping[str, Any]
) -> Iterator[str]:
    """Yield the differences between two environments, by the keys that the older one has."""
    for key in EQUAL_KEYS:
        if key not in old_environment:
            continue
        old_value = old_environment[key]
        new_value = new_environment.get(key)
        if isinstance(old_value, dict) and isinstance(new_value, dict):
            for name in sorted({*old_value, *new_value} - set(CHANGEABLE_VARIABLES)):
                if old_value.get(name) != new_value.get(name):
                    yield f"{key} {name} was {old_value.get(name)}, now {new_value.get(name)}"
        elif old_value != new_value:
            yield f"{key} was {old_value}, now {new_value}"


def lock(folder: Path) -> None:
    """Keep other processes out of a run's folder until this process ends.

    The lock is on ``run.json`` itself, so no file is added or altered.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the file system has no locks, or the file may not be opened for writing.
    """
    # Never closed: the kernel gives the lock back when this process is gone, however it ends.
    fd = os.open(folder / RUN_FILE, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise


def lock_continued_run(continued_run: ContinuedRun) -> None:
    """Lock a run's folder, and check that it is still as it was read.

    Raises:
        UsageError: another process measures there, or has done so meanwhile.
    """
    folder = continued_run.folder
    try:
        lock(folder)
    except BlockingIOError:
        raise UsageError(f"--continue: another process is measuring in {folder}") from None
    except OSError as error:
        raise UsageError(f"--continue: {folder} cannot be locked: {error.strerror}") from None
    if list_session_numbers(os.listdir(folder)) != list(continued_run.sessions):
        raise UsageError(
            f"--continue: another session has measured in {folder} meanwhile. Start again"
        )
