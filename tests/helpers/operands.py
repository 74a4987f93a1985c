"""For tests of comparisons: made-up runs whose change is known, and comparisons of two operands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dejavubench.analysis.comparison.build import Comparison, compare
from dejavubench.analysis.comparison.metric import Metric
from dejavubench.analysis.comparison.operands import parse_selection, read_operand
from helpers.synthetic_runs import arm_of, write_run

MPI, DISK, HOST = arm_of("mpi"), arm_of("disk"), arm_of("host")
ALL_ARMS = {"none": 1.0, "none#2": 1.0, "mpi@3": 1.0, "disk@3": 1.0}


def write_operand(folder: Path, seed: int, times: float = 1.0, **changes: Any) -> Path:
    """Write a run whose arms all take ``times`` as long, and those of ``factors`` longer still."""
    factors: Mapping[str, float] = changes.pop("factors", {})
    times_of_arms = {name: times * factors.get(name, 1.0) for name in ALL_ARMS}
    return write_run(
        folder, factors=times_of_arms, seed=seed, **({"rounds": 20, "drift": 0.01} | changes)
    )


def compare_runs(
    run_a: Path | str, run_b: Path | str, metric: str = "total", limit: float | None = 0.0
) -> Comparison:
    """Compare two runs, or arms of them: ``folder:arm``."""
    operands = [
        read_operand(name, parse_selection(str(text)))
        for name, text in (("A", run_a), ("B", run_b))
    ]
    return compare(operands[0], operands[1], Metric(metric), limit)
