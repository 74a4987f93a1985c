"""Text logs as launchers, terminals and other programs leave them."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from dejavubench.analysis.numbers.averages import format_prompt_token_average, format_total_average
from dejavubench.records import (
    format_all_token_line,
    format_prompt_line,
    format_token_line,
    format_total_line,
)
from dejavubench.records.text_log import TextLogError, read_log
from helpers.cli_calls import call
from helpers.paths import SCRIPTS


def lines_of_rank(rank: int, iterations: int = 4) -> list[str]:
    lines = []
    for number in range(iterations):
        lines.append(format_prompt_line(rank=rank, microbatch=0, ms=100.0 + number + rank))
        lines += [
            format_token_line(rank=rank, iteration=0, ms=10.0 + step + number / 10 + rank)
            for step in range(4)
        ]
        lines += [
            format_all_token_line(rank=rank, iteration=0, ms=50.0),
            format_total_line(rank, number, 150.0 + number + rank),
        ]
    return lines


CLEAN = "\n".join(lines_of_rank(0)) + "\n"
AVERAGES = (
    "AVERAGE PROMPT: 102.5 ms, AVERAGE TOKEN: 12.649999999999999 ms",
    "[150.0, 151.0, 152.0, 153.0]\nAVERAGE",
)


def read_averages(path: Path) -> tuple[str, str]:
    log = read_log(path)
    return format_prompt_token_average(log), format_total_average(log)


def read_row(result: Result, rank: int = 0) -> tuple[str, str, str]:
    fields = list(csv.DictReader(io.StringIO(result.stdout)))[rank]
    return fields["prompt_ms"], fields["token_ms"], fields["total_ms"]


def glue_lines(_: str) -> str:
    """Ranks take turns; now and then one's line end is late."""
    pairs = [line for pair in zip(lines_of_rank(0), lines_of_rank(1), strict=True) for line in pair]
    return "".join(line + ("" if number % 6 == 4 else "\n") for number, line in enumerate(pairs))


WAYS: dict[str, Callable[[str], str | bytes]] = {
    "tags": lambda text: re.sub("^", "[1,0]<stdout>: ", text, flags=re.MULTILINE),
    "numbers": lambda text: re.sub("^", "0: ", text, flags=re.MULTILINE),
    "times": lambda text: re.sub(
        "^", "2025-01-02T03:04:05.678Z stdout F ", text, flags=re.MULTILINE
    ),
    "carriage returns": lambda text: text.replace("\n", "\r\n"),
    "colours": lambda text: re.sub(r"(\S+) ms", "\x1b[1m\x1b[38;5;9m\\1\x1b[0m ms\x1b[0m", text),
    "a title": lambda text: text.replace("RANK", "\x1b]0;window\x07RANK"),
    "tabs": lambda text: text.replace(" ", "\t"),
    "no-break spaces": lambda text: text.replace(" ", "\u00a0"),
    "double blanks": lambda text: text.replace(" ", "  "),
    "more behind": lambda text: text.replace(
        " ms\n", " ms | vm:12:34 [0] NCCL INFO comm 0x55 rank 0\n"
    ),
    "glued to other output": lambda text: text.replace(
        " ms\n", " msvm:12:34 [0] NCCL INFO Channel 00/02 : 0 1\n"
    ),
    "NCCL's lines between": lambda text: text.replace(
        "\n", "\nvm:12:34 [0] NCCL INFO Connected all rings\n"
    ),
    "no line ends": lambda text: text.replace("\n", ""),
    "two ranks glued": glue_lines,
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16 without a mark": lambda text: text.encode("utf-16-be"),
    "UTF-32": lambda text: text.encode("utf-32"),
    "UTF-8 with a mark": lambda text: text.encode("utf-8-sig"),
    "UTF-16 appended to ASCII": lambda text: text[:700].encode() + text[700:].encode("utf-16-le"),
    "zero bytes of a crash": lambda text: text.encode().replace(b"\n", b"\n\0\0\0", 3),
    "no UTF-8": lambda text: text.encode().replace(b"\n", b" \xff\xe9\n"),
    "gzip": lambda text: gzip.compress(text.encode(), mtime=0),
    "bzip2": lambda text: bz2.compress(text.encode()),
    "xz": lambda text: lzma.compress(text.encode("utf-16")),
}


@pytest.mark.parametrize("way", WAYS)
def test_records_are_found_whatever_is_around_them(tmp_path: Path, way: str) -> None:
    log, content = tmp_path / "log", WAYS[way](CLEAN)
    log.write_bytes(content if isinstance(content, bytes) else content.encode())
    prompt_token, total = read_averages(log)
    assert prompt_token == AVERAGES[0]
    assert total.startswith(AVERAGES[1])
    assert read_log(log).notes() == []
    assert read_row(call("process", log, "--format", "csv")) == ("102.5", "12.75", "152.5")


