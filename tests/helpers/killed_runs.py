"""For tests of restarts and reports: records of runs that were killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dejavubench.config.experiment import Experiment
from dejavubench.records import PhaseMark, name_rank_file, to_line
from helpers.synthetic_runs import NONE, arm_of, point_of, write_run

EXPERIMENT = Experiment(
    model=("gpt2", "gpt2-xl"), streaming=("none", "disk"), level=("0", "3"), keep=True
)


def write_killed_run(
    folder: Path, phase: str, point_id: str | None, arm_name: str | None, **values: Any
) -> Path:
    """Write a run of two points and three arms whose rank 0 last marked a phase."""
    experiment = {**EXPERIMENT.model_dump(mode="json"), **values}
    points = [point_of(), point_of(1, model="gpt2-xl", output_len=7, positions=262)]
    arms = [NONE, arm_of("disk", "0"), arm_of("disk")]
    write_run(folder, arms, points, ended=False, experiment=experiment)
    with (folder / name_rank_file(0)).open("a") as file:
        file.write(to_line(PhaseMark(phase=phase, point=point_id, arm=arm_name, iteration=3)))
    return folder
