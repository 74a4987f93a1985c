"""A load process beside the model in every other iteration of an arm; for faulty.py."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from injection import RANK, fault, inject

from dejavubench.bench.recording.recorder import Recorder
from dejavubench.bench.scenarios.plain import PlainSource
from dejavubench.dejavulib import streamer

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@fault
def busy_core(pid: str, arm: str) -> None:
    """Let process ``pid`` take its share of the model's core in odd iterations of ``arm``.

    The model's thread has the first granted core, the helper thread and the sink have all others.
    At the end rank 0 writes ``load.json``: the CPU seconds that the process took, by iteration.
    """
    model, *other_cores = sorted(os.sched_getaffinity(0))
    if RANK:
        os.sched_setaffinity(0, other_cores)
        return
    os.sched_setaffinity(0, {model})
    load = Load(int(pid))

    def start_on_other_cores(
        start: Callable[..., Any], name: str, work: Callable[[], None], *args: Any
    ) -> Any:
        def placed() -> None:
            os.sched_setaffinity(0, other_cores)  # of this thread alone
            work()

        return start(name, placed, *args)

    def start_load(_: Recorder, phase: str, **place: Any) -> None:
        if phase == "prompt" and place.get("arm") == arm and place["iteration"] % 2 == 1:
            load.start(place["iteration"])  # before the prompt's clock starts

    inject(streamer, "start_helper", around=start_on_other_cores)
    inject(Recorder, "mark_phase", after=start_load)
    inject(PlainSource, "record", before=lambda *_: load.stop())


class Load:
    """The load process, which is stopped but for the iterations that it disturbs."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._iteration: int | None = None
        self._cpu_s_at_start = 0.0
        self._seconds: dict[int, float] = {}

    def start(self, iteration: int) -> None:
        """Let the process run in an iteration."""
        self._iteration = iteration
        self._cpu_s_at_start = self._cpu_s()
        os.kill(self._pid, signal.SIGCONT)

    def stop(self) -> None:
        """Stop the process if it runs: before the conditions of the iteration are read."""
        if self._iteration is None:
            return
        os.kill(self._pid, signal.SIGSTOP)
        while self._state() != "T":
            time.sleep(1e-3)
        self._seconds[self._iteration] = self._cpu_s() - self._cpu_s_at_start
        self._iteration = None
        Path("load.json").write_text(json.dumps(self._seconds))

    def _fields(self) -> list[str]:
        # The name, in parentheses, may hold spaces.
        return Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()

    def _state(self) -> str:
        return self._fields()[0]

    def _cpu_s(self) -> float:
        user, system = self._fields()[11:13]
        return (int(user) + int(system)) / TICKS_PER_S
