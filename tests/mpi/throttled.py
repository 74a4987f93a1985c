"""A link that is slow in every other iteration, between two emulated hosts; for faulty.py."""

from __future__ import annotations

import subprocess
from typing import Any

from injection import RANK, fault, inject

from dejavubench.bench.recording.recorder import Recorder

SLOW_PHASES = ("prompt", "tokens", "drain")
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
    is_slow = False
    bucket = ("tbf", "rate", rate, "burst", BURST, "latency", QUEUED)

    def switch(_: Recorder, phase: str, **place: Any) -> None:
        nonlocal is_slow
        must_be_slow = phase in SLOW_PHASES and place.get("iteration", 0) % 2 == 1
        if must_be_slow != is_slow:
            is_slow = must_be_slow
            action, discipline = ("replace", bucket) if is_slow else ("del", ())
            command = ("tc", "qdisc", action, "dev", interface, "root", *discipline)
            subprocess.run(command, check=True)

    inject(Recorder, "mark_phase", before=switch)  # before the phase's clock starts
