"""Sessions that go on with a run: real jobs that were cut short or killed, and what is refused.

Jobs: gpt of 2 layers, fp32, 1 thread per rank, 2 ranks, CPU.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from dejavubench.analysis.facts.collect_samples import collect
from dejavubench.analysis.integrity import read_checked
from dejavubench.analysis.tables.run_rows import run_rows
from dejavubench.bench.earlier_tokens import describe_changed_token
from dejavubench.bench.startup.continue_checks import find_differences, lock, lock_continued_run
from dejavubench.config.continued_run import find_continued_run
from dejavubench.config.resolve import load, load_continued_run
from dejavubench.errors import UsageError
from dejavubench.records import RUN_FILE, Ceiling, Iteration, PhaseMark, name_rank_file, read_run
from helpers.cli_calls import call, stdout_of, usage_error_of
from helpers.jobs import QUICK, Job, args, run

ROUNDS = 3


def read_contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_whole(folder: Path, rounds: int) -> None:
    """Assert that a folder keeps all rules, and that each point has its rounds of every arm."""
    samples = collect(read_checked(folder))
    assert len(samples) == 3
    for point in samples.values():
        round_numbers = [frozenset(arm.times.total) for arm in point.arms.values()]
        assert len(round_numbers) == 4
        assert len(set(round_numbers)) == 1, "each round has every arm"
        assert len(round_numbers[0]) == rounds


@pytest.fixture
def folder(sweep: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "run"
    shutil.copytree(sweep, copy)
    return copy


@pytest.fixture
def cut(folder: Path) -> Path:
    """Return a run killed in round 2 of p001; the file of rank 1 has lost one round more."""
    for rank, iteration in ((0, b"2"), (1, b"1")):
        path = folder / name_rank_file(rank)
        content = path.read_bytes()
        mark = b'"point":"p001","arm":"host@3","iteration":' + iteration
        path.write_bytes(content[: content.index(mark)])
    return folder


@pytest.mark.mpi
def test_a_session_measures_missing_rounds_and_alters_no_file(cut: Path, tmp_path: Path) -> None:
    cut_contents = read_contents(cut)
    job = run(tmp_path, 2, "run", "--continue", cut)
    assert "session 2 measures what is missing: p001 3 rounds, p002 3 rounds" in job.stderr
    continued_contents = read_contents(cut)
    assert {name: continued_contents[name] for name in cut_contents} == cut_contents
    new_names = set(continued_contents) - set(cut_contents)
    assert new_names >= {f"rank-000{rank}.s2.jsonl" for rank in range(2)} | {"run.s2.json"}
    assert all(".s2." in name for name in new_names)
    assert_whole(cut, ROUNDS)
    first_session, second_session = read_run(cut).sessions
    assert {
        record.point
        for _, record in first_session.records_of(Iteration)
        if record.round is not None
    } == {"p000"}
    warmups = [
        iteration
        for _, iteration in second_session.records_of(Iteration)
        if iteration.round is None
    ]
    assert len(warmups) == 2 * 4, "each arm is warmed up again at each point"


@pytest.mark.mpi
def test_a_session_of_a_whole_run_measures_nothing_and_writes_its_table(
    folder: Path, tmp_path: Path
) -> None:
    whole_contents = read_contents(folder)
    job = run(tmp_path, 2, "run", "--continue", folder, "-o", "table.csv")
    assert f"nothing is missing in {folder}" in job.stderr
    assert (tmp_path / "table.csv").read_text().count("\n") == 1 + 3 * 4
    assert read_contents(folder) == whole_contents


@pytest.mark.mpi
def test_more_rounds_are_added_to_a_whole_run_and_asked_for_once(
    folder: Path, tmp_path: Path
) -> None:
    """A session that is cut short after it was asked for more leaves the rest to the next one."""
    whole_contents = read_contents(folder)
    more_rounds = ("--rounds", ROUNDS + 2, "--points", "p001")
    job = run(tmp_path, 2, "run", "--continue", folder, *more_rounds)
    assert "session 2 measures what is missing: p001 2 rounds" in job.stderr
    continued_contents = read_contents(folder)
    assert {name: continued_contents[name] for name in whole_contents} == whole_contents
    assert {
        name for name in continued_contents if name not in whole_contents and ".s2." not in name
    } == set()
    assert rounds_by_point(folder) == {"p000": ROUNDS, "p001": ROUNDS + 2, "p002": ROUNDS}
    assert find_continued_run(folder, None).starts == ()

    for rank in range(2):  # the second session's own second round is lost
        path = folder / f"rank-000{rank}.s2.jsonl"
        content = path.read_bytes()
        last_round = b'"round":%d' % (ROUNDS + 1)
        path.write_bytes(content[: content.index(last_round)])
    (start,) = find_continued_run(folder, None).starts
    assert (start.point, start.rounds) == ("p001", 1)


@pytest.mark.mpi
def test_ceilings_that_a_run_left_out_are_measured_after_a_round_more(
    folder: Path, tmp_path: Path
) -> None:
    """The report proposes the command. Points that still lack ceilings can be measured later."""
    proposed = proposed_command(folder)
    assert proposed == f"mpirun -n 2 dejavubench run --continue {folder} --ceilings"
    before = read_contents(folder)
    flags = proposed.partition("dejavubench ")[2].split()
    job = run(tmp_path, 2, *flags, "--points", "p001")
    assert "session 2 measures what is missing: p001 1 round" in job.stderr
    after = read_contents(folder)
    assert {name: after[name] for name in before} == before
    assert rounds_by_point(folder) == {"p000": ROUNDS, "p001": ROUNDS + 1, "p002": ROUNDS}
    joined = read_checked(folder)
    assert {ceiling.point for _, ceiling in joined.records_of(Ceiling)} == {"p001"}
    rows = [row for row in run_rows(joined) if row.point == "p001"]
    shares = {row.arm: row.rates.ceiling_share_pct for row in rows}
    assert shares["host@3"] is not None
    assert shares["mpi@3"] is not None
    starts = find_continued_run(folder, None, ceilings=True).starts
    assert [(start.point, start.rounds) for start in starts] == [("p000", 1), ("p002", 1)]
    assert find_continued_run(folder, None).starts == ()


def proposed_command(folder: Path) -> str:
    """Return the command that `Is it normal?` proposes, for the first arm without a share."""
    text = stdout_of("process", folder, "--against", "shipped", "--format", "markdown")
    return re.findall(r"One more round with ceilings: (.*)", text)[0]


def rounds_by_point(folder: Path) -> dict[str, int]:
    """Return how many rounds every arm of a point has."""
    counts = {
        point_id: {len(arm.times.total) for arm in point.arms.values()}
        for point_id, point in collect(read_checked(folder)).items()
    }
    assert all(len(of_arms) == 1 for of_arms in counts.values())
    return {point_id: of_arms.pop() for point_id, of_arms in counts.items()}


@pytest.mark.parametrize("rounds", [1, ROUNDS - 1])
def test_fewer_rounds_than_a_point_has_or_was_asked_for_are_refused(rounds: int, cut: Path) -> None:
    contents = read_contents(cut)
    error = usage_error_of("run", "--dry-run", "--continue", cut, "--rounds", rounds)
    assert error == (
        f"--rounds {rounds} is fewer than the {ROUNDS} rounds that p000 of {cut} has or was asked "
        f"for, and rounds can only be added. Give {ROUNDS} or more, or leave --rounds out"
    )
    assert read_contents(cut) == contents


def test_a_dry_run_counts_the_added_rounds(cut: Path) -> None:
    dry_run = call("run", "--dry-run", "--continue", cut, "--rounds", 5)
    assert dry_run.exit_code == 0, dry_run.stderr
    assert "Missing  p000: 2 rounds; p001: 5 rounds; p002: 5 rounds" in dry_run.stdout
    assert "Each     1 warm-up iteration, 5 rounds" in dry_run.stdout


KILLS: dict[str, Callable[[Job], Any]] = {
    "rank 0": lambda job: os.kill(job.pid(0), signal.SIGKILL),
    "the sink": lambda job: os.kill(job.pid(1), signal.SIGKILL),
    "mpirun": lambda job: job.process.kill(),
}


@pytest.mark.mpi
@pytest.mark.drill
@pytest.mark.parametrize(
    ("victim", "phase", "point", "arm"),
    [
        ("rank 0", "tokens", "p001", "mpi@3"),
        ("the sink", "prepare", "p002", "none"),
        ("mpirun", "verify", "p000", "host@3"),
    ],
)
def test_three_kills_end_in_the_same_set_of_points(
    victim: str, phase: str, point: str, arm: str, tmp_path: Path
) -> None:
    flags = args("--output-len 20,30,40 --streaming none,host,mpi --rounds 8 --warmup 1")
    with Job(tmp_path, 2, "run", *QUICK, *flags) as job:

        def begun() -> bool:
            path = next((tmp_path / "logs").glob("*/rank-0000.jsonl"), None)
            mark = PhaseMark(phase=phase, point=point, arm=arm, iteration=3)
            line = mark.model_dump_json(exclude={"at_ns"}).removesuffix("}").encode()
            return path is not None and line in path.read_bytes()

        job.until(begun, f"{phase} of {point} {arm}")
        KILLS[victim](job)
        job.wait()
        job.all_gone()
    (killed,) = (tmp_path / "logs").iterdir()
    assert find_continued_run(killed, None).starts
    run(tmp_path / "rest", 2, "run", "--continue", killed)
    assert_whole(killed, 8)


def test_points_of_a_new_run_are_chosen_by_their_ids() -> None:
    sizes = {"device": "cpu", "input_len": (8, 16, 32)}
    plan = load(None, sizes, {}, only_points=("p001",))
    assert [point.id for point in plan.points] == ["p000", "p001", "p002"]
    assert list(plan.starts) == ["p001"]
    with pytest.raises(UsageError, match=r"no point 'p007'; this run has p000 to p002$"):
        load(None, sizes, {}, only_points=("p001", "p007"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--continue", "nowhere"),
            "--continue: nowhere does not exist. Give the folder",
        ),
        (("some.toml", "--continue", "nowhere"), "some.toml cannot be combined with --continue"),
        (
            ("--continue", "nowhere", "--warmup", "7"),
            "--warmup cannot be combined with --continue: the settings are those of the run. Only "
            "--ceilings, --peer, --rank-timeout and --rounds may be given anew. Drop --warmup",
        ),
        (("--continue", "nowhere", "--rounds", "0"), "--rounds"),
        (("--points", "p001,p001"), "must be ids of points, each once"),
        (("--points", "p001,"), "must be ids of points, each once"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(flags: tuple[str, ...], message: str) -> None:
    assert message in usage_error_of("run", "--dry-run", *flags)


def call_dry_run(folder: Path) -> Result:
    return call("run", "--dry-run", "--continue", folder)


def test_a_dry_run_shows_what_is_missing_and_writes_nothing(cut: Path) -> None:
    contents = read_contents(cut)
    dry_run = call_dry_run(cut)
    assert dry_run.exit_code == 0, dry_run.stderr
    assert "Missing  p001: 3 rounds; p002: 3 rounds" in dry_run.stdout
    assert read_contents(cut) == contents


def test_a_dry_run_of_a_whole_run_says_that_nothing_is_missing(folder: Path) -> None:
    dry_run = call_dry_run(folder)
    assert dry_run.exit_code == 0, dry_run.stderr
    text = " ".join(dry_run.stdout.split())
    assert f"Nothing is missing in {folder}." in text
    assert "No point can run" not in text


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("chunks-0000.jsonl", 3),
        ("chunks-0001.jsonl", 2),
        ("conditions-0000.jsonl", 2),
        ("tokens.jsonl", 1),
    ],
)
def test_a_bad_byte_is_refused_before_a_session_measures(name: str, line: int, cut: Path) -> None:
    assert call_dry_run(cut).exit_code == 0
    content = (cut / name).read_bytes().splitlines(keepends=True)
    content[line - 1] = b"\xff" + content[line - 1][1:]
    (cut / name).write_bytes(b"".join(content))
    error = usage_error_of("run", "--dry-run", "--continue", cut)
    assert error.startswith(f"--continue: {cut}")
    assert f"{name}:{line}: Invalid JSON" in error
    assert error.count(str(cut)) == 1


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (RUN_FILE, b'"host@3"', b'"iost@3"', "arm iost@3 has mode host, level 3"),
        (name_rank_file(0), b'"kind":"iteration"', b'"kind":"iterbtion"', "rank-0000.jsonl:"),
        (
            "chunks-0000.jsonl",
            b'"point":"p000"',
            b'"point":"q000"',
            "chunks-0000.jsonl names point q000",
        ),
        ("conditions-0000.jsonl", b'"point":"p000"', b'"point":"q000"', "names point q000, arm"),
    ],
)
def test_another_name_that_analysis_would_refuse_is_refused_at_the_start(
    name: str, old: bytes, new: bytes, message: str, cut: Path
) -> None:
    content = (cut / name).read_bytes()
    assert old in content
    (cut / name).write_bytes(content.replace(old, new))
    error = usage_error_of("run", "--dry-run", "--continue", cut)
    assert error.startswith("--continue: ")
    assert message in error


@pytest.mark.mpi
def test_a_session_of_too_few_ranks_names_the_command_that_continues_the_run(
    cut: Path, tmp_path: Path
) -> None:
    job = run(tmp_path / "one", 1, "run", "--continue", cut, status=2)
    assert job.stderr.endswith(f"Start it with: mpirun -n 2 dejavubench run --continue {cut}\n")


def test_a_session_keeps_the_settings_of_its_run(cut: Path) -> None:
    plan = load_continued_run(cut, None, {"rank_timeout": "7s"})
    header = read_run(cut).header
    assert plan.experiment.rank_timeout == 7.0
    assert plan.hash() == header.experiment_hash
    assert [arm.name for arm in plan.arms] == [arm.name for arm in header.arms]
    assert list(plan.starts) == ["p001", "p002"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", 5, "is another one today"),
        ("resume", "logs/earlier", "one request of logs/earlier.*Use --restart-request"),
        ("rounds", "many", "--continue: .*rounds"),
    ],
)
def test_another_experiment_is_refused(key: str, value: object, message: str, cut: Path) -> None:
    header = json.loads((cut / RUN_FILE).read_text())
    header["experiment"][key] = value
    (cut / RUN_FILE).write_text(json.dumps(header))
    with pytest.raises(UsageError, match=message):
        load_continued_run(cut, None, {})


def test_another_machine_or_program_is_described_by_its_differences() -> None:
    recorded = {
        "cpu_model": "A",
        "cores": 2,
        "versions": {"torch": "2.13", "numpy": "2"},
        "variables": {"SLURM_JOB_ID": "1", "UCX_TLS": "tcp"},
        "memory_available": 1,
        "date": "2026-01-01",
    }
    present = {
        "cpu_model": "B",
        "cores": 2,
        "versions": {"torch": "2.14", "numpy": "2"},
        "variables": {"SLURM_JOB_ID": "2", "UCX_TLS": "ib"},
        "memory_available": 2,
        "date": "2026-01-02",
        "kernel": "new key",
    }
    assert list(find_differences(recorded, present)) == [
        "cpu_model was A, now B",
        "variables UCX_TLS was tcp, now ib",
        "versions torch was 2.13, now 2.14",
    ]
    assert list(find_differences(recorded, recorded)) == []


def test_two_processes_cannot_go_on_with_one_run(cut: Path) -> None:
    continued = find_continued_run(cut, None)
    descriptor = os.open(cut / RUN_FILE, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(BlockingIOError):
        lock(cut)
    with pytest.raises(UsageError, match="another process is measuring in"):
        lock_continued_run(continued)
    os.close(descriptor)
    (cut / "rank-0000.s2.jsonl").touch()
    with pytest.raises(UsageError, match=r"another session has measured in .* meanwhile"):
        lock_continued_run(continued)


def test_other_reference_tokens_are_located() -> None:
    tokens = torch.tensor([[[1, 2, 3], [4, 5, 6]]])
    assert describe_changed_token({(0, 0): (1, 2, 3), (0, 1): (4, 5, 6)}, tokens) is None
    assert describe_changed_token({(0, 1): (4, 9, 6)}, tokens) == (
        "new token 1 of request 1 in microbatch 0 is 5, but 9 in an earlier session"
    )
