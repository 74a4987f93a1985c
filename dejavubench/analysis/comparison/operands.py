"""A and B of a comparison: what A and B name on the command line, read.

``FOLDER`` is a run's folder, or a folder of runs. ``FOLDER:p001`` takes one point of it,
``FOLDER:mpi@3`` one arm, ``FOLDER:p001:mpi@3`` one arm of one point.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dejavubench.analysis.comparison.comparable import NotComparableError
from dejavubench.analysis.facts.collect_samples import collect
from dejavubench.analysis.facts.samples import PointSamples
from dejavubench.analysis.find_runs import GIVE_A_RUN, run_folders
from dejavubench.analysis.integrity import read_checked
from dejavubench.analysis.tables import ending_part
from dejavubench.records import ArmInfo, PointInfo, RecordError, Run, RunHeader
from dejavubench.records.archives import unpack_advice

POINT_ID = re.compile(r"p[0-9]{3,}")
"""The id of a point, by which an operand names one point of a run."""


@dataclass(frozen=True)
class Selection:
    """One operand as it was typed: a folder, and a point or an arm of it."""

    path: Path
    point_id: str | None = None
    arm_name: str | None = None


@dataclass(frozen=True)
class Operand:
    """One operand of a comparison: runs of equal settings, in the order of their starts.

    Attributes:
        name: ``A`` or ``B``.
        point_id, arm_name: of the point and the arm that were asked for; None takes all.
    """

    name: str
    runs: tuple[Run, ...]
    point_id: str | None = None
    arm_name: str | None = None

    @property
    def header(self) -> RunHeader:
        """The header of the first run; those of the others have the same points and arms."""
        return self.runs[0].header

    @property
    def title(self) -> str:
        """The folders, as far as a line has room for them, and what was selected."""
        first_name = self.runs[0].path.name
        names = (
            first_name if len(self.runs) == 1 else f"{len(self.runs)} runs, the first {first_name}"
        )
        return ":".join(
            [names, *(cell_name for cell_name in (self.point_id, self.arm_name) if cell_name)]
        )

    def list_points(self) -> list[PointInfo]:
        """Return the points that were asked for and could run, with their settings."""
        return [
            point
            for point in map(self.header.with_settings, self.header.points)
            if self.point_id in (None, point.id) and point.skipped is None
        ]

    def list_arms(self) -> list[ArmInfo]:
        """Return the arm that was asked for, or else all that stream."""
        if self.arm_name is not None:
            return [arm for arm in self.header.arms if arm.name == self.arm_name]
        return [arm for arm in self.header.arms if arm.is_streaming]

    @cached_property
    def samples(self) -> tuple[dict[str, PointSamples], ...]:
        """The samples of each run by point."""
        return tuple(collect(run) for run in self.runs)

    def list_complaints(self) -> list[str]:
        """Return one line for each job that did not end well, damaged file, and failed arm."""
        texts = [
            f"{run.path}: {ending_part.make_notes(run)[0].text}"
            for run in self.runs
            if not ending_part.is_complete(run)
        ]
        texts += [
            f"DAMAGED: {reason}" for run in self.runs for reason in run.damaged_files.values()
        ]
        for run, points in zip(self.runs, self.samples, strict=True):
            texts += [
                f"{run.path}: FAILED: point {point.info.id}, arm {arm.info.name}: {reason}"
                for point in points.values()
                for arm in point.arms.values()
                if (reason := arm.why_failed) is not None
            ]
        return texts


def parse_selection(text: str) -> Selection:
    """Read one operand as typed.

    Raises:
        NotComparableError: no such folder, or more names after it than a point and an arm.
    """
    folder = text
    names: list[str] = []
    # A folder's own name may hold a colon, so names are split off only while no folder is there.
    while not Path(folder).exists() and ":" in folder and len(names) < 2:
        folder, _, name = folder.rpartition(":")
        names.append(name)
    if not folder or not Path(folder).exists():
        raise NotComparableError(f"{text} does not exist. {GIVE_A_RUN}")
    if not Path(folder).is_dir():
        advice = unpack_advice(Path(folder))
        raise NotComparableError(advice or f"{folder} is a file. Give the folder of a run")
    points = [name for name in names if POINT_ID.fullmatch(name)]
    arms = [name for name in names if name not in points]
    if len(points) > 1 or len(arms) > 1:
        raise NotComparableError(
            f"{text}: name at most one point and one arm after the folder, as in "
            f"{folder}:p000:{arms[0] if arms else 'ARM'}"
        )
    return Selection(Path(folder), points[0] if points else None, arms[0] if arms else None)


def read_operand(name: str, selection: Selection) -> Operand:
    """Read the runs of one operand.

    Raises:
        NotComparableError: the folder holds no run, or no run of it has the point or the arm.
        RecordError: a run's records are damaged.
    """
    try:
        folders = run_folders(selection.path)
    except RecordError as error:
        raise NotComparableError(str(error)) from None
    runs = sorted(map(read_checked, folders), key=lambda run: (run.header.started_utc, run.path))
    operand = Operand(name, tuple(runs), selection.point_id, selection.arm_name)
    for run in runs:
        _require_known(run, "point", selection.point_id, [point.id for point in run.header.points])
        _require_known(run, "arm", selection.arm_name, [arm.name for arm in run.header.arms])
    return operand


def _require_known(run: Run, noun: str, asked_name: str | None, own_names: list[str]) -> None:
    if asked_name is not None and asked_name not in own_names:
        names_text = ", ".join(own_names) or "none"
        raise NotComparableError(f"{run.path} has no {noun} {asked_name!r}. It has {names_text}")
