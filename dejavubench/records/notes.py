"""Notes: sentences that a reader of a run needs beside its numbers.

Public names: :class:`Note`, :class:`NoteKind`, :data:`Severity`. Nothing is told from the text of
a note; ask for its ``kind`` or its ``severity``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["info", "warning", "error"]
"""``error``: something failed or is missing. ``warning``: read the numbers with care. ``info``: a
fact, or how a number is made."""


@dataclass(frozen=True)
class Note:
    """A sentence beside the numbers of a run.

    Attributes:
        severity: error, warning or info.
        kind: name of the rule that wrote it; docs/reference/notes.md lists all of them.
        text: one sentence or more.
    """

    severity: Severity
    kind: str
    text: str


@dataclass(frozen=True)
class NoteKind:
    """A rule that writes notes. docs/reference/notes.md says what the notes of each kind mean.

    Attributes:
        name: a short noun, unique among all kinds.
    """

    name: str
    severity: Severity

    def note(self, text: str) -> Note:
        """Return a note of this kind."""
        return Note(self.severity, self.name, text)


# Kinds of notes that several packages write.

CHANGED = NoteKind("changed", "warning")
"""A file was changed, lost or added after the run."""

DAMAGED = NoteKind("damaged", "error")
"""A file cannot be read, and is left out."""

IGNORED_FILE = NoteKind("ignored-file", "warning")
"""A file is not named like one of the run's."""
