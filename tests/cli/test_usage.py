"""Usage errors under a real mpirun: one message from one rank, status 2, nothing left."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from helpers.jobs import QUICK, TINY, args, run, small_disk

pytestmark = pytest.mark.mpi


def error_of_job(cwd: Path, ranks: int, *flags: object) -> str:
    """The one line that a refused job prints, from one rank."""
    job = run(cwd, ranks, "run", *flags, status=2)
    assert job.stdout == ""
    assert job.stderr.count("\n") == 1, job.stderr
    assert job.stderr.startswith("Error: ")
    assert not (cwd / "logs").exists()
    return job.stderr


@pytest.mark.parametrize(
    ("ranks", "flags", "words"),
    [
        (
            3,
            ["--streaming", "mpi"],
            ["mpi needs 2 ranks here (1 source, and 1 sink)", "3 were", "-n 2"],
        ),
        (
            3,
            ["--streaming", "none"],
            ["needs 1 or 2 ranks (1 source, with or without", "3 were", "-n 1"],
        ),
        (3, ["--tensor-para-size", 3], ["--tensor-para-size 3", "4 heads"]),
        (
            2,
            args("--max-seq-len 16 --input-len 14 --output-len 8"),
            ["--max-seq-len 16", "21 positions"],
        ),
        (2, ["--streaming", "nccl"], ["nccl", "CUDA"]),
        (2, ["--device", "cuda"], ["--device cuda"]),
    ],
    ids=lambda value: (
        "-".join(map(str, value))
        if isinstance(value, Sequence) and str(value[0])[:2] == "--"
        else ""
    ),
)
def test_a_usage_error_names_the_option_and_what_to_do(
    tmp_path: Path, ranks: int, flags: Sequence[object], words: list[str]
) -> None:
    message = error_of_job(tmp_path, ranks, *TINY, *flags)
    assert [word for word in words if word not in message] == []


def test_bad_toml_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("input_len = 4\nouput_len = 8\n")
    message = error_of_job(tmp_path, 2, "bad.toml")
    words = ("bad.toml", "ouput_len", "output_len")
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize("option", ["--log-dir", "--stream-dir"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, option: str) -> None:
    (tmp_path / "file").touch()
    message = error_of_job(tmp_path, 2, *QUICK, "--streaming", "disk", option, "file/below")
    assert "file" in message
    assert "Not a directory" in message


def test_a_disk_without_room_for_the_stream_is_refused(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 256 << 10):
        flags = args("--streaming disk --stream-dir small --input-len 2000 --no-ceilings")
        message = error_of_job(tmp_path, 2, *TINY, *flags)
    assert re.search(r"small: streaming to disk needs [\d.]+ MiB, \d+ KiB are free", message)


def test_room_on_the_disk_is_checked_for_all_files_that_are_kept(tmp_path: Path) -> None:
    """Each point's files would fit alone; all that are to be kept do not."""
    sizes = args("--input-len 300,301 --output-len 2 --inference-data-type bf16")
    once = args("--streaming disk --stream-dir small --no-ceilings --warmup 0 --rounds 1")
    flags = (*TINY, *sizes, *once)
    with small_disk(tmp_path / "small", 256 << 10):
        run(tmp_path, 1, "run", *flags)
        job = run(tmp_path / "kept", 1, "run", *flags, "--keep", "--stream-dir", tmp_path / "small")
        assert "p001 SKIPPED" in job.stderr
        assert "streaming to disk needs" in job.stderr
