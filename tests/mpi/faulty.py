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

import busy_core  # noqa: F401 - puts its fault in FAULTS
import limited  # noqa: F401 - likewise
import slowed  # noqa: F401 - likewise
import throttled  # noqa: F401 - likewise
import wrong_bytes  # noqa: F401 - likewise
from injection import FAULTS, RANK, CurrentPhase, fault, is_struck_in, note_strike, replace_call

from dejavubench.bench.environment import facts
from dejavubench.bench.point import models, sink
from dejavubench.bench.scenarios import plain
from dejavubench.bench.startup import first_records, workspace
from dejavubench.cli import distribute_plan, main, reporting
from dejavubench.config.arms import Arm
from dejavubench.dejavulib import receiver
from dejavubench.dejavulib.destinations import mpi, tcp
from dejavubench.models.gpt import GPT

# ---- what ends a job ----

WHERE: dict[str, tuple[Any, str]] = {
    "source load": (models, "random_weights"),
    "source prompt": (GPT, "forward"),
    "source tokens": (GPT, "forward"),
    "source drain": (mpi.MPIDestination, "poll_completed"),
    "source verify": (plain, "serve_pieces"),
    "sink load": (sink.Sink, "__init__"),
    "sink prepare": (sink.Sink, "prepare"),
    "sink receive": (receiver.CacheReceiver, "poll"),
    "sink verify": (plain, "check_sink_caches"),
    "sink take over": (GPT, "forward"),
}
"""The call that raises an exception, by role and phase."""


@fault
def throw(role: str, phase: str) -> None:
    """An exception in the middle of a phase, on the source (rank 0) or the sink (rank 1)."""
    if role != ("source", "sink")[RANK]:
        return

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def work(*args: Any, **kwargs: Any) -> Any:
            # A sink loads nothing, so it never marks the phase `load`.
            if is_struck_in(phase) or (phase == "load" and role == "sink"):
                note_strike()
                raise RuntimeError("injected")
            # For a fault in the drain, chunks must be left when the tokens end.
            return 0 if phase == "drain" and is_struck_in("tokens") else original(*args, **kwargs)

        return work

    replace_call(*WHERE[f"{role} {phase}"], make)


@fault
def linger(phase: str) -> None:
    """The source stays in a phase, for the test to kill somebody meanwhile."""
    if RANK == 0:

        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            def work(*args: Any, **kwargs: Any) -> Any:
                if is_struck_in(phase):
                    note_strike()
                    time.sleep(300)
                return (
                    0 if phase == "drain" and is_struck_in("tokens") else original(*args, **kwargs)
                )

            return work

        replace_call(*WHERE[f"source {phase}"], make)


@fault
def deaf_sink() -> None:
    """The sink takes nothing any more, though its process lives."""

    def make(original: Callable[..., bool]) -> Callable[..., bool]:
        def poll(self: receiver.CacheReceiver) -> bool:
            if is_struck_in("receive"):
                note_strike()
                return False
            return original(self)

        return poll

    replace_call(receiver.CacheReceiver, "poll", make)


@fault
def disk_fails(phase: str, how: str, rank: str = "0") -> None:
    """Let the device of one rank fail a write or read of streaming in a phase, once or for good."""
    code = getattr(errno, how)

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(*args: Any) -> Any:
            # The helper thread lags behind: it may write only in the drain.
            if int(rank) == RANK and (
                is_struck_in(phase) or (phase == "tokens" and is_struck_in("drain"))
            ):
                note_strike()
                raise OSError(code, os.strerror(code))
            return original(*args)

        return refuse

    for call in ("pwrite", "preadv", "posix_fallocate"):
        replace_call(os, call, make)


@fault
def lose_sink(phase: str, pid: str) -> None:
    """In a phase the sink of tcp, which is a process of its own, is killed."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def kill_before(*args: Any) -> Any:
            if is_struck_in(phase) and not Path(f"struck-{RANK}").exists():
                note_strike()
                os.kill(int(pid), signal.SIGKILL)
                time.sleep(0.2)
            # For a fault in the drain, chunks must be left when the tokens end.
            return 0 if phase == "drain" and is_struck_in("tokens") else original(*args)

        return kill_before

    replace_call(tcp.TCPDestination, "fetch" if phase == "verify" else "poll_completed", make)


@fault
def remove_folder() -> None:
    """The run's folder is removed while the run goes on."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: plain.PlainSource, arm: Arm, mark: Callable[[str], None]) -> Any:
            if is_struck_in("prepare"):
                note_strike()
                shutil.rmtree("logs")
            return original(self, arm, mark)

        return run

    replace_call(plain.PlainSource, "run", make)


@fault
def record_limit(nbytes: str) -> None:
    """No file of this process can grow beyond so many bytes: records cannot be written any more."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(nbytes), int(nbytes)))


@fault
def late(how: str) -> None:
    """Stop or fail rank 1 before the session begins, while rank 0 waits for it within MPI."""
    if RANK == 1:

        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            def agreed(*args: Any) -> NoReturn:
                original(*args)
                note_strike()
                while how == "interrupt" or not Path("struck-0").exists():
                    time.sleep(0.02)
                time.sleep(0.5)  # rank 0 is in a collective call by now
                raise RuntimeError("injected")

            return agreed

        replace_call(distribute_plan, "agree_on_plan", make)
    else:

        def announce(original: Callable[[], str]) -> Callable[[], str]:
            def hostname() -> str:  # the first thing that the ranks tell each other
                note_strike()
                return original()

            return hostname

        replace_call(facts, "hostname", announce)


@fault
def records_full_at_start() -> None:
    """Rank 0 cannot write ``run.json``."""

    def full(*_: Any) -> NoReturn:
        note_strike()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    replace_call(first_records, "write_header", lambda _: full)


@fault
def fail_at_the_end() -> None:
    """Rank 0 fails when all records are written."""

    def fail(*_: Any) -> NoReturn:
        note_strike()
        raise RuntimeError("injected")

    replace_call(reporting.FinalReport, "show", lambda _: fail)


@fault
def no_nixl(rank: str) -> None:
    """NIXL is not installed where this rank runs."""
    if int(rank) == RANK:
        sys.modules["nixl"] = None  # type: ignore[assignment]


# ---- not faults, but what a test needs to be certain of ----


@fault
def no_fault() -> None:
    """The command line as it is."""


@fault
def frozen_clock() -> None:
    """Every run starts in the same second."""

    class Frozen(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)

    mock.patch.object(workspace, "datetime", Frozen).start()


@fault
def slow_model() -> None:
    """Each step of the model takes 0.1 s more."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            time.sleep(0.1)
            return original(*args, **kwargs)

        return forward

    replace_call(GPT, "forward", make)


if __name__ == "__main__":
    name, *arguments = sys.argv.pop(1).split(":")
    CurrentPhase.follow()
    FAULTS[name](*arguments)
    main()
