"""Files of a run that were changed, lost or added after it, as the digests in End records tell.

Records of older programs have no digests, or none of chunks' times and conditions. Then nothing is
said of these files.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from dejavubench.records.digest import Digest, digest_of
from dejavubench.records.field_types import RecordError
from dejavubench.records.line_file import number_lines
from dejavubench.records.names import RUN_FILE, name_chunk_file, name_conditions_file
from dejavubench.records.notes import CHANGED, Note
from dejavubench.records.ranks import End

_CHANGED_TEXT = "was changed after the run, so its numbers may not be the measured ones"
_ADDED_TEXT = "was added after the run: the rank did not write it"
_LOST_TEXT = "was removed after the run, so what it held is not in the report"


class Seals(NamedTuple):
    """The digests of a session's files, compared with the files.

    Attributes:
        notes: one for each file that is not as the run has left it.
        intact_names: names of the files beside the ranks' own that have their digest.
    """

    notes: list[Note]
    intact_names: frozenset[str]


def compare_seals(
    folder: Path,
    header: bytes,
    altered_names: Iterable[str],
    end_records: Iterable[tuple[int, End]],
    session: int = 1,
) -> Seals:
    """Compare the files of a session with their digests.

    Args:
        header: the bytes of ``run.json``.
        altered_names: names of the ranks' files without the digest of their own End record.
        end_records: the End record of each rank that has one.
        session: number of the session that has written the files.
    """
    end_by_rank = list(end_records)
    notes: list[Note] = []
    intact_names: set[str] = set()
    # Rank 0 alone digests run.json, which no rank file's digest covers.
    if any(end.header_digest not in (None, digest_of(header)) for _, end in end_by_rank):
        notes.append(_note_change(RUN_FILE, _CHANGED_TEXT))
    notes += [_note_change(name, _CHANGED_TEXT) for name in altered_names]
    for rank, end in end_by_rank:
        if end.file_digests is None:
            continue
        for name in (name_chunk_file(rank, session), name_conditions_file(rank, session)):
            change = _find_change(folder / name, end.file_digests.get(name))
            if change is not None:
                notes.append(_note_change(name, change))
            elif name in end.file_digests:
                intact_names.add(name)
    return Seals(notes, frozenset(intact_names))


def _find_change(path: Path, digest: str | None) -> str | None:
    """Return the change of a file that a rank has written beside its own; None without one."""
    if not path.exists():
        return None if digest is None else _LOST_TEXT
    if digest is None:
        return _ADDED_TEXT
    return None if digest == _digest_of_file(path) else _CHANGED_TEXT


def _note_change(name: str, change: str) -> Note:
    return CHANGED.note(f"CHANGED: {name} {change}")


def _digest_of_file(path: Path) -> str | None:
    """Return the digest; None if the file cannot be read, which is then damage to this file."""
    digest = Digest()
    try:
        for _, line in number_lines(path):  # one by one: times of chunks are many megabytes
            digest.add(line)
    except RecordError:
        return None
    return digest.hex()