def test_the_other_rank_of_a_glued_log_is_found_as_well(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(glue_lines(""))
    assert read_row(call("process", tmp_path / "log", "--format", "csv"), rank=1) == (
        "103.5",
        "13.75",
        "153.5",
    )


GLUED_LINE = format_token_line(rank=1, iteration=0, ms=77.0)
FOURTH = CLEAN.splitlines()[3]  # the third TOKEN line of rank 0

TORN: dict[str, str] = {
    "by another line": f"{FOURTH[:40]}{GLUED_LINE}\n{FOURTH[40:]}",
    "within its mark": f"{FOURTH[:6]}{GLUED_LINE}\n{FOURTH[6:]}",
    "within its number": f"{FOURTH[:61]}{GLUED_LINE}\n{FOURTH[61:]}",
    "by a line end": f"{FOURTH[:50]}\n{FOURTH[50:]}",
    "without a value": FOURTH.replace("12.000000", ""),
    "and never written on": FOURTH[:50],
}


@pytest.mark.parametrize("place_of_tear", TORN)
def test_torn_records_are_counted(tmp_path: Path, place_of_tear: str) -> None:
    log = tmp_path / "log"
    log.write_text(CLEAN.replace(FOURTH, TORN[place_of_tear], 1))
    notes = read_log(log).notes()
    assert any(
        note.startswith("LOST: 1 [BENCHMARK] record, torn or empty, the first in line ")
        for note in notes
    ), notes
    assert "LOST: RANK 0: its iterations have 3 to 4 TOKEN lines; some may be missing" in notes
    text = " ".join(call("process", log).stdout.split())
    assert "LOST: 1 [BENCHMARK] record" in text
    for script in ("process_prompt_token_times.py", "process_total_times.py")[
        : 2 if place_of_tear == "by another line" else 0
    ]:
        completed = subprocess.run(
            [sys.executable, SCRIPTS / script, log], capture_output=True, text=True
        )
        assert completed.returncode == 0
        assert completed.stdout.startswith(("AVERAGE PROMPT: 102.5 ms", "[150.0, "))
        assert "LOST: 1 [BENCHMARK] record" in completed.stderr


@pytest.mark.parametrize(
    ("line", "note"),
    [
        (0, "3 PROMPT lines, 4 ALL-TOKEN lines and 4 TOTAL lines do not belong together"),
        (2, "its iterations have 3 to 4 TOKEN lines"),
        (5, "4 TOKEN lines ignored, since no ALL-TOKEN line follows"),
        (6, "its TOTAL lines are not those of iterations 0, 1, 2 …"),
    ],
)
def test_lines_that_are_gone_without_a_trace_are_missed(
    tmp_path: Path, line: int, note: str
) -> None:
    lines = CLEAN.splitlines(keepends=True)
    (tmp_path / "log").write_text("".join(lines[:line] + lines[line + 1 :]))
    assert any(note in text for text in read_log(tmp_path / "log").notes())


def test_several_logs_in_one_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(CLEAN + CLEAN)
    assert any(
        "or the file holds several logs" in note for note in read_log(tmp_path / "log").notes()
    )


@pytest.mark.parametrize(
    "value",
    ["nan", "-nan", "inf", "Infinity", "-5.0", "+5.0", "1_000", "1,5", "0x1p3", "1e999", "٣", "--"],
)
@pytest.mark.parametrize("line", [4, 21])
def test_a_malformed_time_is_refused_with_file_and_line(
    tmp_path: Path, value: str, line: int
) -> None:
    lines = CLEAN.splitlines()
    lines[line - 1] = re.sub(r"\S+ ms", f"{value} ms", lines[line - 1])
    log = tmp_path / "log"
    log.write_text("\n".join(lines))
    with pytest.raises(
        TextLogError, match=re.escape(f"{log}:{line}: {value!r} is not a time in ms")
    ):
        read_log(log)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(CLEAN.encode(), mtime=0)[:-20], "is cut off: its compressed data end early"),
        (b"\x1f\x8b" + b"nothing of the kind", "log"),
        (b"\x28\xb5\x2f\xfd....", "is compressed with zstd"),
        (b"PK\x03\x04....", "is a zip archive"),
        (b"\0" * 5000, "is empty"),
        (
            b"[BENCHMARK] RANK 0 ITERATION 0, TOKEN gen",
            "holds no line .*; 1 piece of such lines, from line 1 on",
        ),
    ],
    ids=["cut gzip", "damaged gzip", "zstd", "zip", "zeros", "piece of a line"],
)
def test_a_file_without_times_is_refused_in_one_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "log").write_bytes(content)
    process_call = call("process", tmp_path / "log")
    assert process_call.exit_code == 2
    assert len(process_call.stderr.splitlines()) == 1
    assert re.search(message, process_call.stderr)


def test_good_logs_are_shown_beside_bad_ones(tmp_path: Path) -> None:
    (tmp_path / "good").write_text(CLEAN)
    (tmp_path / "bad").write_text(CLEAN.replace("12.000000", "nan"))
    process_call = call("process", tmp_path / "good", tmp_path / "bad", "--format", "csv")
    assert process_call.exit_code == 1
    assert read_row(process_call) == ("102.5", "12.75", "152.5")
    assert f"left out: {tmp_path / 'bad'}:4: 'nan' is not a time in ms" in process_call.stderr


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    code = "import sys; from dejavubench.cli.process import process; process(sys.argv[1:])"
    completed = subprocess.run(
        [sys.executable, "-c", code, "/dev/stdin"], input=CLEAN, capture_output=True, text=True
    )
    assert completed.returncode == 0, completed.stderr
    assert "152.5" in completed.stdout
