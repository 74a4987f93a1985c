"""The watchdog judges by heartbeat and progress which rank of a host hangs; no job is started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Set
from pathlib import Path

import pytest

from dejavubench.config.plan import Plan
from dejavubench.config.resolve import load
from dejavubench.dejavulib import progress
from dejavubench.dejavulib.waiting import wait_asleep
from dejavubench.errors import UsageError
from dejavubench.machine import liveness
from dejavubench.machine.liveness import (
    HEARTBEATS,
    LIVENESS_PAGE_NBYTES,
    PATIENT,
    PROGRESS,
    STATE,
    WAITING,
    WORKING,
    LivenessPage,
)
from dejavubench.watchdog.process import HangJudge
from dejavubench.watchdog.starting import RankProcess, WatchdogProcess
from helpers.paths import ROOT
from helpers.waits import until

TIMEOUT = 10.0
"""Seconds without a heartbeat after which a rank hangs; without progress, half as much again."""

LOOK_INTERVAL_S = 1.0
"""Seconds between two looks of the judge."""


class Ranks:
    """Ranks of one host and their judge, by a clock of their own."""

    def __init__(
        self, states: list[int], timeout: float = TIMEOUT, whole: bool = True, process: str = "S"
    ) -> None:
        self.pages = {
            rank: LivenessPage(bytearray(LIVENESS_PAGE_NBYTES)) for rank in range(len(states))
        }
        for rank, state in enumerate(states):
            self.pages[rank].counters[STATE] = state
        self.now = 0.0
        self.processes = dict.fromkeys(self.pages, process)
        self.judge = HangJudge(self.pages, timeout, whole, self.processes.__getitem__, self.now)

    def hanging_within(
        self, seconds: float, heartbeats: Set[int], advancing: Set[int] = frozenset()
    ) -> dict[int, str]:
        """Return the ranks that are found hanging within some seconds, each with the reason.

        Meanwhile the ranks of ``heartbeats`` have heartbeats, those of ``advancing`` make progress.
        """
        deadline = self.now + seconds
        while self.now < deadline:
            self.now += LOOK_INTERVAL_S
            for rank, page in self.pages.items():
                page.counters[HEARTBEATS] += rank in heartbeats
                page.counters[PROGRESS] += rank in advancing
            hanging = self.judge.look(self.now)
            if hanging:
                return hanging
        return {}


def test_a_rank_without_a_heartbeat_is_at_fault_and_ranks_that_wait_for_it_are_not() -> None:
    ranks = Ranks([WORKING, WAITING])
    assert ranks.hanging_within(30, heartbeats={0, 1}, advancing={0, 1}) == {}
    ranks.processes[0] = "T"
    assert ranks.hanging_within(TIMEOUT, heartbeats={1}) == {}
    assert ranks.hanging_within(2, heartbeats={1}) == {
        0: "no heartbeat for 11 s: its process is stopped"
    }


def test_of_ranks_without_a_heartbeat_the_stopped_one_is_at_fault() -> None:
    ranks = Ranks([WORKING, WORKING])  # the other one is leaving MPI, where no Python thread runs
    ranks.processes[1] = "T"
    assert list(ranks.hanging_within(2 * TIMEOUT, heartbeats=set())) == [1]


def test_a_rank_without_progress_is_at_fault_and_its_state_is_the_reason() -> None:
    ranks = Ranks([WAITING, WORKING], process="D")
    assert ranks.hanging_within(1.5 * TIMEOUT, heartbeats={0, 1}) == {}
    expected = "no progress for 16 s: its process waits for a device or a file system"
    assert ranks.hanging_within(2, heartbeats={0, 1}) == {1: expected}


@pytest.mark.parametrize("other", ["progress", "patient"])
def test_ranks_may_wait_without_limit_for_a_rank_that_progresses_or_loads(other: str) -> None:
    ranks = Ranks([WAITING, PATIENT if other == "patient" else WORKING])
    assert (
        ranks.hanging_within(
            100 * TIMEOUT, heartbeats={0, 1}, advancing={1} if other == "progress" else set()
        )
        == {}
    )


def test_a_rank_that_loads_without_a_heartbeat_is_at_fault() -> None:
    assert list(Ranks([WAITING, PATIENT]).hanging_within(2 * TIMEOUT, heartbeats={0})) == [1]


def test_ranks_that_all_wait_for_each_other_are_at_fault_together() -> None:
    hanging = Ranks([WAITING, WAITING]).hanging_within(2 * TIMEOUT, heartbeats={0, 1})
    assert hanging == dict.fromkeys((0, 1), "no progress for 16 s, it waits for other ranks")


def test_ranks_that_wait_for_another_host_are_the_last_to_be_at_fault() -> None:
    ranks = Ranks([WAITING, WAITING], whole=False)
    assert ranks.hanging_within(4 * TIMEOUT, heartbeats={0, 1}) == {}
    assert list(ranks.hanging_within(2, heartbeats={0, 1})) == [0, 1]
    ranks = Ranks([WAITING, WORKING], whole=False)
    assert list(ranks.hanging_within(2 * TIMEOUT, heartbeats={0, 1})) == [1]


def test_time_in_which_the_watchdog_did_not_run_either_does_not_count() -> None:
    ranks = Ranks([WORKING])
    ranks.now += 1000 * TIMEOUT
    assert ranks.hanging_within(TIMEOUT - 2, heartbeats=set()) == {}
    assert list(ranks.hanging_within(5, heartbeats=set())) == [0]


def test_without_a_timeout_no_rank_hangs() -> None:
    ranks = Ranks([WORKING, WAITING], timeout=0.0)
    assert ranks.hanging_within(1000, heartbeats=set()) == {}
    assert ranks.judge.find_late(ranks.now) == {}


def test_a_rank_that_stopped_shortly_before_another_one_failed_is_known() -> None:
    ranks = Ranks([WORKING, WORKING], process="T")
    assert ranks.hanging_within(2, heartbeats={0, 1}) == {}
    assert ranks.hanging_within(4, heartbeats={0}) == {}
    assert ranks.judge.find_late(ranks.now) == {}
    assert ranks.hanging_within(4, heartbeats={0}) == {}
    assert ranks.judge.find_late(ranks.now) == {1: "no heartbeat for 8 s: its process is stopped"}


def test_a_rank_that_has_ended_is_forgotten() -> None:
    ranks = Ranks([WORKING])
    ranks.judge.forget(0)
    assert ranks.hanging_within(10 * TIMEOUT, heartbeats=set()) == {}


def test_the_timeout_is_a_time_or_off_and_changes_no_measurement() -> None:
    def read(timeout: object) -> Plan:
        return load(None, {"device": "cpu", "rank_timeout": timeout}, {})

    assert load(None, {"device": "cpu"}, {}).experiment.rank_timeout == 300.0
    timeouts_s = [read(timeout).experiment.rank_timeout for timeout in ("2s", "10m", 90, "0", 0)]
    assert timeouts_s == [
        2.0,
        600.0,
        90.0,
        0.0,
        0.0,
    ]
    assert read("2s").hash() == read("0").hash() == load(None, {"device": "cpu"}, {}).hash()
    for wrong, reason in (
        ("0.5s", "too short"),
        ("-1", "not a time such as"),
        (True, "not a time such as"),
    ):
        with pytest.raises(UsageError, match=f"--rank-timeout: .*{reason}"):
            read(wrong)


# ---- what a rank shows ----


def test_a_wait_is_shown_as_one_and_its_end_is_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    page = LivenessPage(bytearray(LIVENESS_PAGE_NBYTES))
    monkeypatch.setattr(liveness, "page", page)
    monkeypatch.setattr(progress, "listener", liveness)
    states: list[int] = []

    def test() -> bool:
        states.append(page.counters[STATE])
        return len(states) == 3

    liveness.begin_phase("receive, point p000")
    wait_asleep(test, "something")
    assert states == [WORKING, WAITING, WAITING]
    assert (page.counters[STATE], page.counters[PROGRESS], page.phase) == (
        WORKING,
        2,
        "receive, point p000",
    )
    with liveness.show_state(PATIENT):
        states.clear()
        wait_asleep(test, "somebody who loads")
    assert states == [PATIENT, PATIENT, PATIENT]


def test_another_thread_does_not_change_the_state_that_the_main_thread_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = LivenessPage(bytearray(LIVENESS_PAGE_NBYTES))
    monkeypatch.setattr(liveness, "page", page)
    states = []

    def other() -> None:
        with liveness.show_state(WAITING):
            states.append(page.counters[STATE])

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert states == [WORKING]
    assert page.counters[PROGRESS] == 0


def test_a_phase_of_any_length_is_shown() -> None:
    page = LivenessPage(bytearray(LIVENESS_PAGE_NBYTES))
    page.phase = "prompt"
    assert page.phase == "prompt"
    page.phase = "é" * 1000
    assert 400 < len(page.phase.encode()) < LIVENESS_PAGE_NBYTES


# ---- the process ----

RANK = """
import sys, time
from dejavubench.machine import liveness
from dejavubench.watchdog.heartbeat import end_at_interrupt, start_heartbeat
heartbeat = start_heartbeat("rank 0")
heartbeat.interval_s = 0.1
liveness.begin_phase("load")
print(heartbeat.fd, flush=True)
exec(sys.argv[1])
"""

COMPILES = """
import numba
end = time.monotonic() + 5
while time.monotonic() < end:
    @numba.njit
    def f(a):
        t = 0.0
        for i in range(len(a)):
            for j in range(len(a)):
                t += a[i] * a[j] - (a[i] + 1.0) ** 2.5 if a[i] > a[j] else t * 1.5
        return t
    f.compile("f8(f8[:])")
