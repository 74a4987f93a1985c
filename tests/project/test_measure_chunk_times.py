"""contrib/measure_chunk_times.py: which iterations it pairs. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dejavubench.records import Iteration, Run
from helpers.paths import CONTRIB


@pytest.fixture(autouse=True)
def contrib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CONTRIB))


@dataclass
class Recorded:
    """A run of one arm; ``totals``: TOTAL of each iteration in ms, warm-up included."""

    totals: list[float]
    path: Path = Path("nowhere")
    header: Any = field(default_factory=lambda: SimpleNamespace(warmup=2))

    def records_of(self, kind: type[Iteration]) -> Iterator[tuple[int, Iteration]]:
        for number, total in enumerate(self.totals):
            yield (
                0,
                kind(
                    point="p000",
                    arm="mpi@3",
                    iteration=number,
                    round=None,
                    order=0,
                    total_ms=total,
                ),
            )


def test_neighbours_are_paired_with_on_above(monkeypatch: pytest.MonkeyPatch) -> None:
    import measure_chunk_times as script

    timed = [
        SimpleNamespace(arm="mpi@3", iteration=number)
        for number in range(8)
        if number % 4 in (0, 3)
    ]
    listed = SimpleNamespace(chunks=[None] * 5, more=1)
    monkeypatch.setattr(
        script, "read_chunk_times", lambda path: ((0, listed, times) for times in timed)
    )
    # Two iterations of warm-up, then times: off, on, on, off, off, on.
    run = Recorded([9.0, 9.0, 2.0, 3.0, 8.0, 4.0, 5.0, 10.0])
    ((arm, ratios, total, chunks),) = script.pairs(cast(Run, run))
    assert (arm, ratios, chunks) == ("mpi@3", [1.5, 2.0, 2.0], 6)
    assert total == 6.5


def test_what_is_done_for_a_timed_chunk_takes_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import measure_chunk_times as script

    monkeypatch.setattr(script, "CHUNKS", 2_000)
    assert script.nanoseconds_per_chunk() > 0
