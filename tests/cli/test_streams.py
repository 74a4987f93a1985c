"""Standard output and error that are full, closed, broken or without our characters."""

from __future__ import annotations

import io
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from dejavubench.cli import host_checks
from dejavubench.cli.streams import GuardedStream, MessageStream
from dejavubench.errors import ExitStatus, OutputError, UsageError
from dejavubench.machine.launcher import RANK_VARIABLES
from helpers.failing_stream import Failing
from helpers.jobs import QUICK, args, run
from helpers.paths import DRIVERS, ROOT

HOSTILE = DRIVERS / "hostile.py"
COMMANDS = {
    "group help": "--help",
    "version": "--version",
    "run help": "run --help",
    "dry run": "run --dry-run --model gpt2 --device cpu",
    "plan": "plan --model gpt2",
    "plan as csv": "plan --model gpt2 --format csv",
}
CANNOT = "Error: cannot write to standard output: "


def shell(command: str, redirect: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """A command of ours in a shell, which redirects its streams."""
    return in_shell(f"'{sys.executable}' -m dejavubench {command} {redirect}", **environment)


def in_shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
    return subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        cwd=ROOT,
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        timeout=60,
        encoding="utf-8",
    )


# ---- the streams themselves ----


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), BrokenPipeError(32, "Broken pipe")]
)
def test_a_failure_is_raised_at_every_call(error: OSError) -> None:
    """click tries a stream first, and swallows what that raises."""
    stream = GuardedStream(Failing(error), "standard output")
    assert stream.write("x") == 1
    for _ in range(2):
        with pytest.raises(OutputError, match=f"standard output: {error.strerror}") as raised:
            stream.flush()
        assert raised.value.__cause__ is error
    with pytest.raises(OutputError):
        stream.write("y")
    assert not isinstance(raised.value, OSError), (
        "who handles failures of files must not take it for theirs"
    )


def test_messages_are_dropped_if_stderr_cannot_be_written() -> None:
    stream = MessageStream(Failing(OSError(28, "No space left on device")), "standard error")
    assert stream.write("x") == 1
    stream.flush()
    assert stream.write("y") == 1


def test_a_guarded_stream_takes_text_alone_and_shows_no_bytes() -> None:
    stream = GuardedStream(io.StringIO(), "standard output")
    with pytest.raises(TypeError):
        stream.write(b"")  # type: ignore[arg-type]
    assert not hasattr(stream, "buffer")


# ---- commands ----


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_full_output_is_one_line_and_status_1(command: str) -> None:
    completed = shell(command, "> /dev/full")
    assert (completed.returncode, completed.stderr) == (1, CANNOT + "No space left on device\n")


@pytest.mark.parametrize("command", ["--help", "plan --model gpt2"])
def test_a_closed_output_is_one_line_and_status_1(command: str) -> None:
    completed = shell(command, ">&-")
    assert (completed.returncode, completed.stderr) == (1, CANNOT + "it is closed\n")
    completed = shell(command, ">&- 2>&- <&-")
    assert (completed.returncode, completed.stderr) == (1, "")


