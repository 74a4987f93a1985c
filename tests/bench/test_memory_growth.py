"""A long sweep needs no more memory than a short one."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.jobs import TINY, Job, args
from helpers.paths import DRIVERS

DRIVER = DRIVERS / "growth.py"
POINTS = 160
WARM_UP_POINTS = 40
"""Points until all caches are full: 64 products, and each prompt length needs four or more."""

ALLOWED_KIB = 30 << 10
"""Over the other 120 points; with torch's own bounds on its caches it was 260 MiB."""

JOB_TIMEOUT_S = 500.0
"""Seconds, on a loaded machine; not a measurement."""


@pytest.mark.drill
@pytest.mark.mpi
def test_a_sweep_of_many_prompt_lengths_stays_flat(tmp_path: Path) -> None:
    """In bf16 on one thread, each length once: it grew only where torch multiplies by oneDNN."""
    lengths = ",".join(str(length) for length in range(12, 12 + POINTS))
    sizes = tmp_path / "memory"
    shape = (
        *TINY,
        *args("--threads 1 --inference-data-type bf16 --output-len 3"),
        "--input-len",
        lengths,
    )
    one_round = args("--rounds 1 --warmup 0 --no-ceilings --streaming host")
    with Job(
        tmp_path, 1, "run", *shape, *one_round, driver=(str(DRIVER), str(sizes)), cold=True
    ) as job:
        assert job.wait(JOB_TIMEOUT_S) == 0, job.stderr[-4000:]
    # The first value is from before any point.
    kib = [int(line) for line in sizes.read_text().splitlines()][-POINTS:]
    assert len(kib) == POINTS
    assert kib[-1] - kib[WARM_UP_POINTS] < ALLOWED_KIB, f"KiB every tenth point: {kib[::10]}"
