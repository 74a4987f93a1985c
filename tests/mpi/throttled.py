"""A link that is slow in every other iteration, between two emulated hosts; for faulty.py."""

from __future__ import annotations

import subprocess
from typing import Any

from injection import RANK, fault

from dejavubench.bench.recording.recorder import Recorder

RUNS = ("prompt", "tokens", "drain")
"""Phases in which the link is slow."""

BURST = "32kb"
"""Bytes that pass at once. TCP hands larger packets down: a bucket that holds less has the sender
cut each of them in its own call, which is then a part of ``post``."""

QUEUED = "1s"
"""Time that a packet may wait for the bucket before it is dropped. None should be."""


@fault
def throttled_link(interface: str, rate: str) -> None:
    """Let packets leave the source's host at ``rate`` in odd iterations of all arms."""
    if RANK:
        return
    original, slow = Recorder.phase, False

    def phase(self: Recorder, phase: str, **place: Any) -> None:
        nonlocal slow
        wanted = phase in RUNS and place.get("iteration", 0) % 2 == 1
        if wanted != slow:  # before the phase's clock starts
            slow = wanted
            bucket = ("tbf", "rate", rate, "burst", BURST, "latency", QUEUED)
            change = (
                ("replace", "dev", interface, "root", *bucket)
                if slow
                else (*("del", "dev", interface, "root"),)
            )
            subprocess.run(["tc", "qdisc", *change], check=True)
        original(self, phase, **place)

    Recorder.phase = phase  # type: ignore[method-assign]
