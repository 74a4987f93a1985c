"""How A and B were measured relative to each other, which decides what can be told.

- ``rounds``: two arms of one point of one run. Every round has both.
- ``turns``: several runs each, measured in turns: A B A B, or A B B A. Neighbours are a pair.
- ``apart``: one run each, each with rounds of its own.
"""

from __future__ import annotations

from enum import StrEnum

from dejavubench.analysis.comparison.comparable import NotComparableError
from dejavubench.analysis.comparison.operands import Operand


class Pairing(StrEnum):
    """How the measurements of A and B belong together."""

    ROUNDS = "rounds"
    TURNS = "turns"
    APART = "apart"


def choose_pairing(a: Operand, b: Operand) -> Pairing:
    """Return how A and B were measured.

    Raises:
        NotComparableError: both are the same, or several runs were not measured in turns.
    """
    paths_a, paths_b = ({run.path.resolve() for run in operand.runs} for operand in (a, b))
    if paths_a == paths_b:
        return _find_pairing_within_run(a, b)
    if shared_paths := paths_a & paths_b:
        raise NotComparableError(
            f"A and B share {sorted(shared_paths)[0].name}: give each run once"
        )
    if len(a.runs) == len(b.runs) == 1:
        return Pairing.APART
    _require_turns(a, b)
    return Pairing.TURNS


def _find_pairing_within_run(a: Operand, b: Operand) -> Pairing:
    points_a, points_b = ([point.id for point in operand.list_points()] for operand in (a, b))
    arms_a, arms_b = ([arm.name for arm in operand.list_arms()] for operand in (a, b))
    if (points_a, arms_a) == (points_b, arms_b):
        raise NotComparableError(
            "A and B are the same. To compare two arms of a run, name them, as in "
            "FOLDER:mpi@2 FOLDER:mpi@3"
        )
    if len(a.runs) > 1:
        raise NotComparableError(
            f"{a.title}: arms and points are compared within one run. Give its folder"
        )
    points_a, points_b = ([point.id for point in operand.list_points()] for operand in (a, b))
    # Points are measured one after the other, so only one and the same point has paired rounds.
    return Pairing.ROUNDS if points_a == points_b else Pairing.APART


def _require_turns(a: Operand, b: Operand) -> None:
    """Refuse runs that do not alternate: what drifts between them would pass for a change."""
    if len(a.runs) != len(b.runs):
        raise NotComparableError(
            f"A has {len(a.runs)} runs and B has {len(b.runs)}. Give one run each, or as many "
            "of each, measured in turns: A B A B"
        )
    # By their starts, and not as typed: only the clock tells what ran between them.
    order = sorted(
        ((run.header.started_utc, operand.name) for operand in (a, b) for run in operand.runs),
    )
    letters = "".join(operand_name for _, operand_name in order)
    # Neighbours are a pair. A B A B and A B B A pass, A A B B does not.
    for begin in range(0, len(letters), 2):
        if letters[begin] == letters[begin + 1]:
            raise NotComparableError(
                f"the runs were not measured in turns: by their starts they go {letters}, and "
                f"numbers {begin + 1} and {begin + 2} are both of {letters[begin]}. Measure A B A "
                "B, or give one run each"
            )
