"""Files of a run that were changed, lost or added after it, as the digests in End records tell.

Records of older programs have no digests, or none of chunks' times and conditions. Then nothing is
said of these files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from dejavubench.records.digest import Digest, digest_of
from dejavubench.records.linefile import numbered_lines
from dejavubench.records.names import RUN_FILE, chunk_file, conditions_file
from dejavubench.records.notes import CHANGED, Note
from dejavubench.records.ranks import End

_CHANGED = "was changed after the run, so its numbers may not be the measured ones"
_ADDED = "was added after the run: the rank did not write it"
_LOST = "was removed after the run, so what it held is not in the report"


def broken_seals(
    folder: Path,
    header: bytes,
    altered: Iterable[str],
    ends: Iterable[tuple[int, End]],
    session: int = 1,
) -> Iterator[Note]:
    """Yield one note for each file that is not as the run has left it.

    Args:
        header: the bytes of ``run.json``.
        altered: names of the ranks' files that do not have the digest of their own End record.
        ends: the End record of each rank that has one.
        session: number of the session that has written the files.

    Raises:
        RecordError: a file is there and cannot be read.
    """
    known = list(ends)
    # Rank 0 alone digests run.json, which no rank file's digest covers.
    if any(end.header_digest not in (None, digest_of(header)) for _, end in known):
        yield _note(RUN_FILE, _CHANGED)
    for name in altered:
        yield _note(name, _CHANGED)
    for rank, end in known:
        if end.file_digests is not None:
            yield from _beside(
                folder,
                (chunk_file(rank, session), conditions_file(rank, session)),
                end.file_digests,
            )


def _beside(folder: Path, names: Iterable[str], digests: dict[str, str]) -> Iterator[Note]:
    """Yield the notes on the files that a rank has written beside its own."""
    for name in names:
        path, digest = folder / name, digests.get(name)
        there = path.exists()
        if there and digest is None:
            yield _note(name, _ADDED)
        elif there and digest != _digest_of_file(path):
            yield _note(name, _CHANGED)
        elif not there and digest is not None:
            yield _note(name, _LOST)


def _note(name: str, change: str) -> Note:
    return CHANGED.note(f"CHANGED: {name} {change}")


def _digest_of_file(path: Path) -> str:
    digest = Digest()
    for _, line in numbered_lines(path):  # one by one: times of many chunks are many megabytes
        digest.add(line)
    return digest.hex()