"""


def start_rank(program: str) -> subprocess.Popen[str]:
    """Start a process that has a heartbeat and runs a program."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RANK, program]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def watch_process(process: subprocess.Popen[str], file: Path, timeout: float) -> WatchdogProcess:
    assert process.stdout is not None
    watchdog = WatchdogProcess(
        {0: RankProcess("here", process.pid, int(process.stdout.readline()))},
        timeout,
        is_whole_job=True,
    )
    watchdog.note_in(file)
    return watchdog


def test_a_stopped_process_is_killed_and_the_reason_is_written_to_the_note(tmp_path: Path) -> None:
    with start_rank("time.sleep(60)") as process:
        watch_process(process, tmp_path / "note.json", 1.0)
        process.send_signal(signal.SIGSTOP)
        assert process.wait(20) == -signal.SIGKILL
    noted = json.loads((tmp_path / "note.json").read_text())
    assert noted == {
        "kind": "first-exit",
        "ranks": [0],
        "hung": {"0": "no heartbeat for 1 s: its process is stopped"},
    }
    assert [file.name for file in tmp_path.iterdir()] == ["note.json"]


@pytest.mark.parametrize("timeout", [300.0, 0.0])
def test_a_rank_whose_heartbeat_cannot_be_read_is_named(
    timeout: float, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with start_rank("time.sleep(60)") as process:
        WatchdogProcess(
            {0: RankProcess("here", process.pid, -1)}, timeout, is_whole_job=True
        ).note_in(tmp_path / "note.json")
        process.kill()
        until((tmp_path / "note.json").exists, "the note")
    words = (
        "dejavubench: rank 0 cannot be watched, as no memory can be shared: "
        "a rank that hangs may not end the job\n"
    )
    assert capfd.readouterr().err == (words if timeout else "")


def test_compiling_does_not_stop_the_heartbeat(tmp_path: Path) -> None:
    with start_rank(
        f"with liveness.show_state(liveness.PATIENT):\n    exec({COMPILES!r})"
    ) as process:
        # Shorter than the compiling, and long enough for a thread of a loaded machine to run.
        watch_process(process, tmp_path / "note.json", 3.0).allow_exits()
        assert process.wait(60) == 0, process.communicate()[1]


def test_a_deadline_ends_a_process_whose_main_thread_is_in_a_call() -> None:
    with start_rank(
        "heartbeat.give_up_at(time.monotonic() + 0.5, 'has waited 0.5 s'); time.sleep(60)"
    ) as process:
        assert process.wait(20) == 1
        assert process.communicate()[1] == "dejavubench: rank 0 has waited 0.5 s\n"
    with start_rank(
        "heartbeat.give_up_at(time.monotonic() + 0.5, 'late')\n"
        "heartbeat.give_up_at(None); time.sleep(1)"
    ) as process:
        assert process.wait(20) == 0


NO_THREAD_RUNS = """
import ctypes
with end_at_interrupt(0.5):
    ctypes.PyDLL(None).{}(2)  # with Python's lock held
"""


def test_a_call_in_which_no_thread_runs_is_ended_by_the_alarm() -> None:
    with start_rank(NO_THREAD_RUNS.format("pause")) as process:
        assert process.wait(20) == -signal.SIGALRM
    with start_rank(NO_THREAD_RUNS.format("abs")) as process:
        assert process.wait(20) == 0


def test_a_job_goes_on_unwatched_if_no_watchdog_can_be_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def cannot_start(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", cannot_start)
    watchdog = WatchdogProcess({0: RankProcess("here", os.getpid(), -1)}, 300.0, is_whole_job=True)
    watchdog.note_in(tmp_path / "note.json")
    watchdog.allow_exits()
    assert capsys.readouterr().err == (
        "dejavubench: the ranks are not watched "
        "(no process can be started: Resource temporarily unavailable): "
        "a rank that hangs will not end the job\n"
    )


def test_a_system_that_cannot_watch_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    WatchdogProcess({}, 300.0, is_whole_job=True).allow_exits()
    assert "the ranks are not watched (this system has no pidfd_open)" in capsys.readouterr().err
