"""Doubts about the operands of a comparison: noisy baselines, disturbed or throttled rounds."""

from __future__ import annotations

from collections import Counter

from dejavubench.analysis.comparison.operands import Operand
from dejavubench.analysis.notes.condition_notes import DISTURBED, THROTTLED
from dejavubench.analysis.notes.noise_notes import NOISE, NOISY, NOISY_PCT
from dejavubench.analysis.tables.report_part import RunData
from dejavubench.records import Note, NoteKind

DOUBT = NoteKind("doubt", "warning")
"""Kind of the notes on differences that may explain a change."""

TEXTS_OF_SEVERAL_RUNS = {
    NOISY.name: f"two identical baselines differ by more than {NOISY_PCT:g} %",
    DISTURBED.name: "others took CPU time in some rounds",
    THROTTLED.name: "limits held a GPU's clock down in some rounds",
}
"""Words for several runs, by the kind of their warning."""


def find_noise_warning(operand: Operand) -> list[Note]:
    """Return the line on noise of an operand's own report, if it warns.

    Of several runs the number with each warning is told: runs in turns would fill a page.
    """
    contents = [RunData(run).content(NOISE) for run in operand.runs]
    warning_kinds = [
        {note.kind for note in content.notes if note.severity == "warning"} for content in contents
    ]
    if len(contents) == 1:
        lines = NOISE.note_lines(contents[0]) if warning_kinds[0] else []
        return [DOUBT.note(f"{operand.name}: {line.text}") for line in lines]
    warning_counts = Counter(kind for kinds in warning_kinds for kind in sorted(kinds))
    return [
        DOUBT.note(f"{operand.name}: in {warning_counts[kind]} of {len(contents)} runs {text}")
        for kind, text in TEXTS_OF_SEVERAL_RUNS.items()
        if warning_counts[kind]
    ]
