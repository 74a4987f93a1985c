"""Files beside the ranks' own are sealed by End records: times of chunks, and conditions.

CPU; synthetic records, no model runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dejavubench.records import End, name_rank_file, read_run, to_line
from dejavubench.records.line_writer import LineWriter
from helpers.synthetic_runs import write_run

CHUNKS, CONDITIONS = "chunks-0000.jsonl", "conditions-0000.jsonl"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run whose rank 0 has written both files, and rank 1 none."""
    folder = write_run(tmp_path / "r", rounds=2)
    seals: dict[str, str] = {}
    for name in (CHUNKS, CONDITIONS):
        lines = LineWriter(folder / name)
        lines.write('{"kind":"first","value":17}\n')
        lines.write('{"kind":"second","value":18}\n')
        lines.close()
        seals |= lines.seal
    sealed_by(folder, 0, seals)
    sealed_by(folder, 1, {})
    return folder


def sealed_by(folder: Path, rank: int, digests: dict[str, str] | None) -> None:
    """Let a rank's End record, which its own digest does not cover, have these digests."""
    path = folder / name_rank_file(rank)
    *lines, last_line = path.read_text().splitlines(keepends=True)
    end = End.model_validate_json(last_line).model_copy(update={"file_digests": digests})
    path.write_text("".join([*lines, to_line(end)]))


def change_text(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return change


def test_files_as_the_run_has_left_them_need_no_note(folder: Path) -> None:
    assert read_run(folder).notes == []


def test_only_files_as_the_run_has_left_them_are_sealed(folder: Path) -> None:
    assert read_run(folder).sealed_files == {CHUNKS, CONDITIONS}
    change_text(CHUNKS, "17", "71")(folder)
    (folder / CONDITIONS).unlink()
    (folder / CONDITIONS).mkdir()
    assert read_run(folder).sealed_files == set()


def test_other_line_ends_are_no_change(folder: Path) -> None:
    change_text(CHUNKS, "\n", "\r\n")(folder)
    assert read_run(folder).notes == []


@pytest.mark.parametrize(
    ("damage", "name", "words"),
    [
        (change_text(CHUNKS, "17", "71"), CHUNKS, "was changed after the run"),
        (change_text(CONDITIONS, '{"kind":"first","value":17}\n', ""), CONDITIONS, "was changed"),
        (change_text(CHUNKS, "18}\n", '18}\n{"kind":"third"}\n'), CHUNKS, "was changed"),
        (change_text(CHUNKS, "18}\n", "1"), CHUNKS, "was changed"),  # cut off
        (lambda folder: (folder / CHUNKS).unlink(), CHUNKS, "was removed after the run"),
        (
            lambda folder: (folder / "chunks-0001.jsonl").write_text("{}\n"),
            "chunks-0001.jsonl",
            "was added after the run",
        ),
    ],
    ids=["a number changed", "a line lost", "a line added", "cut off", "removed", "a file added"],
)
def test_a_file_that_was_changed_lost_or_added_is_named(
    folder: Path, damage: Callable[[Path], None], name: str, words: str
) -> None:
    damage(folder)
    (note,) = read_run(folder).notes
    assert note.text.startswith(f"CHANGED: {name} {words}")


def test_files_of_older_programs_get_no_note(folder: Path) -> None:
    sealed_by(folder, 0, None)
    change_text(CHUNKS, "17", "71")(folder)
    assert read_run(folder).notes == []


def test_no_run_writes_over_the_file_of_another_one(folder: Path) -> None:
    with pytest.raises(FileExistsError):
        LineWriter(folder / CHUNKS)
