"""Records that cannot be right: each rule refuses a run that breaks it, and names the run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dejavubench.records import name_rank_file
from helpers.damage import (
    MPI,
    Edit,
    copy_file,
    drop_record,
    header_edit,
    lines_edit,
    older_run,
    process_run,
    record_edit,
    swap_rank_files,
)
from helpers.mutations import edit_record
from helpers.synthetic_runs import NONE, arm_of, write_run

HUGE = "[" * 100_000

FOREIGN: list[tuple[str, Edit, str]] = [
    (
        "left over",
        copy_file(name_rank_file(1), name_rank_file(2)),
        "rank-0002.jsonl holds the records of rank 1",
    ),
    ("renamed", record_edit("rank", 1, rank=0), "rank-0001.jsonl holds the records of rank 0"),
    ("swapped", swap_rank_files, "rank-0000.jsonl holds the records of rank 1"),
    (
        "two ranks in a file",
        lines_edit(lambda text: [*text[:-1], *text]),
        "holds the records of several ranks",
    ),
    (
        "without its beginning",
        lines_edit(lambda text: text[1:]),
        "does not begin with a rank record",
    ),
    ("another host", record_edit("rank", 1, host="node-z"), "it was on node-z, the run on node-a"),
    (
        "another role",
        record_edit("rank", 1, role="source"),
        "rank 1 of this one is no source of stage 0 and tensor rank 0",
    ),
    (
        "too few ranks",
        header_edit(lambda top: top["environment"].update(ranks=1)),
        "this one has 1 ranks",
    ),
    (
        "peers that differ",
        record_edit("rank", 1, peers=[]),
        "names rank 1 as its peer, but not the reverse",
    ),
    (
        "a record behind the end",
        lines_edit(lambda text: [*text, '{"kind":"end"}\n'], 1),
        "goes on after its End record",
    ),
]

HEADERS: list[tuple[str, Edit, str]] = [
    (
        "an arm twice",
        header_edit(lambda top: top["arms"].append(top["arms"][2])),
        "names arm mpi@3 2 times",
    ),
    (
        "a point twice",
        header_edit(lambda top: top["points"].append(top["points"][0])),
        "names point p000 2 times",
    ),
    ("no arm", header_edit(lambda top: top.update(arms=[])), "run.json names no arm"),
    (
        "another mode",
        header_edit(lambda top: top["arms"][3].update(mode="disk")),
        "arm host@3 has mode disk",
    ),
    (
        "an unknown mode",
        header_edit(lambda top: top["arms"][3].update(mode="$x")),
        "has mode '$x', which is none of",
    ),
    (
        "a baseline that streams",
        header_edit(lambda top: top["arms"][0].update(role="streaming")),
        "cannot have the role streaming",
    ),
    (
        "sizes that do not fit",
        header_edit(lambda top: top["points"][0].update(layer_num=13)),
        "but its sizes give",
    ),
    (
        "a size of 0",
        header_edit(lambda top: top["points"][0].update(ubatch_size=0)),
        "points.0.ubatch_size",
    ),
    (
        "a colour that no figure can draw",
        header_edit(lambda top: top["destinations"].update(mpi={"label": "x", "colour": "red;x"})),
        "destinations.mpi.colour",
    ),
    (
        "environment of another type",
        header_edit(lambda top: top.update(environment=[1])),
        "environment",
    ),
    (
        "hosts of another type",
        header_edit(lambda top: top["environment"].update(hostnames=3)),
        "environment.hostnames",
    ),
    (
        "cores of another type",
        header_edit(lambda top: top["environment"].update(cores="x")),
        "environment.cores",
    ),
    (
        "versions of another type",
        header_edit(lambda top: top["environment"].update(versions=1)),
        "environment.versions",
    ),
    (
        "gpu of another type",
        header_edit(lambda top: top["environment"].update(gpu="x")),
        "environment.gpu",
    ),
    ("experiment of another type", header_edit(lambda top: top.update(experiment=1)), "experiment"),
    (
        "target of another type",
        header_edit(lambda top: top["experiment"].update(target_overhead="x")),
        "target_overhead",
    ),
    (
        "a target that is true",
        header_edit(lambda top: top["experiment"].update(target_overhead=True)),
        "target_overhead",
    ),
    (
        "a schema that is true",
        header_edit(lambda top: top.update(schema_version=True)),
        "schema version True",
    ),
    (
        "a number in place of all",
        lambda folder: (folder / "run.json").write_text("5"),
        "schema version None",
    ),
    (
        "not a number",
        lambda folder: (folder / "run.json").write_text('{"warmup": NaN}'),
        "run.json: ",
    ),
    (
        "deep JSON",
        lambda folder: (folder / "run.json").write_text(HUGE),
        "run.json: damaged JSON: recursion limit",
    ),
    (
        "no UTF-8",
        lambda folder: (folder / "run.json").write_bytes(b'{"name": "\xff"}'),
        "run.json: ",
    ),
]

TIMES: list[tuple[str, Edit, str]] = [
    (
        "not a number",
        record_edit("microbatch", place=MPI, total_ms=float("nan")),
        "total_ms: Input should be a finite number",
    ),
    (
        "infinite",
        record_edit("microbatch", place=MPI, token_ms=[float("inf")] * 5),
        "token_ms.0: Input should be a finite",
    ),
    (
        "negative",
        record_edit("iteration", place=MPI, total_ms=-5.0),
        "iteration.total_ms: Input should be greater than or equal",
    ),
    (
        "a none of 0",
        record_edit("iteration", place={"arm": "none"}, total_ms=0),
        "total_ms: Input should be greater than or equal",
    ),
    (
        "a prompt of 0",
        record_edit("microbatch", place=MPI, prompt_ms=0.0),
        "prompt_ms: Input should be greater than or equal",
    ),
    (
        "a drain below 0",
        record_edit("microbatch", place=MPI, drain_ms=-1e-9),
        "drain_ms: Input should be greater than or",
    ),
    (
        "endless",
        record_edit("microbatch", place=MPI, prompt_ms=1e300),
        "prompt_ms: Input should be less than or equal",
    ),
    (
        "a text",
        record_edit("microbatch", place=MPI, prompt_ms="400.0"),
        "prompt_ms: Input should be a valid number",
    ),
    (
        "a truth",
        record_edit("microbatch", place=MPI, prompt_ms=True),
        "prompt_ms: Input should be a valid number",
    ),
    (
        "no sum",
        record_edit("microbatch", place=MPI, total_ms=1000.0),
        "prompt_ms, all_token_ms and drain_ms together are",
    ),
    (
        "steps beyond their sum",
        record_edit("microbatch", place=MPI, token_ms=[500.0] * 5),
        "the steps in token_ms together",
    ),
    (
        "too few steps",
        record_edit("microbatch", place=MPI, token_ms=[1.0]),
        "token_ms has 1 times, but a request of 6 new tokens",
    ),
    ("no steps", record_edit("microbatch", place=MPI, token_ms=[]), "token_ms has 0 times"),
    ("another TOTAL", record_edit("iteration", place=MPI, total_ms=1e4), "its microbatches give"),
]

ITERATIONS: list[tuple[str, Edit, str]] = [
    (
        "no microbatch",
        lines_edit(drop_record("microbatch", **MPI)),
        "iteration 3 of p000 mpi@3 has 0 microbatches",
    ),
    ("no iteration", lines_edit(drop_record("iteration", **MPI)), "rank-0000.jsonl: "),
    (
        "a second microbatch",
        record_edit("microbatch", place={"arm": "mpi@3", "iteration": 4}, iteration=3),
        "a second microb",
    ),
    (
        "a second iteration",
        record_edit("iteration", place={"arm": "mpi@3", "iteration": 4}, iteration=3),
        "a second iterat",
    ),
    (
        "a further microbatch",
        record_edit("microbatch", place=MPI, ubatch=1),
        "has 1 microbatch [1], but 1 must be in flight",
    ),
    (
        "another round",
        record_edit("iteration", place=MPI, round=7),
        "has round 7, after 2 warm-ups",
    ),
    (
        "a round of warm-up",
        record_edit("iteration", place=MPI, round=None),
        "has round None, after 2 warm-ups",
    ),
    (
        "another arm",
        record_edit("iteration", place=MPI, arm="nccl@3"),
        "arm nccl@3, which run.json does not name",
    ),
    (
        "another point",
        record_edit("phase", place=MPI, point="p009"),
        "point p009, arm mpi@3, which run.json does not name",
    ),
    (
        "the same place twice",
        record_edit("iteration", place=MPI, order=0),
        "2 arms are number 0 in iteration 3",
    ),
    (
        "an end too early",
        lines_edit(lambda text: [*text[: len(text) // 2], text[-1]]),
        "iterations are missing at p000",
    ),
    (
        "verified 1 byte",
        record_edit("verification", place=MPI, nbytes=1),
        "1 bytes of iteration 3 of p000 mpi@3 were verif",
    ),
    (
        "verified none",
        lines_edit(drop_record("verification", **MPI)),
        "the verification of iteration 3 of p000 mpi@3 is missing",
    ),
    (
        "fewer bytes",
        record_edit("microbatch", place=MPI, prompt={"nbytes": 9}),
        "streamed 19243017 bytes, but its cache has",
    ),
    (
        "bytes of none",
        record_edit("microbatch", place={"arm": "none"}, prompt={"nbytes": 9}),
        "streamed 9 bytes, but its",
    ),
    (
        "received fewer",
        record_edit("sink", 1, place=MPI, nbytes=9),
        "the sinks received 9 of 38486016 bytes",
    ),
    (
        "no sink",
        lines_edit(drop_record("sink", **MPI), 1),
        "iteration 3 of p000 mpi@3 has no sink record of this rank",
    ),
    ("a stream alone of fewer", record_edit("alone", nbytes=9), "its stream alone had 9 bytes"),
    (
        "a ceiling above its samples",
        record_edit("ceiling", value=99.0),
        "is 99, but the best of its samples is 10",
    ),
    (
        "a ceiling of nothing",
        record_edit("ceiling", samples=[]),
        "samples: List should have at least 1 item",
    ),
    (
        "a ceiling of 0",
        record_edit("ceiling", value=0.0),
        "ceiling.value: Input should be greater than 0",
    ),
    (
        "deep JSON",
        lines_edit(lambda text: [text[0], f'{{"kind":{HUGE}\n', *text[1:]]),
        "rank-0000.jsonl:2: Invalid JSON",
    ),
    (
        "a kind of no record",
        lines_edit(lambda text: [text[0], '{"kind":"x"}\n', *text[1:]]),
        "rank-0000.jsonl:2: Input tag",
    ),
    (
        "records glued",
        lines_edit(lambda text: [*text[:3], text[3].strip(), *text[4:]]),
        "rank-0000.jsonl:4: Invalid JSON",
    ),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return older_run(tmp_path / "r")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        pytest.param(edit, message, id=name)
        for name, edit, message in (*FOREIGN, *HEADERS, *TIMES, *ITERATIONS)
    ],
)
def test_a_run_whose_records_cannot_be_right_is_refused_and_named(
    folder: Path, edit: Edit, message: str
) -> None:
    edit(folder)
    process_call = process_run(folder, "--format", "json")
    assert process_call.exit_code == 2, process_call.output
    assert isinstance(process_call.exception, SystemExit)
    assert message in process_call.stderr
    assert str(folder) in process_call.stderr
    assert len(process_call.stderr.splitlines()) == 1


def test_a_verification_that_is_ok_with_a_difference_is_refused(folder: Path) -> None:
    edit_record(folder, 0, "verification", lambda record: record.update(where="layer 1"), **MPI)
    assert "is ok, with a difference" in process_run(folder).stderr


def test_the_machine_of_rank_0_is_that_of_the_run(tmp_path: Path) -> None:
    environment = {"machine": "a", "hostnames": ["node-a"]}
    folder = write_run(
        tmp_path / "r", infos=({"environment": {"machine": "b"}}, {}), environment=environment
    )
    assert (
        "rank-0000.jsonl is of another run: its machine is b, that of run.json is a"
        in process_run(folder).stderr
    )


def test_a_rank_file_of_another_run_is_refused_by_its_run_id(tmp_path: Path) -> None:
    run_folder = write_run(tmp_path / "one", factors={"mpi@3": 1.6}, run_id="1111")
    other_folder = write_run(tmp_path / "other", run_id="2222")
    shutil.copy(other_folder / name_rank_file(0), run_folder / name_rank_file(0))
    assert (
        "rank-0000.jsonl is of another run: its run_id is 2222, that of run.json is 1111"
        in process_run(run_folder).stderr
    )


def test_older_records_tell_a_foreign_rank_file_by_the_text_logs(tmp_path: Path) -> None:
    arms, times = [NONE, arm_of("host")], {"host@3": 1.6}
    run_folder = write_run(tmp_path / "one", arms, factors=times, rounds=3, sealed=False, logs=True)
    assert "CHANGED" not in process_run(run_folder).stdout
    other_folder = write_run(tmp_path / "other", arms, rounds=3, sealed=False)
    shutil.copy(other_folder / name_rank_file(0), run_folder / name_rank_file(0))
    assert (
        "CHANGED: rank-0000.jsonl and host@3.log, line 1, have different times of p000 host@3"
        in process_run(run_folder).stdout
    )
