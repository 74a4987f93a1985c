"""A job in which something goes wrong: real mpirun jobs with one fault each, of mpi/faulty.py."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from dejavubench.records import End, RankFailure, Verification
from dejavubench.transports.tcp_token import TOKEN_VARIABLE
from helpers.faults import (
    FAULTY,
    SIZES,
    STRIKES,
    has_struck,
    microbatch_count,
    phase_of,
    require_failure,
    start_faulty,
    wait_for_iterations,
)
from helpers.jobs import GONE_WITHIN, Job, process_folder, small_disk
from helpers.tcp_peers import TOKEN, SinkProcess

pytestmark = pytest.mark.mpi

PROMPT, WRITTEN = 6, 11  # positions [6, 11) are the five decode steps'


# ---- wrong bytes ----


def require_failed_verification(job: Job) -> str:
    """Return the place of the difference that failed the verification of a job."""
    assert job.wait() == 1, job.stderr
    assert has_struck(job)
    checks = [check for _, check in job.run.records_of(Verification)]
    assert [check.ok for check in checks] == [True] * STRIKES + [False]
    assert {end.status for _, end in job.run.records_of(End)} == {"failed"}
    assert len(list(job.run.records_of(End))) == 2
    place = checks[-1].where
    assert place
    message = (
        f"dejavubench: verification failed: p000 {checks[-1].arm}, iteration {STRIKES}: {place}\n"
    )
    assert job.stderr.count(message) == 1
    assert "Traceback" not in job.stderr
    (row,) = json.loads(process_folder(job.folder, "json"))[0]["rows"]
    assert row["status"] == "FAILED"
    assert place in row["reason"]
    assert not any(value for key, value in row.items() if key.endswith("_ms")), (
        "times of wrong bytes are reported"
    )
    assert job.stdout.count(" TOTAL generation took ") == STRIKES, (
        "and so they are not in the text lines"
    )
    return place


@pytest.mark.parametrize(
    ("layout", "level", "index"),
    [
        ("ft", "3", (1, "k", 1, 2, 3)),
        ("hnd", "2", (0, "v", 0, 3, 9)),
        ("nhd", "0", (1, "v", 1, 0, 10)),
    ],
)
def test_a_wrong_byte_in_a_sinks_buffer_is_located(
    tmp_path: Path, layout: str, level: str, index: tuple[int, str, int, int, int]
) -> None:
    fault = f"corrupt:{':'.join(map(str, index))}"
    with start_faulty(tmp_path, fault, "--kv-layout", layout, "--level", level) as job:
        place = require_failed_verification(job)
    layer, kv, request, head, position = index
    assert place == (
        f"rank 1: layer {layer}, {kv.upper()}, request {request}, head {head}, position {position} "
        "(element 0) of microbatch 0 is not what the source has; 1 elements of this layer's "
        f"{kv.upper()} differ"
    )


def test_a_chunk_that_the_sink_drops_is_located(tmp_path: Path) -> None:
    with start_faulty(tmp_path, "drop-at-sink:8") as job:
        place = require_failed_verification(job)
    assert place.startswith(
        "rank 1: layer 0, K, request 0, head 0, position 8 (element 0) of microbatch 0 is not"
    )
    assert place.endswith("; 128 elements of this layer's K differ")  # 2 requests × 4 heads × 16


def test_a_chunk_delivered_twice_to_a_wrong_place_is_located(tmp_path: Path) -> None:
    with start_faulty(tmp_path, f"scatter-twice:9:{WRITTEN}") as job:
        place = require_failed_verification(job)
    assert place.startswith(
        f"rank 1: layer 0, K, request 0, head 0, position {WRITTEN} (element 0) of microbatch 0 was"
    )
    assert "was written outside the streamed region; 128 elements" in place


def test_a_gather_one_step_too_early_is_located(tmp_path: Path) -> None:
    with start_faulty(tmp_path, "gather-step-early") as job:
        place = require_failed_verification(job)
    assert place.startswith(f"rank 1: layer 0, K, request 0, head 0, position {PROMPT} (element 0)")


def test_a_gather_one_layer_too_early_is_located(tmp_path: Path) -> None:
    with start_faulty(tmp_path, "gather-layer-early", streaming="host") as job:
        place = require_failed_verification(job)
    assert place.startswith("rank 0: layer 1, K, request 0, head 0, position 0 (element 0)")


def test_a_wrong_byte_on_disk_is_found_by_its_checksum(tmp_path: Path) -> None:
    with start_faulty(tmp_path, "corrupt-file:3:1", streaming="disk") as job:
        place = require_failed_verification(job)
    assert re.fullmatch(r"rank 0: \S+\.kv: checksum of step 3, layer 1 does not agree", place)


def test_wrong_bytes_with_the_right_checksum_on_disk_are_located(tmp_path: Path) -> None:
    with start_faulty(tmp_path, "corrupt-flush:2", streaming="disk") as job:
        place = require_failed_verification(job)
    assert place.startswith(
        f"rank 0: layer 0, K, request 0, head 0, position {PROMPT + 1} (element 0)"
    )


def test_a_wrong_token_fails_even_if_all_bytes_are_right(tmp_path: Path) -> None:
    with start_faulty(tmp_path, "wrong-token:3:1") as job:
        place = require_failed_verification(job)
        (check,) = [check for _, check in job.run.records_of(Verification) if not check.ok]
    assert re.fullmatch(
        r"rank 0: new token 3 of request 1 of microbatch 0 is \d+, without streaming it is \d+",
        place,
    )
    assert check.tokens_equal is False


# ---- a job that cannot go on ----


@pytest.mark.parametrize(
    ("role", "phase"),
    [
        *(("source", phase) for phase in ("load", "prompt", "tokens", "drain", "verify")),
        *(("sink", phase) for phase in ("load", "receive", "verify")),
    ],
)
def test_an_exception_ends_every_rank_and_names_rank_and_phase(
    tmp_path: Path, role: str, phase: str
) -> None:
    with start_faulty(tmp_path, f"throw:{role}:{phase}") as job:
        error = "RuntimeError: injected"
        if phase == "drain":  # thrown in the helper thread, raised by the model's
            error = f"StreamingError: {error}"
        require_failure(job, ("source", "sink").index(role), phase, error)
        # Only the rank that failed says so.
        assert job.stderr.count(" failed in phase ") == 1
        assert microbatch_count(job) == (0 if phase == "load" else STRIKES + (phase == "verify"))
        if phase != "load":
            (row,) = json.loads(process_folder(job.folder, "json"))[0]["rows"]
            assert row["samples"] == microbatch_count(job)


@pytest.mark.parametrize("step", [5, 2], ids=["last", "middle"])
def test_a_chunk_that_is_never_sent_ends_the_drain(tmp_path: Path, step: int) -> None:
    with start_faulty(tmp_path, f"drop-at-source:{step}", "--drain-timeout", "2") as job:
        require_failure(
            job,
            0,
            "drain",
            "StreamingError: no chunk became complete within 2 s; the first missing is chunk ",
        )
        if step == 5:
            # Chunks 0 and 1 are the prompt's layers; then each step has one.
            assert "the first missing is chunk 6 (step 5) of stream 0" in job.stderr


@pytest.mark.parametrize("level", ["0", "3"])
def test_a_sink_that_takes_nothing_is_given_up(tmp_path: Path, level: str) -> None:
    with start_faulty(tmp_path, "stuck-sink", "--drain-timeout", "2", "--level", level) as job:
        phase = "drain" if level == "3" else "prompt"
        require_failure(
            job,
            0,
            phase,
            "StreamingError: no chunk became complete within 2 s; "
            "the first missing is chunk 0 (step 0)",
        )


def test_run_json_that_cannot_be_written_ends_the_job(tmp_path: Path) -> None:
    with start_faulty(tmp_path, "records-full-at-start") as job:
        job.until(lambda: has_struck(job), "the fault")
        assert job.wait(GONE_WITHIN) not in (0, None)
        assert "dejavubench: rank 0 failed in phase start: No space left on device" in job.stderr


def test_a_failure_after_the_last_record_ends_the_job_and_leaves_the_records_whole(
    tmp_path: Path,
) -> None:
    with start_faulty(tmp_path, "fail-at-the-end") as job:
        assert job.wait() not in (0, None)
        job.all_gone()
        assert has_struck(job)
        assert "dejavubench: rank 0 failed in phase end: RuntimeError: injected\n" in job.stderr
        assert "ValueError" not in job.stderr
        assert job.stderr.count("Traceback") == 1
        assert [log.has_ended for log in job.run.ranks] == [True, True]
        assert not list(job.run.records_of(RankFailure))


def require_unwritten_records(job: Job, error: str) -> None:
    """Assert that a rank could not write records any more; the earlier ones are readable."""
    assert job.wait() not in (0, None)
    job.all_gone()
    assert re.search(
        rf"dejavubench: rank [01] failed in phase \w+: \S+: {re.escape(error)}\n", job.stderr
    )
    assert "Traceback" not in job.stderr
    printed = re.search(
        rf"dejavubench: rank [01] cannot record its failure: \S+: {re.escape(error)}\n", job.stderr
    )
    recorded = any(
        '"kind":"failure"' in file.read_text() for file in job.folder.glob("rank-*.jsonl")
    )
    # The record of the failure is short, and may fit where the longer line did not.
    assert printed or recorded
    assert microbatch_count(job) > 10
    assert "INCOMPLETE: rank " in process_folder(job.folder)


def test_a_disk_that_fills_up_ends_the_job_with_readable_records(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "logs", 256 << 10),
        start_faulty(tmp_path, "no-fault", rounds=10**6) as job,
    ):
        require_unwritten_records(job, "No space left on device")


def test_a_limit_of_file_size_ends_the_job_with_readable_records(tmp_path: Path) -> None:
    with start_faulty(tmp_path, f"record-limit:{64 << 10}", rounds=10**6) as job:
        require_unwritten_records(job, "File too large")


def test_a_run_whose_folder_is_removed_says_so(tmp_path: Path) -> None:
    with start_faulty(tmp_path, "remove-folder") as job:
        job.until(lambda: has_struck(job), "the removal")
        assert job.wait(GONE_WITHIN) not in (0, None)
        assert re.search(
            r"rank 0 failed in phase \w+: \S+/mpi@3.log: the run's folder was removed\n", job.stderr
        )
        assert "Traceback" not in job.stderr


@pytest.mark.parametrize("phase", ["drain", "verify"])
def test_a_tcp_sink_that_is_lost_is_no_wrong_byte_and_its_phase_is_named(
    tmp_path: Path, phase: str
) -> None:
    with SinkProcess(tmp_path / "sink") as process:
        modes = ("--streaming", "tcp", "--peer", process.peer, "--warmup", "0")
        fault = f"lose-sink:{phase}:{process.process.pid}"
        environment = {TOKEN_VARIABLE: TOKEN}
        with Job(
            tmp_path, 1, fault, "run", *SIZES, *modes, driver=FAULTY, environment=environment
        ) as job:
            assert job.wait() not in (0, None)
            assert re.search(
                rf"dejavubench: rank 0 failed in phase {phase}: \w+Error: 127\.0\.0\.1", job.stderr
            )
            assert "verification failed" not in job.stderr
            assert "Traceback" not in job.stderr


# ---- from outside ----


OTHERS_END = "(stopped|was the first to stop,)"
"""The launcher kills the other rank at once: on a busy machine the watchdog may find both gone."""


@pytest.mark.parametrize("victim", ["source", "sink"])
@pytest.mark.parametrize("phase", ["load", "prompt", "tokens", "drain"])
def test_a_killed_rank_takes_the_job_along_and_its_last_phase_is_known(
    tmp_path: Path, phase: str, victim: str
) -> None:
    with start_faulty(tmp_path, f"linger:{phase}") as job:
        job.until(lambda: has_struck(job), "the phase")
        if phase != "load":
            job.until(lambda: phase_of(job, 1) == "receive", "the sink's waiting")
        os.kill(job.pid(("source", "sink").index(victim)), signal.SIGKILL)
        assert job.wait(GONE_WITHIN) not in (0, None)
        job.all_gone()
        table = process_folder(job.folder)
        place_in_run = "" if phase == "load" else f", arm mpi@3, iteration {STRIKES}"
        sink = (
            "before its first phase"
            if phase == "load"
            else f"in phase receive, point p000{place_in_run}"
        )
        places = {"source": (0, f"in phase {phase}, point p000{place_in_run}"), "sink": (1, sink)}
        for role, (rank, place) in places.items():
            ending = "was the first to stop," if role == victim else OTHERS_END
            assert re.search(
                rf"INCOMPLETE: rank {rank} \({role} on .*\) {ending} {place}, without", table
            ), table
        assert microbatch_count(job) == (0 if phase == "load" else STRIKES)


@pytest.mark.parametrize("victim", ["mpirun", "rank 1"])
def test_ctrl_c_ends_in_order_and_says_what_was_measured(tmp_path: Path, victim: str) -> None:
    with start_faulty(tmp_path, "slow-model", rounds=1000) as job:
        wait_for_iterations(job, 2)  # the round of the first one counts then
        if victim == "mpirun":
            job.interrupt()
        else:
            os.kill(job.pid(1), signal.SIGINT)
        assert job.wait(GONE_WITHIN) not in (0, None)
        job.all_gone()
        stderr = job.stderr
        assert "Traceback" not in stderr
        assert stderr.count("interrupted in phase") == 1, stderr
        last_lines = stderr[
            stderr.index("dejavubench: rank 0 interrupted in phase ") :
        ].splitlines()
        assert re.fullmatch(r"rounds measured of 1000: mpi@3 \d+", last_lines[1])
        assert last_lines[2] == f"records: {job.folder}"
        # On a loaded machine the tables may take too long; then the command stands in their place.
        assert re.search(
            r"^INTERRUPTED: rank |^tables: dejavubench process /", stderr, re.MULTILINE
        )
        assert "INTERRUPTED: rank " in process_folder(job.folder)


@pytest.mark.parametrize("ending", ["interrupt", "exception"])
def test_a_rank_that_fails_before_the_session_does_not_wait_for_the_others(
    tmp_path: Path, ending: str
) -> None:
    with start_faulty(tmp_path, f"late:{ending}") as job:
        job.until(lambda: len(list(job.cwd.glob("struck-*"))) == 2, "rank 0's waiting for rank 1")
        if ending == "interrupt":
            job.interrupt()
        assert job.wait(GONE_WITHIN) not in (0, None)
        assert ("RuntimeError: injected" if ending == "exception" else "interrupted") in job.stderr
        assert job.stderr.count("Traceback") == (ending == "exception")
