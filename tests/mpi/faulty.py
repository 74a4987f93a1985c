"""The command line of dejavubench with one fault in it; test_faults.py runs it under mpirun.

``faulty.py FAULT[:ARGUMENT…] run …`` replaces a function of the product and then calls its main.
A fault strikes in iteration 2, so that there are records of earlier iterations, and writes
``struck-<rank>``.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import busy_core
import limited
import slowed
import throttled
import wrong_bytes
from injection import RANK, CurrentPhase, fault, faults_of, inject, is_struck_in, note_strike

from dejavubench.bench.engine.device_steps import DeviceSteps
from dejavubench.bench.engine.steps import HostSteps
from dejavubench.bench.environment import facts
from dejavubench.bench.point import models, sink
from dejavubench.bench.scenarios import plain, streaming
from dejavubench.bench.startup import first_records, workspace
from dejavubench.cli import distribute_plan, final_report, main
from dejavubench.dejavulib import receiver
from dejavubench.dejavulib.destinations import cuda_ipc, mpi, nccl, nixl, tcp
from dejavubench.models.gpt import GPT

# ---- what ends a job ----

# A GPU replays a captured graph for a token, and calls nothing of the model.
STEPS = [(HostSteps, "run"), (DeviceSteps, "run")]
POLLS = [
    (destination, "poll_completed")
    for destination in (
        cuda_ipc.CudaIPCDestination,
        mpi.MPIDestination,
        nccl.NCCLDestination,
        nixl.NIXLDestination,
    )
]

CALLS: dict[str, list[tuple[Any, str]]] = {
    "source load": [(models, "make_random_weights")],
    "source prompt": STEPS,
    "source tokens": STEPS,
    "source drain": POLLS,
    "source verify": [(streaming, "serve_pieces")],
    "sink load": [(sink.Sink, "__init__")],
    "sink prepare": [(sink.Sink, "prepare")],
    "sink receive": [(receiver.CacheReceiver, "poll")],
    "sink verify": [(streaming, "check_sink_caches")],
    "sink take over": STEPS,
}
"""The calls in which a fault strikes, by role and phase: one for each device or destination."""

LINGER_S = 300.0
"""Longer than any test waits."""


def leave_chunks_for(phase: str) -> Callable[..., Any]:
    """Return a call around another one: for a fault in the drain, tokens end with chunks left."""

    def call_unless_early(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        is_early = phase == "drain" and is_struck_in("tokens")
        return 0 if is_early else call(*args, **kwargs)

    return call_unless_early


@fault
def throw(role: str, phase: str) -> None:
    """Raise an exception within a phase, on the source (rank 0) or the sink (rank 1)."""
    if role != ("source", "sink")[RANK]:
        return

    def strike(*_: object, **__: object) -> None:
        # A sink loads nothing, so it never marks the phase `load`.
        if is_struck_in(phase) or (phase == "load" and role == "sink"):
            note_strike()
            raise RuntimeError("injected")

    for owner, name in CALLS[f"{role} {phase}"]:
        inject(owner, name, before=strike, around=leave_chunks_for(phase))


@fault
def linger(phase: str) -> None:
    """Let the source stay in a phase, in which the test kills a rank."""

    def wait(*_: object, **__: object) -> None:
        if is_struck_in(phase):
            note_strike()
            time.sleep(LINGER_S)

    if RANK == 0:
        for owner, name in CALLS[f"source {phase}"]:
            inject(owner, name, before=wait, around=leave_chunks_for(phase))


@fault
def stuck_sink() -> None:
    """Let the sink receive nothing any more, though its process lives."""

    def poll_nothing(
        poll: Callable[[receiver.CacheReceiver], bool], cache: receiver.CacheReceiver
    ) -> bool:
        if is_struck_in("receive"):
            note_strike()
            return False
        return poll(cache)

    inject(receiver.CacheReceiver, "poll", around=poll_nothing)


@fault
def disk_fails(phase: str, error_name: str, rank: str = "0") -> None:
    """Let the device of one rank fail a write or read of streaming in a phase, once or for good."""
    code = getattr(errno, error_name)

    def refuse(*_: object) -> None:
        # The helper thread lags behind: it may write only in the drain.
        is_in_phase = is_struck_in(phase) or (phase == "tokens" and is_struck_in("drain"))
        if int(rank) == RANK and is_in_phase:
            note_strike()
            raise OSError(code, os.strerror(code))

    for call in ("pwrite", "preadv", "posix_fallocate"):
        inject(os, call, before=refuse)


@fault
def lose_sink(phase: str, pid: str) -> None:
    """Kill the sink of tcp, which is a process of its own, in a phase."""

    def kill_sink(*_: object) -> None:
        if is_struck_in(phase) and not Path(f"struck-{RANK}").exists():
            note_strike()
            os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.2)  # until its connections are closed

    call = "fetch" if phase == "verify" else "poll_completed"
    inject(tcp.TCPDestination, call, before=kill_sink, around=leave_chunks_for(phase))


@fault
def remove_folder() -> None:
    """Remove the run's folder while the run goes on."""

    def remove_logs(*_: object) -> None:
        if is_struck_in("prepare"):
            note_strike()
            shutil.rmtree("logs")

    inject(plain.PlainSource, "run", before=remove_logs)


@fault
def record_limit(nbytes: str) -> None:
    """Limit the size of files, so that records cannot be written any more."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(nbytes), int(nbytes)))


@fault
def late(ending: str) -> None:
    """Stop or fail rank 1 before the session begins, while rank 0 waits for it within MPI."""

    def fail_late(*_: object) -> NoReturn:
        note_strike()
        while ending == "interrupt" or not Path("struck-0").exists():
            time.sleep(0.02)
        time.sleep(0.5)  # rank 0 is in a collective call by now
        raise RuntimeError("injected")

    if RANK == 1:
        inject(distribute_plan, "agree_on_plan", after=fail_late)
    else:
        # The host's name is the first thing that the ranks tell each other.
        inject(facts, "read_hostname", before=note_strike)


@fault
def records_full_at_start() -> None:
    """Let rank 0 fail to write ``run.json``."""

    def refuse(*_: object) -> NoReturn:
        note_strike()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    inject(first_records, "write_header", before=refuse)


@fault
def fail_at_the_end() -> None:
    """Let rank 0 fail when all records are written."""

    def fail(*_: object) -> NoReturn:
        note_strike()
        raise RuntimeError("injected")

    inject(final_report.FinalReport, "show", before=fail)


@fault
def no_nixl(rank: str) -> None:
    """Hide NIXL from a rank."""
    if int(rank) == RANK:
        sys.modules["nixl"] = None  # type: ignore[assignment]


# ---- not faults, but what a test needs to be certain of ----


@fault
def no_fault() -> None:
    """Leave the command line as it is."""


@fault
def frozen_clock() -> None:
    """Let every run start in the same second."""

    class Frozen(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)

    mock.patch.object(workspace, "datetime", Frozen).start()


@fault
def slow_model() -> None:
    """Lengthen each step of the model by 0.1 s."""
    inject(GPT, "forward", before=lambda *_, **__: time.sleep(0.1))


MODULES = (busy_core, limited, slowed, throttled, wrong_bytes)
"""The files of further faults."""

if __name__ == "__main__":
    name, *arguments = sys.argv.pop(1).split(":")
    CurrentPhase.follow()
    faults_of(globals(), *map(vars, MODULES))[name].prepare(*arguments)
    main()
