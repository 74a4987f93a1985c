"""Files that results go to: their format by suffix, and what is refused before a run."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest

from dejavubench.cli.output import BadInput, style_of
from dejavubench.cli.results import ResultFile
from dejavubench.errors import UsageError
from helpers.cli_calls import call
from helpers.synthetic_runs import write_run


@pytest.mark.parametrize(
    ("name", "style"),
    [
        ("a.csv", "csv"),
        ("a.JSON", "json"),
        ("a.md", "markdown"),
        ("a.b.markdown", "markdown"),
        ("a.txt", "table"),
    ],
)
def test_a_suffix_chooses_the_format(name: str, style: str) -> None:
    assert style_of(Path(name)) == style


@pytest.mark.parametrize("name", ["a.xlsx", "a", ".csv", "a.csv.gz"])
def test_an_unknown_suffix_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match=r"Use \.csv, \.json, \.md, \.markdown or \.txt\.$"):
        style_of(Path(name))


def test_a_device_takes_a_table() -> None:
    assert style_of(Path(os.devnull)) == "table"


def test_process_writes_the_format_of_the_suffix(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r")
    for name in ("t.csv", "t.json", "t.md", "t.txt"):
        assert call("process", folder, "-o", tmp_path / name).exit_code == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text())))
    assert [row["arm"] for row in rows] == ["none", "none#2", "mpi@3"]
    assert len(json.loads((tmp_path / "t.json").read_text())) == 1
    assert (tmp_path / "t.md").read_text().startswith("## synthetic")
    assert (tmp_path / "t.txt").read_text() == call("process", folder).stdout
    result = call("process", folder, "-o", tmp_path / "t.dat")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.endswith("Or give --format.\n")
    assert call("process", folder, "-o", tmp_path / "t.dat", "--format", "csv").exit_code == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("there.csv", r"there\.csv exists\. Use --force to overwrite it"),
        ("absent/t.csv", r"the folder .*absent does not exist"),
        ("t.xlsx", r"'\.xlsx' is unknown"),
        ("folder.csv", r"exists"),
    ],
)
def test_a_run_refuses_a_file_that_it_could_not_write(
    tmp_path: Path, name: str, words: str
) -> None:
    (tmp_path / "there.csv").write_text("mine")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UsageError, match=words):
        ResultFile(tmp_path / name, force=False).check()


def test_with_force_a_run_takes_a_file_but_no_folder(tmp_path: Path) -> None:
    (tmp_path / "there.csv").write_text("mine")
    (tmp_path / "folder.csv").mkdir()
    ResultFile(tmp_path / "there.csv", force=True).check()
    with pytest.raises(UsageError, match="is a folder"):
        ResultFile(tmp_path / "folder.csv", force=True).check()
