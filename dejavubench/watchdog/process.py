"""The watchdog process of a host: it notes which rank ended first, and ends a job that hangs.

A launcher kills every rank as soon as one was killed, so none is left to say which one it was. No
launcher notices a rank that is stopped, or waits for a file system that does not answer. This
process judges the ranks of its own host only: a rank without a heartbeat after one timeout, a rank
without progress half a timeout later. So the host of the rank at fault is the first to act.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dejavubench.machine.launcher import PASS_ON_S
from dejavubench.machine.liveness import (
    HEARTBEATS,
    LIVENESS_PAGE_NBYTES,
    PATIENT,
    PROGRESS,
    STATE,
    WAITING,
    LivenessPage,
)
from dejavubench.watchdog.heartbeat import HEARTBEAT_S, NO_PROGRESS_FACTOR
from dejavubench.whole_file import write_whole

ELSEWHERE_FACTOR = 4.0
"""Timeouts after which ranks that wait for other hosts are at fault: those cannot be seen here."""

STOPPED_STATES = ("T", "t")
"""States of a process that a signal or a debugger has stopped."""

MISSED_HEARTBEAT_COUNT = 5
"""Heartbeats that a rank must have missed to be mentioned when another one fails."""

NOTE_TIMEOUT_S = 1.0
"""The longest time to note who hangs: the file system may be what hangs."""


def choose_heartbeat_s(timeout_s: float) -> float:
    """Return the seconds between two heartbeats, and between two looks at them."""
    return min(HEARTBEAT_S, timeout_s / 10) if timeout_s else HEARTBEAT_S


@dataclass
class LastSeen:
    """The last values seen of a rank, and when they changed.

    Attributes:
        process_state: the state of its process since then.
    """

    page: LivenessPage
    heartbeat_at_s: float
    progress_at_s: float
    heartbeat_count: int = -1
    progress: int = -1
    process_state: str = ""


class HangJudge:
    """Judges which ranks of this host hang.

    Args:
        pages: the page of memory of each rank.
        timeout_s: seconds; 0: no rank is ever judged to hang.
        is_whole_job: all ranks of the job are on this host.
        read_state: returns the state of a rank's process, as Linux abbreviates it.
        now_s: the time by time.monotonic, as in :meth:`look`.
    """

    def __init__(
        self,
        pages: Mapping[int, LivenessPage],
        timeout_s: float,
        is_whole_job: bool,
        read_state: Callable[[int], str],
        now_s: float,
    ) -> None:
        self._timeout_s = timeout_s
        self._is_whole_job = is_whole_job
        self._read_state = read_state
        self._last_look_s = now_s
        self._last_seen = {rank: LastSeen(page, now_s, now_s) for rank, page in pages.items()}

    def forget(self, rank: int) -> None:
        """Stop watching a rank, which has ended."""
        self._last_seen.pop(rank, None)

    def look(self, now_s: float) -> dict[int, str]:
        """Return the ranks at fault, each with the reason in words."""
        self._follow(now_s)
        if not self._timeout_s:
            return {}
        for rank, last_seen in self._last_seen.items():
            if min(last_seen.heartbeat_at_s, last_seen.progress_at_s) < now_s:
                last_seen.process_state = self._read_state(rank)
        return self._find_silent(now_s, self._timeout_s) or self._find_stuck(now_s)

    def find_late(self, now_s: float) -> dict[int, str]:
        """Return ranks that missed a few heartbeats: they may be why another one fails."""
        self._follow(now_s)
        return (
            self._find_silent(now_s, MISSED_HEARTBEAT_COUNT * choose_heartbeat_s(self._timeout_s))
            if self._timeout_s
            else {}
        )

    def _follow(self, now_s: float) -> None:
        """Note which ranks have beaten or got on since the last look."""
        interval_s = choose_heartbeat_s(self._timeout_s)
        # Time in which this process did not run either does not count.
        pause_s = max(0.0, now_s - self._last_look_s - 2 * interval_s)
        self._last_look_s = now_s
        for last_seen in self._last_seen.values():
            last_seen.heartbeat_at_s += pause_s
            last_seen.progress_at_s += pause_s
            counters = last_seen.page.counters
            heartbeat_count, progress = counters[HEARTBEATS], counters[PROGRESS]
            has_beaten = heartbeat_count != last_seen.heartbeat_count
            if has_beaten:
                last_seen.heartbeat_count = heartbeat_count
                last_seen.heartbeat_at_s = now_s
            # In a patient phase, such as loading, a heartbeat is all that can be asked for.
            if progress != last_seen.progress or (has_beaten and counters[STATE] == PATIENT):
                last_seen.progress = progress
                last_seen.progress_at_s = now_s

    def _find_silent(self, now_s: float, most_silence_s: float) -> dict[int, str]:
        silent_ranks = [
            rank
            for rank, last_seen in self._last_seen.items()
            if now_s - last_seen.heartbeat_at_s > most_silence_s
        ]
        # A stopped rank is at fault for certain. Others may be silent on its account.
        stopped_ranks = [
            rank for rank in silent_ranks if self._last_seen[rank].process_state in STOPPED_STATES
        ]
        return {
            rank: f"no heartbeat for {now_s - last_seen.heartbeat_at_s:.0f} s{_explain(last_seen)}"
            for rank, last_seen in self._last_seen.items()
            if rank in (stopped_ranks or silent_ranks)
        }

    def _find_stuck(self, now_s: float) -> dict[int, str]:
        """Return the ranks that got stuck: those that work, before those that wait for them."""
        idle_s = {
            rank: now_s - last_seen.progress_at_s for rank, last_seen in self._last_seen.items()
        }
        most_idle_s = NO_PROGRESS_FACTOR * self._timeout_s
        stuck_ranks = [rank for rank, seconds in idle_s.items() if seconds > most_idle_s]
        working_ranks = [
            rank for rank in stuck_ranks if self._last_seen[rank].page.counters[STATE] != WAITING
        ]
        if not working_ranks:  # ranks that wait are at fault only if no other rank can be
            if not self._is_whole_job:  # the ranks of other hosts may be those at fault
                most_idle_s = ELSEWHERE_FACTOR * self._timeout_s
            if any(seconds <= most_idle_s for seconds in idle_s.values()):
                return {}
        waiting_text = "" if working_ranks else ", it waits for other ranks"
        return {
            rank: f"no progress for {idle_s[rank]:.0f} s{waiting_text}"
            f"{_explain(self._last_seen[rank])}"
            for rank in working_ranks or stuck_ranks
        }


def _explain(last_seen: LastSeen) -> str:
    if last_seen.process_state in STOPPED_STATES:
        return ": its process is stopped"
    return (
        ": its process waits for a device or a file system"
        if last_seen.process_state == "D"
        else ""
    )


class Watchdog:
    """Watches the ranks of this host until they have ended.

    Commands come on standard input, one per line: ``note FILE`` names the file for notes, ``ends``
    allows ranks to end.
    """

    def __init__(
        self,
        pids: dict[int, int],
        pages: dict[int, LivenessPage],
        timeout_s: float,
        is_whole_job: bool,
    ) -> None:
        self._pids = pids
        self._pages = pages
        self._timeout_s = timeout_s
        self._interval_s = choose_heartbeat_s(timeout_s)
        self._judge = HangJudge(
            pages=pages,
            timeout_s=timeout_s,
            is_whole_job=is_whole_job,
            read_state=lambda rank: _read_state(pids[rank]),
            now_s=time.monotonic(),
        )
        self._note_file: Path | None = None
        self._may_end = False
        self._partial_bytes = b""
        self._poll = select.poll()
        self._poll.register(0, select.POLLIN)
        self._ranks: dict[int, int] = {}  # by the file descriptor of the process
        for rank, pid in pids.items():
            fd = os.pidfd_open(pid)
            self._ranks[fd] = rank
            self._poll.register(fd, select.POLLIN)

    def run(self) -> None:
        """Return when all ranks have ended, or one has that was not allowed to."""
        due_s = time.monotonic() + self._interval_s
        while self._ranks:
            wait_s = max(0.0, due_s - time.monotonic()) if self._timeout_s else None
            fds = [fd for fd, _ in self._poll.poll(None if wait_s is None else wait_s * 1e3 + 1)]
            if 0 in fds:
                self._take_commands()
            ended_fds = [fd for fd in fds if fd in self._ranks]
            if ended_fds and not self._may_end:
                self._report_first_exit(sorted(self._ranks[fd] for fd in ended_fds))
                return
            for fd in ended_fds:
                self._poll.unregister(fd)
                self._judge.forget(self._ranks.pop(fd))
            if self._timeout_s and time.monotonic() >= due_s:
                due_s = time.monotonic() + self._interval_s
                hang_reasons = self._judge.look(time.monotonic())
                if hang_reasons:
                    self._end_job(hang_reasons)
                    return

    def _take_commands(self) -> None:
        received_bytes = os.read(0, 65536)
        if not received_bytes:
            self._poll.unregister(0)  # the rank that started this process has ended
        *commands, self._partial_bytes = (self._partial_bytes + received_bytes).split(b"\n")
        for command in commands:
            word, _, file_name = command.partition(b" ")
            if word == b"note":
                self._note_file = Path(os.fsdecode(file_name))
            self._may_end = self._may_end or word == b"ends"

    def _report_first_exit(self, first_ranks: list[int]) -> None:
        late_reasons = {
            rank: reason
            for rank, reason in self._judge.find_late(time.monotonic()).items()
            if rank not in first_ranks
        }
        for rank, reason in late_reasons.items():
            _write_on_stderr(
                f"rank {rank} had stopped before, in phase {self._pages[rank].phase}: {reason}"
            )
        self._write_note(first_ranks, late_reasons)

    def _end_job(self, hang_reasons: dict[int, str]) -> None:
        """Print and note who hangs, then kill the ranks here; the launcher kills the others."""
        phases = {rank: self._pages[rank].phase for rank in hang_reasons}
        for rank, reason in hang_reasons.items():
            _write_on_stderr(
                f"rank {rank} failed in phase {phases[rank]}: {reason}; "
                f"--rank-timeout {self._timeout_s:g}s ends the job"
            )
        # On a thread, with a limit: the file system of the note may be what the ranks hang in.
        note_thread = threading.Thread(
            target=self._write_note, args=(sorted(hang_reasons), hang_reasons), daemon=True
        )
        note_thread.start()
        note_thread.join(NOTE_TIMEOUT_S)
        time.sleep(PASS_ON_S)
        for fd in self._ranks:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)

    def _write_note(self, ranks: list[int], hang_reasons: dict[int, str]) -> None:
        if self._note_file is None:
            return
        record: dict[str, object] = {"kind": "first-exit", "ranks": ranks}
        if hang_reasons:
            record["hung"] = hang_reasons
        # The disk may be full, or the folder removed: then nothing can be noted there.
        with contextlib.suppress(OSError):
            write_whole(self._note_file, (json.dumps(record) + "\n").encode())


def _write_on_stderr(text: str) -> None:
    with contextlib.suppress(OSError):  # stderr may be closed
        os.write(2, f"dejavubench: {text}\n".encode())


def _read_state(pid: int) -> str:
    """Return the state of a process as Linux abbreviates it; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _open_page(pid: int, fd: int) -> LivenessPage | None:
    """Open the memory that a rank shares; None where that is impossible."""
    try:
        page_fd = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return LivenessPage(mmap.mmap(page_fd, LIVENESS_PAGE_NBYTES))
    finally:
        os.close(page_fd)


def main() -> None:
    """Watch the ranks of the command line: ``TIMEOUT WHOLE RANK=PID:FD …``."""
    timeout_text, scope, *rank_arguments = sys.argv[1:]
    timeout_s = float(timeout_text)
    pids: dict[int, int] = {}
    pages: dict[int, LivenessPage] = {}
    for rank_argument in rank_arguments:
        rank, pid, fd = map(int, re.split("[=:]", rank_argument))
        pids[rank] = pid
        page = _open_page(pid, fd)
        if page is not None:
            pages[rank] = page
    try:
        watchdog = Watchdog(pids, pages, timeout_s, scope == "whole")
    except ProcessLookupError:  # the job ended before this process had started
        return
    if timeout_s and (unwatched_ranks := sorted(pids.keys() - pages.keys())):
        numbers = ", ".join(map(str, unwatched_ranks))
        _write_on_stderr(
            f"rank{'s' * (len(unwatched_ranks) > 1)} {numbers} cannot be watched, as no memory can "
            "be shared: a rank that hangs may not end the job"
        )
    print(flush=True)
    os.close(1)
    watchdog.run()
    os._exit(0)  # a clean exit could wait for a file system that does not answer
