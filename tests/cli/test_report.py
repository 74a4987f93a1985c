"""`dejavubench report`: its file, its messages and its exit statuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dejavubench.analysis.page import render
from dejavubench.records import RUN_FILE, name_rank_file
from helpers.cli_calls import call
from helpers.html_pages import call_report, parse_page, text_of
from helpers.killed_runs import write_killed_run
from helpers.synthetic_runs import AGAIN, NONE, arm_of, point_of, write_run
from helpers.text_logs import original_log


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "logs" / "r")


def text_in(path: Path) -> str:
    return text_of(parse_page(path.read_text(encoding="utf-8")))


def test_a_run_becomes_one_file(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    report_call = call_report(folder, "-o", out)
    assert report_call.exit_code == 0, report_call.output
    assert report_call.stdout == ""
    assert report_call.stderr == f"page: {out}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "page.html"]
    assert "Streaming the KV cache: gpt2 on AMD EPYC" in text_in(out)


def test_a_file_is_overwritten_only_when_asked(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    out.write_text("mine")
    report_call = call_report(folder, "-o", out)
    assert report_call.exit_code == 2
    assert report_call.stderr == f"Error: {out} exists. Use --force to overwrite it\n"
    assert out.read_text() == "mine"
    assert call_report(folder, "-o", out, "--force").exit_code == 0
    assert "<!DOCTYPE html>" in out.read_text()


def test_a_page_that_fails_leaves_no_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "TEMPLATE", "none.html.jinja")
    out = tmp_path / "page.html"
    assert call_report(folder, "-o", out).exit_code != 0
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


@pytest.mark.parametrize("name", ["page.pdf", "page"])
def test_another_suffix_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    report_call = call_report(folder, "-o", tmp_path / name)
    assert report_call.exit_code == 2
    assert "Use a name that ends in .html" in report_call.stderr
    assert not (tmp_path / name).exists()


def test_a_folder_that_does_not_exist_is_named(folder: Path, tmp_path: Path) -> None:
    report_call = call_report(folder, "-o", tmp_path / "no" / "page.html")
    assert report_call.exit_code == 2
    assert f"the folder {tmp_path / 'no'} does not exist" in report_call.stderr


def test_without_a_run_there_is_no_page(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    report_call = call_report(tmp_path, "-o", out)
    assert report_call.exit_code == 2
    assert "holds no run" in report_call.stderr
    assert not out.exists()


def test_a_table_to_compare_with_that_is_not_there_is_refused(folder: Path, tmp_path: Path) -> None:
    report_call = call_report(
        folder, "-o", tmp_path / "page.html", "--against", tmp_path / "none.json"
    )
    assert report_call.exit_code == 2
    assert report_call.stderr.startswith("Error: --against: ")


def test_a_damaged_run_is_left_out_and_named(folder: Path, tmp_path: Path) -> None:
    damaged_folder = write_run(tmp_path / "logs" / "s")
    (damaged_folder / RUN_FILE).write_text("")
    out = tmp_path / "page.html"
    report_call = call_report(tmp_path / "logs", "-o", out)
    assert report_call.exit_code == 1
    by_process = call("process", tmp_path / "logs")
    assert by_process.exit_code == 1
    message = by_process.stderr.strip()
    assert message.startswith(f"left out: {damaged_folder / RUN_FILE}: ")
    assert message in report_call.stderr
    assert message.replace("left", "Left", 1) in text_in(out)


def test_a_killed_run_has_the_words_of_process(tmp_path: Path) -> None:
    folder = write_killed_run(tmp_path / "k", "tokens", "p001", "disk@3")
    out = tmp_path / "page.html"
    report_call = call_report(folder, "-o", out)
    assert report_call.exit_code == 0, report_call.output
    listed = call("process", folder, "--format", "json")
    (document,) = json.loads(listed.stdout)
    errors = [note["text"] for note in document["notes_by_kind"] if note["severity"] == "error"]
    assert any(text.startswith("INCOMPLETE: ") for text in errors)
    page = text_in(out)
    assert all(page.count(" ".join(text.split())) == 2 for text in errors)
    assert all(" ".join(text.split()) in page for text in document["notes"])


def test_a_run_without_a_record_has_a_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r")
    for rank in (0, 1):
        (folder / name_rank_file(rank)).unlink()
    out = tmp_path / "page.html"
    report_call = call_report(folder, "-o", out)
    assert report_call.exit_code == 0, report_call.output
    assert "INCOMPLETE: no rank has written a record" in text_in(out)


def test_a_run_without_a_complete_round_says_what_is_missing_and_the_command(
    tmp_path: Path,
) -> None:
    arms = [NONE, AGAIN, arm_of("mpi")]
    points = [point_of(0), point_of(1, input_len=512)]
    folder = write_run(tmp_path / "r", arms, points, rounds=0, ended=False)
    page_file = tmp_path / "page.html"
    assert call_report(folder, "-o", page_file).exit_code == 0
    answer = text_in(page_file).partition(" Answer ")[2]
    assert answer.startswith(
        "No answer: no arm has a complete measured round at any of 2 points. "
        "Missing: none, none#2, mpi@3. "
        f"To measure what is missing: mpirun -n 2 dejavubench run --continue {folder}"
    )
    listed = call("process", folder)
    assert "No answer: no arm has a complete measured round" in " ".join(listed.stdout.split())


def test_a_text_log_shows_what_process_shows(tmp_path: Path) -> None:
    log = original_log(tmp_path / "log")
    out = tmp_path / "page.html"
    assert call_report(log, "-o", out).exit_code == 0
    page = text_in(out)
    assert "The first 2 samples are dropped as warm-up." in page
    assert "Settings" not in page


def test_a_log_beside_a_run_has_a_section(folder: Path, tmp_path: Path) -> None:
    log = original_log(tmp_path / "log")
    out = tmp_path / "page.html"
    assert call_report(folder, log, "-o", out).exit_code == 0
    assert text_in(out).startswith("2 runs or text logs")


def test_a_page_can_go_to_standard_output(folder: Path) -> None:
    report_call = call_report(folder, "-o", "/dev/stdout")
    assert report_call.exit_code == 0, report_call.output
    assert report_call.stdout.startswith("<!DOCTYPE html>")
