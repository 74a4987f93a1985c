"""A load process beside the model in every other iteration of an arm; for faulty.py."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from injection import RANK, fault, replace_call

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
    replace_call(streamer, "start_helper", _on(other_cores))
    load = Load(int(pid))
    original = Recorder.phase

    def phase(self: Recorder, phase: str, **place: Any) -> None:
        original(self, phase, **place)
        if phase == "prompt" and place.get("arm") == arm and place["iteration"] % 2 == 1:
            load.run(place["iteration"])  # before the prompt's clock starts

    Recorder.phase = phase  # type: ignore[method-assign]
    replace_call(PlainSource, "record", load.stopped_before)


def _on(cores: list[int]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Start helper threads on these cores."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def start(name: str, work: Callable[[], None], *args: Any) -> Any:
            def placed() -> None:
                os.sched_setaffinity(0, cores)  # of this thread alone
                work()

            return original(name, placed, *args)

        return start

    return make


class Load:
    """The load process, stopped until it is wanted."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._iteration: int | None = None
        self._since = 0.0
        self._seconds: dict[int, float] = {}

    def run(self, iteration: int) -> None:
        """Let it run in an iteration."""
        self._iteration, self._since = iteration, self._cpu_s()
        os.kill(self._pid, signal.SIGCONT)

    def stopped_before(self, record: Callable[..., Any]) -> Callable[..., Any]:
        """Stop it before the iteration is recorded, and its conditions are read."""

        def recorded(*args: Any) -> Any:
            if self._iteration is not None:
                self._stop(self._iteration)
                self._iteration = None
            return record(*args)

        return recorded

    def _stop(self, iteration: int) -> None:
        os.kill(self._pid, signal.SIGSTOP)
        while self._state() != "T":
            time.sleep(1e-3)
        self._seconds[iteration] = self._cpu_s() - self._since
        Path("load.json").write_text(json.dumps(self._seconds))

    def _fields(self) -> list[str]:
        # The name, in parentheses, may hold spaces.
        return Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()

    def _state(self) -> str:
        return self._fields()[0]

    def _cpu_s(self) -> float:
        user, system = self._fields()[11:13]
        return (int(user) + int(system)) / TICKS_PER_S
