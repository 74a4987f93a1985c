"""Doubts about the operands of a comparison: noisy baselines, disturbed or throttled rounds."""

from __future__ import annotations

from dejavubench.analysis.comparison.operands import Operand
from dejavubench.analysis.tables.conditionnotes import DISTURBANCES
from dejavubench.analysis.tables.reportpart import RunData
from dejavubench.analysis.tables.rownotes import noisy
from dejavubench.records import Note, NoteKind, Run

DOUBT = NoteKind("doubt", "warning")


def doubts(operand: Operand) -> list[Note]:
    """Return the warnings that the report of each run gives of its own conditions.

    Of several runs their number is told, since runs in turns would fill a page with their notes.
    """
    warned = [texts for run in operand.runs if (texts := _warnings(run))]
    if len(operand.runs) == 1:
        return [DOUBT.note(f"{operand.name}: {text}") for texts in warned for text in texts]
    marks = dict.fromkeys(text.partition(":")[0] for texts in warned for text in texts)
    return [
        DOUBT.note(f"{operand.name}: {_count(mark, warned)} of {len(operand.runs)} runs are {mark}")
        for mark in marks
    ]


def _warnings(run: Run) -> list[str]:
    data = RunData(run)
    return [note.text for note in [*noisy(data), *data.content(DISTURBANCES).notes]]


def _count(mark: str, warned: list[list[str]]) -> int:
    return sum(any(text.startswith(f"{mark}:") for text in texts) for texts in warned)
