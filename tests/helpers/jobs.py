"""For tests that start jobs: this environment's mpirun, in a folder of its own, with a deadline."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from dejavubench.analysis.integrity import read_checked
from dejavubench.machine.launcher import RANK_VARIABLES
from dejavubench.records import RankInfo, Run
from helpers.cli_calls import stdout_of
from helpers.paths import ROOT, TESTS
from helpers.waits import until

CLI = ("-m", "dejavubench")
FP32 = ("--inference-data-type", "fp32")
BF16 = ("--inference-data-type", "bf16")
TYPES = {"fp32": FP32, "bf16": BF16}
"""Flags by type. ``auto`` depends on the CPU, so no test relies on it."""

SIZES = ("--layer-num", "2", "--head-num", "4", "--size-per-head", "16", "--vocab-size", "101")
TINY = ("--device", "cpu", "--threads", "1", *FP32, *SIZES)
"""Flags of a model whose job takes hardly longer than its start."""

QUICK = (*TINY, "--ubatch-size", "2", "--input-len", "8", "--output-len", "6", "--no-ceilings")
"""Flags of one small point of that model."""

PATIENCE = 120.0
"""Seconds that a whole job may take on a loaded machine."""

GONE_WITHIN = 10.0
"""Seconds after a failure within which every process of a job must have ended."""


SWEPT_SWITCHES = ("--confine", "--no-confine")
"""Flags of a switch whose two ways may stand side by side."""


def args(line: str) -> tuple[str, ...]:
    """Split flags and their values at the spaces, as a shell does."""
    return tuple(shlex.split(line))


def last_of_each(words: Sequence[object]) -> list[str]:
    """Return arguments in which a later flag replaces an earlier one, as it may one of ``QUICK``.

    So does a switch that turns the other way, unless both ways sweep. The command line itself
    refuses an option that is given twice.
    """
    by_flag: dict[str, list[str]] = {"": []}
    flag = ""
    for word in map(str, words):
        if word.startswith("--"):
            flag = word.partition("=")[0]
            if flag not in SWEPT_SWITCHES:
                flag = flag.replace("--no-", "--", 1)
            by_flag.pop(flag, None)
        by_flag.setdefault(flag, []).append(word)
    return [word for group in by_flag.values() for word in group]


def mpirun_program() -> str:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    program = shutil.which("mpirun", path=path)
    if program is None:
        pytest.skip("no mpirun")
    return program


@functools.cache
def warm_server() -> Path | None:
    """Return the address of the server that forks ranks; None if ranks must start by themselves."""
    if shutil.which("nvidia-smi"):
        return None  # CUDA and NCCL behave differently in a forked process
    address = Path(tempfile.mkdtemp(prefix="warm-")) / "socket"
    server = subprocess.Popen(
        [sys.executable, str(TESTS / "warm" / "server.py"), str(address)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert server.stdin is not None
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n", "the server of warm ranks did not start"
    atexit.register(shutil.rmtree, address.parent)
    atexit.register(server.wait)
    atexit.register(server.stdin.close)  # runs first: the server ends when it closes
    return address


class Job:
    """A running job. Use it as a context manager, so that nothing outlives a test.

    Args:
        cwd: working directory, in which it writes its logs.
        ranks: number of ranks.
        words: arguments of the driver.
        driver: the command line, or a script of ``tests/mpi``, as arguments of Python.
        environment: variables in addition to those of this process.
        cold: each rank imports everything itself, as a user's rank does.
    """

    def __init__(
        self,
        cwd: Path,
        ranks: int,
        *words: object,
        driver: Sequence[str | Path] = CLI,
        environment: Mapping[str, str] | None = None,
        cold: bool = False,
    ) -> None:
        self.cwd = cwd
        cwd.mkdir(parents=True, exist_ok=True)
        inherited = {
            key: value
            for key, value in os.environ.items()
            if key not in ("DEJAVULIB_BASELINE", *RANK_VARIABLES)
        }
        server = None if cold else warm_server()
        by_server = () if server is None else ("-S", "-E", TESTS / "warm" / "rank.py")
        ours = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        ours |= {} if server is None else {"WARM_SOCKET": str(server)}
        self._out, self._err = cwd / "stdout", cwd / "stderr"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [
                    mpirun_program(),
                    "-n",
                    str(ranks),
                    sys.executable,
                    *by_server,
                    *driver,
                    *last_of_each(words),
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=cwd,
                env={**inherited, **ours, **(environment or {})},
            )

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()  # the launcher ends its ranks, too
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def wait(self, timeout: float = PATIENCE) -> int:
        """Return the exit status. A job that runs longer fails the test."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {timeout:g} s; on stderr:\n{self.stderr[-4000:]}")

    def wait_killed(self, rank: int) -> None:
        """Assert that the job ends because this rank was killed."""
        status = self.wait()
        assert status in (signal.SIGKILL, 128 + signal.SIGKILL), (
            f"status {status}: {self.stderr[-4000:]}"
        )
        assert "Traceback" not in self.stderr
        # Another process writes the note.
        until(lambda: self.run.first_exits, "the note of the first exit", GONE_WITHIN)
        assert rank in self.run.first_exits, self.stderr[-4000:]

    def until(self, happened: Callable[[], bool], description: str) -> None:
        """Wait until ``happened`` returns True; fail the test if the job ends first."""

        def happened_in_time() -> bool:
            if happened():
                return True
            if (status := self.process.poll()) is not None:
                pytest.fail(
                    f"{description} did not happen (status {status}):\n{self.stderr[-4000:]}"
                )
            return False

        until(happened_in_time, description, PATIENCE)

    @property
    def stdout(self) -> str:
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    @property
    def folder(self) -> Path:
        """The folder of the only run."""
        (folder,) = (self.cwd / "logs").iterdir()
        return folder

    @property
    def run(self) -> Run:
        """Its records, checked. They must be valid also while it runs and after it was killed."""
        return read_checked(self.folder)

    def pid(self, rank: int) -> int:
        """Return the process id of a rank, from its first record."""
        return next(
            info.pid for info_rank, info in self.run.records_of(RankInfo) if info_rank == rank
        )

    def interrupt(self) -> None:
        """Send mpirun what Ctrl-C sends."""
        self.process.send_signal(signal.SIGINT)

    def all_gone(self, timeout: float = GONE_WITHIN) -> None:
        """Assert that every rank's process ends within ``timeout`` seconds."""
        pids = {info.pid for _, info in self.run.records_of(RankInfo)}
        assert pids, "no rank has recorded its process id"
        until(lambda: not any(map(_is_running, pids)), f"the end of all processes {pids}", timeout)


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def run(
    cwd: Path,
    ranks: int,
    *words: object,
    driver: Sequence[str | Path] = CLI,
    environment: Mapping[str, str] | None = None,
    status: int = 0,
    cold: bool = False,
) -> Job:
    """Run a job to its end and assert its exit status."""
    with Job(cwd, ranks, *words, driver=driver, environment=environment, cold=cold) as job:
        assert job.wait() == status, job.stderr[-4000:] + job.stdout[-1000:]
        return job


def process_folder(folder: Path, style: str = "table", long: bool = False) -> str:
    """Return the output of ``dejavubench process FOLDER``."""
    return stdout_of("process", folder, "--format", style, *(["--long"] if long else []))


def read_tokens(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's ``tokens.jsonl``: prompt and new tokens of each request."""
    return [json.loads(line) for line in (folder / "tokens.jsonl").read_text().splitlines()]


@contextmanager
def small_disk(folder: Path, nbytes: int) -> Iterator[None]:
    """Mount a small tmpfs at ``folder``; skip the test if this user may not mount."""
    folder.mkdir()
    completed = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={nbytes}", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if completed.returncode:
        pytest.skip(f"cannot mount a small tmpfs: {completed.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
