"""Doubts about the operands of a comparison: noisy baselines, disturbed or throttled rounds."""

from __future__ import annotations

from dejavubench.analysis.comparison.operands import Operand
from dejavubench.analysis.tables.condition_notes import DISTURBANCES
from dejavubench.analysis.tables.report_part import RunData
from dejavubench.analysis.tables.row_notes import noisy
from dejavubench.records import Note, NoteKind, Run

DOUBT = NoteKind("doubt", "warning")


def doubts(operand: Operand) -> list[Note]:
    """Return the warnings that the report of each run gives of its own conditions.

    Of several runs their number is told, since runs in turns would fill a page with their notes.
    """
    warned = [notes for run in operand.runs if (notes := _warnings(run))]
    if len(operand.runs) == 1:
        return [DOUBT.note(f"{operand.name}: {note.text}") for notes in warned for note in notes]
    kinds = dict.fromkeys(note.kind for notes in warned for note in notes)
    return [
        DOUBT.note(
            f"{operand.name}: {_count(kind, warned)} of {len(operand.runs)} runs are {kind.upper()}"
        )
        for kind in kinds
    ]


def _warnings(run: Run) -> list[Note]:
    data = RunData(run)
    return [*noisy(data), *data.content(DISTURBANCES).notes]


def _count(kind: str, warned: list[list[Note]]) -> int:
    return sum(any(note.kind == kind for note in notes) for notes in warned)
