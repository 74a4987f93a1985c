"""The mpi destination between real ranks: every byte in all layouts and levels."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.jobs import run
from helpers.paths import DRIVERS

WORKER = ("-m", "mpi4py", str(DRIVERS / "stream_worker.py"))


def stream_variants(folder: Path, ranks: int, *variants: str) -> None:
    """Run variants (see the worker) in one job, which checks every byte and counts messages."""
    lines = run(folder, ranks, *variants, driver=WORKER).stdout.splitlines()
    for variant, line in zip(variants, lines, strict=True):
        assert re.fullmatch(re.escape(variant.replace(",", " ")) + r": [1-9]\d* messages", line), (
            lines
        )


@pytest.mark.mpi
def test_every_byte_arrives_from_one_source_at_one_sink(tmp_path: Path) -> None:
    stream_variants(tmp_path, 2, "1,layers,3,3")


@pytest.mark.mpi
def test_data_of_several_ranks_does_not_mix(tmp_path: Path) -> None:
    """Two sources and one sink, or the reverse; stages or tensor ranks; other batch sizes."""
    stream_variants(tmp_path, 3, "2,layers,3,3", "1,layers,2,3", "2,heads,3,2")