@pytest.mark.parametrize("command", ["--help", "run --dry-run --model gpt2 --device cpu"])
def test_a_reader_that_went_away_ends_a_command_without_a_message(command: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        completed = subprocess.run(
            [sys.executable, "-m", "dejavubench", *command.split()],
            stdout=writing,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert (completed.returncode, completed.stderr) == (ExitStatus.BROKEN_PIPE, b"")


@pytest.mark.parametrize("script", ["process_prompt_token_times", "process_total_times"])
def test_the_papers_scripts_fail_as_commands_do(script: str, tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text(
        "".join(
            f"[BENCHMARK] RANK 0 {line} ms\n"
            for number in range(3)
            for line in (
                f"Microbatch {number}, PROMPT processing took 9.0",
                *[f"ITERATION {number}, TOKEN generation took 2.0"] * 3,
                f"ITERATION {number}, ALL-TOKEN generation took 6.0",
                f"ITERATION {number}, TOTAL generation took 15.0",
            )
        )
    )
    command = f"'{sys.executable}' scripts/{script}.py '{log}'"
    for redirect, status, message in [
        ("", 0, ""),
        ("> /dev/full", 1, CANNOT + "No space left on device\n"),
        (">&-", 1, CANNOT + "it is closed\n"),
    ]:
        completed = in_shell(f"{command} {redirect}")
        assert (completed.returncode, completed.stderr) == (status, message)


@pytest.mark.parametrize("redirect", ["2>&-", "2>/dev/full"])
def test_without_standard_error_commands_work(redirect: str) -> None:
    completed = shell("plan --model gpt2 --format csv", redirect)
    assert completed.returncode == 0
    assert completed.stdout.startswith("source_worker,")
    assert shell("plan --model gpt3", redirect).returncode == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize(
    "command",
    ["--help", "plan --model gpt2 --link 1GB/s", "run --dry-run --model gpt2 --device cpu"],
)
def test_characters_that_an_encoding_lacks_have_plain_ones(command: str, encoding: str) -> None:
    completed = shell(command, "| iconv -f latin1 -t utf8", PYTHONIOENCODING=encoding)
    assert completed.stderr == ""
    assert "?" not in completed.stdout.replace("What does streaming the KV cache cost?", "")
    if "--link" in command:
        assert "layers 0-11" in completed.stdout
        assert (
            "12 layers x 12 KV heads" if encoding == "ascii" else "12 layers × 12 KV heads"
        ) in completed.stdout


def test_commands_work_in_a_locale_without_utf8() -> None:
    completed = shell("plan --model gpt2", LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    assert (completed.returncode, completed.stderr) == (0, "")
    assert "12 layers x 12 KV heads" in completed.stdout


@pytest.mark.parametrize("columns", ["0", "abc", "9" * 5000])
def test_a_senseless_number_of_columns_is_ignored(columns: str) -> None:
    completed = shell("plan --model gpt2", COLUMNS=columns)
    assert (completed.returncode, completed.stderr) == (0, "")
    assert "12 KV" in completed.stdout


def test_the_program_without_a_command_shows_its_help_and_no_error() -> None:
    completed = shell("")
    assert (completed.returncode, completed.stdout) == (2, "")
    assert completed.stderr.startswith("Usage: dejavubench [OPTIONS] COMMAND")


# ---- a run ----

ONCE = (*QUICK, *args("--warmup 0 --rounds 2 --inference-data-type fp32"))


@pytest.mark.mpi
def test_a_full_output_ends_a_job_with_one_message(tmp_path: Path) -> None:
    """Rank 0's lines of a single arm go there."""
    job = run(
        tmp_path, 2, "full", "run", *ONCE, "--streaming", "mpi", driver=[str(HOSTILE)], status=1
    )
    assert "cannot write to standard output: No space left on device" in job.stderr
    assert job.stderr.count("cannot write") == 1
    assert "Traceback" not in job.stderr


@pytest.mark.mpi
@pytest.mark.parametrize("value", ["0", "abc"])
def test_numbers_of_threads_that_numba_cannot_read_are_one_line(value: str, tmp_path: Path) -> None:
    job = run(tmp_path, 2, "run", *ONCE, environment={host_checks.NUMBA_THREADS: value}, status=2)
    assert job.stderr == (
        f"Error: rank 0: NUMBA_NUM_THREADS={value!r} must be a positive whole number: numba reads "
        "it. Unset it, or set it to 1\n"
    )


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (
            "NUMBA_OPT=abc",
            "Environment variable 'NUMBA_OPT' is defined but its associated value 'abc' "
            "could not be parsed.",
        ),
        (
            "NUMBA_DISABLE_JIT=1",
            "NUMBA_DISABLE_JIT is set, so the kernels cannot be compiled. Unset it",
        ),
        ("NUMBA_OPT=2", "None"),
    ],
)
def test_a_numba_variable_that_stops_kernels_is_named_in_one_line(
    variable: str, expected: str
) -> None:
    name, value = variable.split("=")
    program = "from dejavubench.cli import host_checks; print(host_checks.find_problem())"
    completed = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), name: value},
    )
    assert completed.stderr == ""
    assert completed.stdout.startswith(expected)
    assert completed.stdout.count("\n") == 1


@pytest.mark.parametrize("value", ["1", "16", "007"])
def test_numbers_of_threads_that_numba_reads_are_no_problem(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(host_checks.NUMBA_THREADS, value)
    assert host_checks.find_problem() is None
    monkeypatch.delenv(host_checks.NUMBA_THREADS)
    assert host_checks.find_problem() is None


def test_a_low_limit_of_open_files_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in RANK_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (32, 32))
    with pytest.raises(
        UsageError,
        match=r"a rank may open 32 files but needs 64\. Raise the limit with ulimit -n 64",
    ):
        host_checks.raise_file_limit()


def test_a_low_limit_is_raised_where_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    changed: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (32, 1 << 20))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: changed.append(limits))
    host_checks.raise_file_limit()
    assert changed == [(host_checks.REQUESTED_FILE_COUNT, 1 << 20)]


@pytest.mark.mpi
def test_a_low_limit_under_mpirun_is_printed_once(tmp_path: Path) -> None:
    job = run(tmp_path, 2, "files", "run", *ONCE, driver=[str(HOSTILE)], status=2)
    assert (
        job.stderr
        == "Error: a rank may open 32 files but needs 64. Raise the limit with ulimit -n 64\n"
    )


def test_a_current_folder_that_was_removed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The libraries would end the process in words of their own."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert re.match(
        r"the current folder cannot be used .* Change to another one",
        host_checks.find_problem() or "",
    )
