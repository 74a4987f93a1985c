"""DéjàVu's text lines and the averages of the paper's two scripts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dejavubench.analysis.numbers.averages import format_prompt_token_average, format_total_average
from dejavubench.records import (
    format_all_token_line,
    format_prompt_line,
    format_token_line,
    format_total_line,
)
from dejavubench.records.text_log import TextLogError, read_log
from helpers.paths import SCRIPTS
from helpers.text_logs import original_log


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPTS / script), *arguments], capture_output=True, text=True
    )


def test_prompt_token_script_prints_what_the_original_prints(tmp_path: Path) -> None:
    completed = run("process_prompt_token_times.py", str(original_log(tmp_path / "log")))
    assert (completed.returncode, completed.stderr) == (0, "")
    assert completed.stdout == "AVERAGE PROMPT: 11.5 ms, AVERAGE TOKEN: 1.5 ms\n"


def test_total_script_prints_what_the_original_prints(tmp_path: Path) -> None:
    completed = run("process_total_times.py", str(original_log(tmp_path / "log")))
    assert (completed.returncode, completed.stderr) == (0, "")
    assert completed.stdout == (
        "[1000.0, 2000.0, 3000.0, 4000.0]\n"
        "AVERAGE TIME FOR THE WHOLE BATCH (PROMPT PROCESSING AND TOKEN GENERATION): 3500.0 ms\n"
    )


def test_the_token_average_is_a_mean_of_means(tmp_path: Path) -> None:
    lines = []
    for number, steps in enumerate(([9, 9, 1.0], [9, 9, 2.0, 4.0, 6.0], [9, 9, 10.0])):
        lines += [
            format_prompt_line(rank=0, microbatch=number, ms=7.0),
            *(format_token_line(rank=0, iteration=number, ms=step) for step in steps),
        ]
        lines += [
            format_all_token_line(rank=0, iteration=number, ms=1.0),
            format_total_line(rank=0, iteration=number, ms=1.0),
        ]
    (tmp_path / "log").write_text("\n".join(lines))
    assert (
        format_prompt_token_average(read_log(tmp_path / "log"))
        == "AVERAGE PROMPT: 7.0 ms, AVERAGE TOKEN: 5.0 ms"
    )


@pytest.mark.parametrize("script", ["process_prompt_token_times.py", "process_total_times.py"])
def test_a_script_prints_its_usage_on_request(script: str) -> None:
    completed = run(script, "--help")
    assert (completed.returncode, completed.stdout, completed.stderr) == (
        0,
        f"usage: {script} LOG\n",
        "",
    )


@pytest.mark.parametrize("script", ["process_prompt_token_times.py", "process_total_times.py"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("", "is empty"),
        ("hello\n", "holds no line"),
        (
            "[BENCHMARK] RANK 0 Microbatch 0, PROMPT processing took fast ms\n",
            "log:1: 'fast' is not a time",
        ),
    ],
)
def test_a_log_that_cannot_be_used_is_one_message_and_exit_2(
    tmp_path: Path, script: str, content: str | None, message: str
) -> None:
    log = tmp_path / "log"
    if content is not None:
        log.write_text(content)
    completed = run(script, str(log))
    assert completed.returncode == 2
    assert completed.stdout == ""
    assert message in completed.stderr
    assert len(completed.stderr.splitlines()) == 1


@pytest.mark.parametrize("script", ["process_prompt_token_times.py", "process_total_times.py"])
def test_a_script_without_a_log_prints_its_usage_and_fails(script: str) -> None:
    completed = run(script)
    assert (completed.returncode, completed.stderr) == (2, f"usage: {script} LOG\n")


def test_a_log_that_is_too_short_names_the_lines_it_lacks(tmp_path: Path) -> None:
    short_log = original_log(tmp_path / "two", iterations=2)
    with pytest.raises(TextLogError, match=r"too short: 2 TOTAL lines of RANK 0, .* at least 3"):
        format_total_average(read_log(short_log))
    with pytest.raises(TextLogError, match=r"too short: 2 PROMPT lines of RANK 0, .* at least 3"):
        format_prompt_token_average(read_log(short_log))
    with pytest.raises(TextLogError, match=r"too short: iteration 0 has 2 TOKEN lines of RANK 0"):
        format_prompt_token_average(read_log(original_log(tmp_path / "steps", tokens=2)))
    (tmp_path / "cut").write_text(
        "\n".join(format_prompt_line(rank=0, microbatch=number, ms=1.0) for number in range(3))
    )
    with pytest.raises(TextLogError, match="no ALL-TOKEN line"):
        format_prompt_token_average(read_log(tmp_path / "cut"))


def test_the_times_of_every_rank_are_read(tmp_path: Path) -> None:
    ranks = read_log(original_log(tmp_path / "log")).ranks
    assert sorted(ranks) == [0, 1]
    assert ranks[1].prompts == [101.0, 51.0, 12.0, 13.0]
    assert ranks[1].tokens == [[31.0, 21.0, 2.0, 3.0]] * 4
    assert ranks[0].totals == [1000.0, 2000.0, 3000.0, 4000.0]


def test_tokens_of_microbatches_in_flight_stay_apart(tmp_path: Path) -> None:
    lines = [
        format_token_line(rank=0, iteration=0, ms=1.0),
        format_token_line(rank=0, iteration=1, ms=5.0),
        format_token_line(rank=0, iteration=0, ms=2.0),
        format_token_line(rank=0, iteration=1, ms=6.0),
    ]
    lines += [
        format_all_token_line(rank=0, iteration=0, ms=3.0),
        format_all_token_line(rank=0, iteration=1, ms=11.0),
    ]
    (tmp_path / "log").write_text("\n".join(lines))
    assert read_log(tmp_path / "log").ranks[0].tokens == [[1.0, 2.0], [5.0, 6.0]]


def test_a_total_that_is_less_than_its_parts_is_noted(tmp_path: Path) -> None:
    """Only a sum shows that a digit was lost: these microbatches do not overlap."""
    lines = []
    for number in range(3):
        lines += [
            format_prompt_line(rank=0, microbatch=number, ms=40.0),
            format_token_line(rank=0, iteration=number, ms=2.0),
            format_all_token_line(rank=0, iteration=number, ms=2.0),
        ]
        lines.append(format_total_line(rank=0, iteration=number, ms=42.0))
    (tmp_path / "log").write_text("\n".join(lines))
    assert read_log(tmp_path / "log").notes() == []
    lines[7] = format_total_line(rank=0, iteration=1, ms=4.2)
    (tmp_path / "log").write_text("\n".join(lines))
    (note,) = read_log(tmp_path / "log").notes()
    assert "RANK 0: TOTAL of iteration 1 is less than PROMPT and ALL-TOKEN together" in note
