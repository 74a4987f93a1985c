"""Files that results go to: their format by suffix, and what is refused before a run."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dejavubench.cli.output import BadInput, style_of
from dejavubench.cli.results import ResultFile
from dejavubench.errors import UsageError
from helpers.cli_calls import call
from helpers.paths import ROOT
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


@pytest.mark.parametrize("stream", ["/dev/null", "/dev/stdout", "/dev/fd/1"])
def test_a_stream_takes_a_table_and_needs_no_force(stream: str) -> None:
    assert style_of(Path(stream)) == "table"
    ResultFile(Path(stream), force=False).check()


def test_dev_stdout_is_standard_output(tmp_path: Path) -> None:
    run_a = write_run(tmp_path / "first")
    run_b = write_run(tmp_path / "second", run_id="2", seed=2)
    for arguments in (("process", run_a), ("compare", run_a, run_b)):
        finished_call = call(*arguments, "-o", "/dev/stdout")
        assert finished_call.exit_code == 0, finished_call.stderr
        assert finished_call.stdout == call(*arguments).stdout != ""


def test_dev_stdout_may_be_redirected_to_a_file(tmp_path: Path) -> None:
    """The file then has the table once, after what it held before."""
    folder = write_run(tmp_path / "r")
    target = tmp_path / "t.md"
    target.write_text("before\n")
    command = [sys.executable, "-m", "dejavubench", "process", str(folder), "-o", "/dev/stdout"]
    with target.open("a") as file:
        subprocess.run([*command, "--format", "markdown"], stdout=file, check=True, cwd=ROOT)
    table = call("process", folder, "--format", "markdown").stdout
    assert target.read_text() == "before\n" + table


@pytest.mark.parametrize(
    "command", ["process FIRST", "compare FIRST SECOND", "report FIRST", "plan --model gpt2"]
)
def test_dev_null_takes_what_a_command_writes(command: str, tmp_path: Path) -> None:
    folders = {
        "FIRST": write_run(tmp_path / "first"),
        "SECOND": write_run(tmp_path / "second", run_id="2", seed=2),
    }
    arguments = [folders.get(word, word) for word in command.split()]
    finished_call = call(*arguments, "-o", os.devnull)
    assert (finished_call.exit_code, finished_call.stdout) == (0, ""), finished_call.stderr


def test_a_folder_as_output_is_refused_as_a_folder(tmp_path: Path) -> None:
    process_call = call("process", write_run(tmp_path / "r"), "-o", tmp_path)
    assert process_call.exit_code == 2
    assert process_call.stderr == f"Error: {tmp_path} is a folder, not a file. Name a file in it\n"


@pytest.mark.parametrize("command", ["process", "compare", "plan", "report", "trace"])
def test_commands_refuse_a_file_that_exists_before_they_read_a_run(
    command: str, tmp_path: Path
) -> None:
    existing = tmp_path / "t.html"
    existing.write_text("mine")
    arguments = {
        "process": ["absent", "--format", "csv"],
        "compare": ["absent", "absent", "--format", "csv"],
        "plan": ["--from", "absent", "--link", "1GB/s", "--format", "csv"],
        "report": ["absent"],
        "trace": ["absent"],
    }[command]
    finished_call = call(command, *arguments, "-o", existing)
    assert finished_call.exit_code == 2
    assert finished_call.stderr == f"Error: {existing} exists. Use --force to overwrite it\n"


def test_process_writes_the_format_of_the_suffix(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r")
    for name in ("t.csv", "t.json", "t.md", "t.txt"):
        assert call("process", folder, "-o", tmp_path / name).exit_code == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text())))
    assert [row["arm"] for row in rows] == ["none", "none#2", "mpi@3"]
    assert len(json.loads((tmp_path / "t.json").read_text())) == 1
    assert (tmp_path / "t.md").read_text().startswith("## synthetic")
    assert (tmp_path / "t.txt").read_text() == call("process", folder).stdout
    process_call = call("process", folder, "-o", tmp_path / "t.dat")
    assert (process_call.exit_code, process_call.stdout) == (2, "")
    assert process_call.stderr.endswith("Or give --format.\n")
    assert call("process", folder, "-o", tmp_path / "t.dat", "--format", "csv").exit_code == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("there.csv", r"there\.csv exists\. Use --force to overwrite it"),
        ("absent/t.csv", r"the folder .*absent does not exist"),
        ("t.xlsx", r"'\.xlsx' is unknown"),
        ("folder.csv", r"folder\.csv is a folder, not a file"),
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
