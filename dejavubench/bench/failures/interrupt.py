"""Ctrl-C: what was measured is said at once, then every rank ends.

The launcher interrupts all ranks, or a user interrupts one of them. Rank 0 speaks and ends the job.
The others see to it that rank 0 knows, and end the job themselves if rank 0 cannot.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from dejavubench.bench.failures.abort import describe_error, describe_failure, write_on_stderr
from dejavubench.bench.recording.recorder import Recorder
from dejavubench.bench.startup.hooks import MakeTables
from dejavubench.bench.startup.ranks import Ranks
from dejavubench.errors import ExitStatus
from dejavubench.machine.launcher import abort_job
from dejavubench.records import RankFailure
from dejavubench.records.sessions import continue_command
from dejavubench.watchdog.heartbeat import MAIN_THREAD_TURN_S, set_last_words


@dataclass(frozen=True)
class Patience:
    """Seconds that the ranks of an interrupted run give each other.

    Attributes:
        tables_s: the longest time to make the tables of what was measured.
        tell_s: for rank 0 to be interrupted as well, before another rank interrupts it.
        let_speak_s: for rank 0 to speak, before another rank ends the job.
    """

    tables_s: float = 2.0
    tell_s: float = 0.5
    let_speak_s: float = MAIN_THREAD_TURN_S + 3.0  # its turn, its tables, and a second


PATIENCE = Patience()
"""The times in force."""


class Interruption:
    """The end of a run by Ctrl-C.

    Args:
        describe_measured: returns in words how much was measured.
        make_tables: makes the tables; None: a command is named in their place.
        continues: another session can go on with the run.
    """

    def __init__(
        self,
        ranks: Ranks,
        recorder: Recorder,
        describe_measured: Callable[[], str],
        make_tables: MakeTables | None,
        continues: bool = True,
        patience: Patience = PATIENCE,
    ) -> None:
        self._ranks = ranks
        self._recorder = recorder
        self._describe_measured = describe_measured
        self._make_tables = make_tables
        self._continues = continues
        self._patience = patience
        self._speaking = threading.Lock()
        set_last_words(self.make_last_words)

    def end(self, error: KeyboardInterrupt) -> NoReturn:
        """Print what was measured, and end every rank's process."""
        # Another rank may interrupt this one again. Without others, a second Ctrl-C ends it at
        # once.
        is_alone = self._ranks.world.size == 1
        signal.signal(signal.SIGINT, signal.SIG_DFL if is_alone else signal.SIG_IGN)
        if not self._speaking.acquire(blocking=False):
            # The heartbeat's thread speaks, and ends this process.
            time.sleep(self._patience.let_speak_s)
        recorder = self._recorder
        phase = "end" if recorder.closed else recorder.phase_name
        if not recorder.closed:
            with contextlib.suppress(OSError):  # the words matter more, and say the same
                recorder.write(RankFailure(phase=phase, error=describe_error(error)))
        if self._ranks.rank != 0:
            self._let_rank_0_speak()
        write_on_stderr(
            f"{describe_failure(error, self._ranks.rank, phase)}{self._describe_records()}\n"
        )
        write_on_stderr(f"{self._make_last_lines()}\n")
        abort_job(self._ranks.world, ExitStatus.INTERRUPTED)
        raise SystemExit(ExitStatus.INTERRUPTED)  # not reached; for the type checker

    def make_last_words(self) -> str | None:
        """Return the last words of a rank whose main thread does not return from a call."""
        if not self._speaking.acquire(blocking=False):
            return None
        if self._ranks.rank != 0:
            self._let_rank_0_speak()
        return f"{self._describe_records()}\n{self._make_last_lines()}"

    def _let_rank_0_speak(self) -> None:
        time.sleep(self._patience.tell_s)
        if self._ranks.host == self._ranks.hosts[0]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._ranks.first_pid, signal.SIGINT)
        time.sleep(self._patience.let_speak_s)  # rank 0 ends this process meanwhile

    def _describe_records(self) -> str:
        return f"{self._describe_measured()}\nrecords: {self._recorder.folder}"

    def _make_last_lines(self) -> str:
        """Return the tables, or the command that shows them, and the command that goes on."""
        folder = shlex.quote(str(self._recorder.folder))
        tables = self._make_tables_in_time() or f"tables: dejavubench process {folder}"
        if not self._continues:
            return tables
        command = continue_command(self._recorder.folder, self._ranks.world.size)
        return f"{tables}\nto measure the rest: {command}"

    def _make_tables_in_time(self) -> str | None:
        """Return the tables of what was measured; None if that takes too long, or fails."""
        if self._ranks.rank != 0:
            return None
        tables: list[str] = []

        def make() -> None:
            # Whatever is wrong with records that are cut off, the command says it better.
            with contextlib.suppress(Exception):
                if self._make_tables is not None:
                    tables.append(self._make_tables(self._recorder.folder))

        thread = threading.Thread(target=make, daemon=True)
        thread.start()
        thread.join(self._patience.tables_s)
        return tables[0].rstrip("\n") if tables else None
