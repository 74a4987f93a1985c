"""Messages about an error that ends a job, and about records that cannot be written."""

from __future__ import annotations

import errno
import io
import sys
from pathlib import Path

import pytest

from dejavubench.bench.failures.abort import choose_status, describe_error, describe_failure
from dejavubench.bench.recording.recorder import Recorder, write_header
from dejavubench.cli.streams import ClosedStream, GuardedStream
from dejavubench.dejavulib.destinations.base import StorageError, StreamingError
from dejavubench.dejavulib.waiting import DeadlineError
from dejavubench.errors import ExitStatus, OutputError
from dejavubench.records import Microbatch, PhaseMark
from helpers.failing_stream import Failing
from helpers.jobs import small_disk


def with_traceback(error: BaseException, cause: BaseException | None = None) -> BaseException:
    """Return an error that was raised and caught, so that it has a traceback."""
    try:
        raise error from cause
    except BaseException as caught:  # noqa: BLE001 - KeyboardInterrupt as well
        return caught


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "logs/rank-0000.jsonl"),
            "logs/rank-0000.jsonl: No space ",
        ),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (StorageError("cannot write a.kv: Input/output error"), "StorageError: cannot write a.kv"),
        (DeadlineError("grant: nothing came within 2 s"), "DeadlineError: grant: "),
    ],
)
def test_an_error_that_a_user_can_cause_is_one_line(error: BaseException, message: str) -> None:
    text = describe_failure(with_traceback(error), 3, "tokens")
    assert text.startswith(f"dejavubench: rank 3 failed in phase tokens: {message}")
    assert text.count("\n") == 1


def test_a_mistake_of_the_program_has_its_traceback() -> None:
    text = describe_failure(with_traceback(ZeroDivisionError("division by zero")), 0, "load")
    assert text.startswith("Traceback")
    assert text.endswith(
        "dejavubench: rank 0 failed in phase load: ZeroDivisionError: division by zero\n"
    )
    wrapped = StreamingError("KeyError: 3; the first missing is chunk 0")
    assert "\nTraceback" in describe_failure(with_traceback(wrapped, KeyError(3)), 0, "drain")
    assert describe_failure(
        with_traceback(wrapped, OSError(errno.EIO, "Input/output error")), 0, "drain"
    ).startswith("dejavubench: ")
    assert (
        describe_failure(with_traceback(KeyboardInterrupt()), 1, "verify")
        == "dejavubench: rank 1 interrupted in phase verify\n"
    )


NAME = "standard output"


def make_microbatch() -> Microbatch:
    return Microbatch(
        point="p000",
        arm="none",
        iteration=0,
        round=0,
        ubatch=0,
        prompt_ms=1,
        token_ms=[1],
        all_token_ms=1,
        drain_ms=0,
        total_ms=2,
    )


@pytest.mark.parametrize(
    ("failing", "message", "status"),
    [
        (
            GuardedStream(Failing(OSError(errno.ENOSPC, "No space left on device")), NAME),
            "No space left on device",
            1,
        ),
        (
            GuardedStream(Failing(BrokenPipeError(errno.EPIPE, "Broken pipe")), NAME),
            None,
            ExitStatus.BROKEN_PIPE,
        ),
        (ClosedStream(io.StringIO(), NAME), "it is closed", 1),
    ],
    ids=["full", "broken", "closed"],
)
def test_a_standard_output_that_takes_nothing_is_named(
    failing: GuardedStream,
    message: str | None,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder = Recorder(tmp_path, 0, has_several_points=False, to_stdout=True)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", failing)
        with pytest.raises(OutputError) as caught:
            recorder.write_text_lines([make_microbatch()], 2.0)
    recorder.close()
    words = f"dejavubench: rank 0 failed in phase verify: cannot write to {NAME}: {message}\n"
    assert describe_failure(caught.value, 0, "verify") == ("" if message is None else words)
    assert choose_status(caught.value) == status


def test_a_full_log_disk_is_named_and_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    with small_disk(folder, 64 << 10):
        recorder = Recorder(folder, 0, has_several_points=False, to_stdout=False)
        with pytest.raises(OSError, match="No space left on device") as caught:
            recorder.write(PhaseMark(phase="tokens" * (64 << 10)))
        assert (
            describe_error(caught.value) == f"{folder / 'rank-0000.jsonl'}: No space left on device"
        )

        class Long:
            def model_dump(self, mode: str) -> list[str]:
                return ["x" * (64 << 10)]

        with pytest.raises(OSError, match="No space left on device") as caught:
            write_header(folder, Long())  # type: ignore[arg-type]
        assert describe_error(caught.value) == f"{folder / 'run.json'}: No space left on device"
        assert [file.name for file in folder.iterdir()] == ["rank-0000.jsonl"]
