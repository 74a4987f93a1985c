"""The mpi destination between real ranks: every byte, all layouts and levels, sources that must not mix."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from jobs import run

WORKER = ("-m", "mpi4py", str(Path(__file__).parent / "mpi" / "stream_worker.py"))


@pytest.mark.mpi
def test_one_source_and_one_sink(tmp_path: Path) -> None:
    assert moved(tmp_path, 2, "1,layers,3,3") > 0


@pytest.mark.mpi
def test_data_of_several_ranks_does_not_mix(tmp_path: Path) -> None:
    """Two sources and one sink, one source and two sinks; stages or tensor ranks; other microbatch sizes."""
    variants = ["2,layers,3,3", "1,layers,2,3", "2,heads,3,2"]
    assert moved(tmp_path, 3, *variants) > 0


def moved(folder: Path, ranks: int, *variants: str) -> int:
    """Messages that all variants moved together; each says what it has done."""
    said = run(folder, ranks, *variants, driver=WORKER).stdout.splitlines()
    counts = [
        re.fullmatch(re.escape(each.replace(",", " ")) + r": (\d+) messages", line)
        for each, line in zip(variants, said, strict=True)
    ]
    assert all(counts), said
    return min(int(count[1]) for count in counts if count)
