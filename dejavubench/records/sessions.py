"""``run.s2.json`` and so on: a later session, which measures what earlier ones have not.

A session writes files of its own and alters none. Its numbers of iterations and rounds begin
behind all that earlier sessions have begun, so that no two sessions share one.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from dejavubench.records.environment import KeysOf, RunEnvironment
from dejavubench.records.field_types import Count, Model


def continue_command(folder: Path, rank_count: int) -> str:
    """Return the command that measures what a run of ``rank_count`` ranks lacks."""
    mpirun = f"mpirun -n {rank_count} " if rank_count > 1 else ""
    return f"{mpirun}dejavubench run --continue {shlex.quote(str(folder))}"


class PointStart(Model):
    """The task of a session at one point.

    Attributes:
        iteration: number of the first iteration of each arm, a warm-up.
        round: number of the first round.
        rounds: rounds that earlier sessions lack; with a precision the fewest.
        without: arms that failed at the point in an earlier session.
    """

    point: str
    iteration: Count
    round: Count
    rounds: Count
    without: list[str] = Field(default=[])


class SessionHeader(Model):
    """One later session of a run.

    Attributes:
        schema_version: version of the schema that the session's files have.
        session: number of the session; that of ``run.json`` is 1.
        started_utc: time of the start in UTC.
        command: words of the command line.
        starts: points that it is to measure.
        environment: facts about the host, as in ``run.json``.
        rounds: rounds that these points shall have in all sessions together, if more were asked for
            than before; else None.
    """

    schema_version: int
    run_id: str
    session: Annotated[int, Field(ge=2)]
    started_utc: str
    command: list[str]
    starts: list[PointStart]
    environment: Annotated[dict[str, Any], KeysOf(RunEnvironment)]
    rounds: Count | None = None

    def start_of(self, point_id: str) -> PointStart | None:
        """Return the task at a point; None if the session leaves the point out."""
        return next((start for start in self.starts if start.point == point_id), None)
