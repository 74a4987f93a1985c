"""Files that commands write: whole or not at all, in the format that their name says."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dejavubench.analysis.figures import files
from dejavubench.analysis.figures.drawings import make_drawings
from dejavubench.analysis.find_runs import find
from dejavubench.whole_file import write_whole_file
from helpers.cli_calls import call
from helpers.synthetic_runs import point_of, write_run


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("t.csv", "run,point,"),
        ("t.json", "[\n"),
        ("t.md", "## "),
        ("t.CSV", "run,point,"),
        ("t.txt", "synthetic · r"),
    ],
)
def test_the_suffix_says_the_format(tmp_path: Path, name: str, begins: str) -> None:
    folder = write_run(tmp_path / "r", rounds=1)
    assert call("process", folder, "-o", tmp_path / name).exit_code == 0
    assert (tmp_path / name).read_text().startswith(begins)


def test_a_format_that_is_named_wins_over_the_suffix(tmp_path: Path) -> None:
    assert (
        call(
            "process",
            write_run(tmp_path / "r", rounds=1),
            "-o",
            tmp_path / "t.csv",
            "--format",
            "json",
        ).exit_code
        == 0
    )
    assert json.loads((tmp_path / "t.csv").read_text())


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_file_that_outgrows_its_place_is_not_left_torn(
    tmp_path: Path, force: tuple[str, ...]
) -> None:
    """A limit on the size of files stands for a full disk."""
    folder, target = write_run(tmp_path / "r", rounds=1), tmp_path / "out" / "t.csv"
    target.parent.mkdir()
    if force:
        target.write_text("mine")
    code = "import sys; from dejavubench.cli.process import process; process(sys.argv[1:])"
    completed = subprocess.run(
        [sys.executable, "-c", code, str(folder), "-o", str(target), *force],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert completed.returncode == 2
    assert completed.stderr == f"Error: {target}: File too large\n"
    assert {file.name: file.read_text() for file in target.parent.iterdir()} == (
        {"t.csv": "mine"} if force else {}
    )


def test_an_interrupted_write_leaves_no_file(tmp_path: Path, pythons_own_handler: None) -> None:
    def write_and_interrupt() -> None:
        with write_whole_file(tmp_path / "t", overwrite=False) as partial:
            partial.write_text("half")
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        write_and_interrupt()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_another_program_made_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    def write_too_late() -> None:
        with write_whole_file(tmp_path / "t", overwrite=False) as partial:
            partial.write_text("mine")
            (tmp_path / "t").write_text("theirs")

    with pytest.raises(FileExistsError):
        write_too_late()
    assert [file.read_text() for file in tmp_path.iterdir()] == ["theirs"]


def test_files_are_written_on_a_file_system_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse_link)
    with write_whole_file(tmp_path / "t", overwrite=False) as partial:
        partial.write_text("mine")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]


def test_overwriting_keeps_links_and_modes(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    with write_whole_file(tmp_path / "link", overwrite=True) as partial:
        partial.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o640


def test_devices_are_written_to_and_stay_devices(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", rounds=1)
    for force in ((), ("--force",)):
        assert call("process", folder, "-o", "/dev/null", *force).exit_code == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_tables_are_utf_8_whatever_the_terminal_speaks(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", rounds=1, note="a – b")
    code = "import sys; from dejavubench.cli.process import process; process(sys.argv[1:])"
    command = [
        sys.executable,
        "-X",
        "utf8=0",
        "-c",
        code,
        str(folder),
        "-o",
        str(tmp_path / "t.md"),
    ]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    assert subprocess.run(command, env=environment).returncode == 0
    assert "- note: a – b" in (tmp_path / "t.md").read_text(encoding="utf-8")


NOTE = r"A $5 GPU against a $6 one, \frac{1}{2} $\frac$ $$ 50 % of #1 & {x} ~ ^_"


def test_no_text_of_a_figure_is_drawn_as_mathematics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    from matplotlib.mathtext import MathTextParser

    def parse(*_: object, **__: object) -> None:
        pytest.fail("it was drawn as mathematics")

    monkeypatch.setattr(MathTextParser, "parse", parse)
    folder = tmp_path / os.fsdecode(b"$r_{1}$ \xff")  # a name that is no UTF-8
    (drawing,), _ = make_drawings(
        find([write_run(folder, rounds=1, figure="fig25", note=NOTE)]).runs
    )
    files.save(drawing, tmp_path / "out")
    assert sorted(file.suffix for file in (tmp_path / "out").iterdir()) == [".csv", ".pdf", ".png"]


def test_brackets_in_tables_are_printed_as_they_are(tmp_path: Path) -> None:
    text = call(
        "process",
        write_run(
            tmp_path / "r",
            rounds=1,
            points=[point_of(0, model="[/b]"), point_of(1, model="[red]x :smile:")],
        ),
    ).stdout
    assert "[/b]" in text
    assert "[red]x :smile:" in text
