"""Starting the watchdog process of a host; see :mod:`.process`."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dejavubench.machine.probe_process import PACKAGE_PARENT
from dejavubench.watchdog.heartbeat import Heartbeat
from dejavubench.watchdog.process import choose_heartbeat_s

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

READY_TIMEOUT_S = 10.0
"""The longest time to wait for the process; the job goes on without it."""

PROGRAM = (
    f"import sys; sys.path.insert(0, {str(PACKAGE_PARENT)!r}); "
    "from dejavubench.watchdog.process import main; main()"
)
"""Program of the watchdog's process, which imports this package alone."""


class RankProcess(NamedTuple):
    """A rank's host and process, and the file there that holds its liveness page."""

    host: str
    pid: int
    fd: int


def start_watchdog(
    world: Intracomm, heartbeat: Heartbeat, timeout_s: float
) -> WatchdogProcess | None:
    """Start one watchdog process per host and return it on the host's lowest rank. Collective."""
    heartbeat.interval_s = choose_heartbeat_s(timeout_s)
    processes = world.allgather(RankProcess(socket.gethostname(), os.getpid(), heartbeat.fd))
    ranks_on_host = {
        rank: rank_process
        for rank, rank_process in enumerate(processes)
        if rank_process.host == processes[world.rank].host
    }
    return (
        WatchdogProcess(ranks_on_host, timeout_s, is_whole_job=len(ranks_on_host) == len(processes))
        if world.rank == min(ranks_on_host)
        else None
    )


def _print_unwatched(reason: str) -> None:
    print(
        f"dejavubench: the ranks are not watched ({reason}): "
        "a rank that hangs will not end the job",
        file=sys.stderr,
        flush=True,
    )


class WatchdogProcess:
    """The watchdog process of this host, as the rank sees it that has started it.

    Where it cannot be started the job runs unwatched, and one line on stderr says so.

    Args:
        ranks: the ranks of this host.
        timeout_s: seconds after which a rank that hangs ends the job; 0: never.
        is_whole_job: these are all ranks of the job.
    """

    def __init__(self, ranks: dict[int, RankProcess], timeout_s: float, is_whole_job: bool) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if not hasattr(os, "pidfd_open"):  # Linux has it
            _print_unwatched("this system has no pidfd_open")
            return
        # -I and -S keep site packages out: the process must start fast and need nothing of them.
        rank_arguments = [
            f"{rank}={rank_process.pid}:{rank_process.fd}" for rank, rank_process in ranks.items()
        ]
        try:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    "-c",
                    PROGRAM,
                    str(timeout_s),
                    "whole" if is_whole_job else "part",
                    *rank_arguments,
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # the launcher's signals are for the ranks
            )
        except OSError as error:
            _print_unwatched(f"no process can be started: {error.strerror}")

    def note_in(self, file: Path) -> None:
        """Have the first rank that ends or hangs noted in ``file``, as one ``FirstExit`` record."""
        if self._process is not None:
            assert self._process.stdout is not None
            select.select([self._process.stdout], [], [], READY_TIMEOUT_S)  # until it watches
            self._send_command(b"note " + os.fsencode(file))

    def allow_exits(self) -> None:
        """Tell the process that all records are written: ranks may end from now on."""
        self._send_command(b"ends")

    def _send_command(self, command: bytes) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it was killed
                self._process.stdin.write(command + b"\n")
                self._process.stdin.flush()
