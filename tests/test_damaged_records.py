"""Records that are damaged, foreign or senseless: each is refused or noted, none changes a number in silence."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from mutations import edit_header, edit_lines, edit_record, mutate, without_seals
from synthetic import AGAIN, NONE, arm, point, write_run

from dejavubench.analysis import plotdata
from dejavubench.analysis.columns import flat
from dejavubench.analysis.find import find
from dejavubench.analysis.report import report
from dejavubench.analysis.rows import Row
from dejavubench.cli.figures import figures
from dejavubench.cli.process import process
from dejavubench.records import rank_file

ARMS = [NONE, AGAIN, arm("mpi"), arm("host"), arm("disk")]
Edit = Callable[[Path], Any]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(process, [str(argument) for argument in arguments])


def shown(result: Result) -> list[dict[str, Any]]:
    return json.loads(result.stdout)[0]["rows"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run as older programs have written them, so that nothing but the rules tells what is wrong with it."""
    return write_run(
        tmp_path / "r",
        ARMS,
        rounds=4,
        sealed=False,
        experiment={"target_overhead": 0.02, "verify": True},
    )


def header(change: Callable[[dict[str, Any]], Any]) -> Edit:
    return lambda folder: edit_header(folder, change)


def record(kind: str, rank: int = 0, /, where: dict[str, Any] | None = None, **values: Any) -> Edit:
    return lambda folder: edit_record(
        folder, rank, kind, lambda found: found.update(values), **(where or {})
    )


def lines(change: Callable[[list[str]], list[str]], rank: int = 0) -> Edit:
    return lambda folder: edit_lines(folder, rank, change)


def copied(name: str, to: str) -> Edit:
    return lambda folder: shutil.copy(folder / name, folder / to)


def swapped(folder: Path) -> None:
    first, second, aside = folder / rank_file(0), folder / rank_file(1), folder / "aside"
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def without(kind: str, **where: Any) -> Callable[[list[str]], list[str]]:
    """Without the first line of a kind that has these values."""

    def change(text: list[str]) -> list[str]:
        found = [json.loads(line) for line in text]
        wanted = where | {"kind": kind}
        first = next(n for n, item in enumerate(found) if wanted.items() <= item.items())
        return text[:first] + text[first + 1 :]

    return change


MPI = {"arm": "mpi@3", "iteration": 3}
HUGE = "[" * 100_000

FOREIGN: list[tuple[str, Edit, str]] = [
    (
        "left over",
        copied(rank_file(1), rank_file(2)),
        "rank-0002.jsonl holds the records of rank 1",
    ),
    ("renamed", record("rank", 1, rank=0), "rank-0001.jsonl holds the records of rank 0"),
    ("swapped", swapped, "rank-0000.jsonl holds the records of rank 1"),
    (
        "two ranks in a file",
        lines(lambda text: [*text[:-1], *text]),
        "holds the records of several ranks",
    ),
    (
        "without its beginning",
        lines(lambda text: text[1:]),
        "does not begin with the record of its rank",
    ),
    ("another host", record("rank", 1, host="node-z"), "it was on node-z, the run on node-a"),
    (
        "another role",
        record("rank", 1, role="source"),
        "a source of stage 0 and tensor rank 0, which rank 1",
    ),
    (
        "too few ranks",
        header(lambda top: top["environment"].update(ranks=1)),
        "this one has 1 ranks",
    ),
    (
        "peers that differ",
        record("rank", 1, peers=[]),
        "names rank 1 as its peer, whose file says otherwise",
    ),
    (
        "a record behind the end",
        lines(lambda text: [*text, '{"kind":"end"}\n'], 1),
        "goes on after its end",
    ),
]

HEADERS: list[tuple[str, Edit, str]] = [
    (
        "an arm twice",
        header(lambda top: top["arms"].append(top["arms"][2])),
        "names arm mpi@3 2 times",
    ),
    (
        "a point twice",
        header(lambda top: top["points"].append(top["points"][0])),
        "names point p000 2 times",
    ),
    ("no arm", header(lambda top: top.update(arms=[])), "run.json names no arm"),
    (
        "another mode",
        header(lambda top: top["arms"][3].update(mode="disk")),
        "arm host@3 has mode disk",
    ),
    (
        "an unknown mode",
        header(lambda top: top["arms"][3].update(mode="$x")),
        "has mode '$x', which is none of",
    ),
    (
        "a baseline that streams",
        header(lambda top: top["arms"][0].update(role="streaming")),
        "cannot have the role streaming",
    ),
    (
        "sizes that do not fit",
        header(lambda top: top["points"][0].update(layer_num=13)),
        "but its sizes give",
    ),
    (
        "a size of 0",
        header(lambda top: top["points"][0].update(ubatch_size=0)),
        "points.0.ubatch_size",
    ),
    ("environment of another type", header(lambda top: top.update(environment=[1])), "environment"),
    (
        "hosts of another type",
        header(lambda top: top["environment"].update(hostnames=3)),
        "environment.hostnames",
    ),
    (
        "cores of another type",
        header(lambda top: top["environment"].update(cores="x")),
        "environment.cores",
    ),
    (
        "versions of another type",
        header(lambda top: top["environment"].update(versions=1)),
        "environment.versions",
    ),
    (
        "gpu of another type",
        header(lambda top: top["environment"].update(gpu="x")),
        "environment.gpu",
    ),
    ("experiment of another type", header(lambda top: top.update(experiment=1)), "experiment"),
    (
        "target of another type",
        header(lambda top: top["experiment"].update(target_overhead="x")),
        "target_overhead",
    ),
    (
        "a target that is true",
        header(lambda top: top["experiment"].update(target_overhead=True)),
        "target_overhead",
    ),
    (
        "a schema that is true",
        header(lambda top: top.update(schema_version=True)),
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
        "run.json: recursion limit",
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
        record("microbatch", where=MPI, total_ms=float("nan")),
        "total_ms: Input should be a finite number",
    ),
    (
        "infinite",
        record("microbatch", where=MPI, token_ms=[float("inf")] * 5),
        "token_ms.0: Input should be a finite",
    ),
    (
        "negative",
        record("iteration", where=MPI, total_ms=-5.0),
        "iteration.total_ms: Input should be greater than or equal",
    ),
    (
        "a none of 0",
        record("iteration", where={"arm": "none"}, total_ms=0),
        "total_ms: Input should be greater than or equal",
    ),
    (
        "a prompt of 0",
        record("microbatch", where=MPI, prompt_ms=0.0),
        "prompt_ms: Input should be greater than or equal",
    ),
    (
        "a drain below 0",
        record("microbatch", where=MPI, drain_ms=-1e-9),
        "drain_ms: Input should be greater than or",
    ),
    (
        "endless",
        record("microbatch", where=MPI, prompt_ms=1e300),
        "prompt_ms: Input should be less than or equal",
    ),
    (
        "a text",
        record("microbatch", where=MPI, prompt_ms="400.0"),
        "prompt_ms: Input should be a valid number",
    ),
    (
        "a truth",
        record("microbatch", where=MPI, prompt_ms=True),
        "prompt_ms: Input should be a valid number",
    ),
    (
        "no sum",
        record("microbatch", where=MPI, total_ms=1000.0),
        "prompt_ms, all_token_ms and drain_ms together are",
    ),
    (
        "steps beyond their sum",
        record("microbatch", where=MPI, token_ms=[500.0] * 5),
        "the steps in token_ms together",
    ),
    (
        "too few steps",
        record("microbatch", where=MPI, token_ms=[1.0]),
        "token_ms has 1 times, a request of 6 new tokens",
    ),
    ("no steps", record("microbatch", where=MPI, token_ms=[]), "token_ms has 0 times"),
    ("another TOTAL", record("iteration", where=MPI, total_ms=1e4), "its microbatches make it"),
]

ITERATIONS: list[tuple[str, Edit, str]] = [
    (
        "no microbatch",
        lines(without("microbatch", **MPI)),
        "iteration 3 of p000 mpi@3 has 0 microbatches",
    ),
    ("no iteration", lines(without("iteration", **MPI)), "rank-0000.jsonl: "),
    (
        "a second microbatch",
        record("microbatch", where={"arm": "mpi@3", "iteration": 4}, iteration=3),
        "a second microb",
    ),
    (
        "a second iteration",
        record("iteration", where={"arm": "mpi@3", "iteration": 4}, iteration=3),
        "a second iterat",
    ),
    (
        "a further microbatch",
        record("microbatch", where=MPI, ubatch=1),
        "has 1 microbatch [1], 1 must be in flight",
    ),
    ("another round", record("iteration", where=MPI, round=7), "says round 7, after 2 warm-ups"),
    (
        "a round of warm-up",
        record("iteration", where=MPI, round=None),
        "says round None, after 2 warm-ups",
    ),
    (
        "another arm",
        record("iteration", where=MPI, arm="nccl@3"),
        "arm nccl@3, which run.json does not name",
    ),
    (
        "another point",
        record("phase", where=MPI, point="p009"),
        "point p009, arm mpi@3, which run.json does not name",
    ),
    (
        "the same place twice",
        record("iteration", where=MPI, order=0),
        "2 arms are number 0 in iteration 3",
    ),
    (
        "an end too early",
        lines(lambda text: [*text[: len(text) // 2], text[-1]]),
        "iterations are missing at p000",
    ),
    (
        "verified 1 byte",
        record("verification", where=MPI, nbytes=1),
        "1 bytes of iteration 3 of p000 mpi@3 were verif",
    ),
    (
        "verified none",
        lines(without("verification", **MPI)),
        "the verification of iteration 3 of p000 mpi@3 is missing",
    ),
    (
        "fewer bytes",
        record("microbatch", where=MPI, prompt={"nbytes": 9}),
        "has streamed 19243017 bytes, its cache has",
    ),
    (
        "bytes of none",
        record("microbatch", where={"arm": "none"}, prompt={"nbytes": 9}),
        "has streamed 9 bytes, its",
    ),
    (
        "received fewer",
        record("sink", 1, where=MPI, nbytes=9),
        "the sinks have received 9 bytes of 38486016",
    ),
    (
        "no sink",
        lines(without("sink", **MPI), 1),
        "iteration 3 of p000 mpi@3 has no record of what this rank did in it",
    ),
    ("a stream alone of fewer", record("alone", nbytes=9), "its stream alone had 9 bytes"),
    (
        "a ceiling above its samples",
        record("ceiling", value=99.0),
        "is 99, the best of its samples 10",
    ),
    (
        "a ceiling of nothing",
        record("ceiling", samples=[]),
        "samples: List should have at least 1 item",
    ),
    (
        "a ceiling of 0",
        record("ceiling", value=0.0),
        "ceiling.value: Input should be greater than 0",
    ),
    (
        "deep JSON",
        lines(lambda text: [text[0], f'{{"kind":{HUGE}\n', *text[1:]]),
        "rank-0000.jsonl:2: Invalid JSON",
    ),
    (
        "a kind of no record",
        lines(lambda text: [text[0], '{"kind":"x"}\n', *text[1:]]),
        "rank-0000.jsonl:2: Input tag",
    ),
    (
        "records glued",
        lines(lambda text: [*text[:3], text[3].strip(), *text[4:]]),
        "rank-0000.jsonl:4: Invalid JSON",
    ),
]


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
    result = call(folder, "--format", "json")
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert message in result.stderr
    assert str(folder) in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_difference_that_says_it_is_ok_is_refused(folder: Path) -> None:
    edit_record(folder, 0, "verification", lambda found: found.update(where="layer 1"), **MPI)
    assert "found a difference and says that it is ok" in call(folder).stderr


def test_the_machine_of_rank_0_is_that_of_the_run(tmp_path: Path) -> None:
    environment = {"machine": "a", "hostnames": ["node-a"]}
    folder = write_run(
        tmp_path / "r", infos=({"environment": {"machine": "b"}}, {}), environment=environment
    )
    assert (
        "rank-0000.jsonl is of another run: its machine is b, that of run.json a"
        in call(folder).stderr
    )


def test_a_rank_file_of_another_run_is_refused_by_its_run_id(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", factors={"mpi@3": 1.6}, run_id="1111")
    other = write_run(tmp_path / "other", run_id="2222")
    shutil.copy(other / rank_file(0), one / rank_file(0))
    assert (
        "rank-0000.jsonl is of another run: its run_id is 2222, that of run.json 1111"
        in call(one).stderr
    )


def test_older_records_tell_a_foreign_rank_file_by_the_text_logs(tmp_path: Path) -> None:
    arms, times = [NONE, arm("host")], {"host@3": 1.6}
    one = write_run(tmp_path / "one", arms, factors=times, rounds=3, sealed=False, logs=True)
    assert "CHANGED" not in call(one).stdout
    other = write_run(tmp_path / "other", arms, rounds=3, sealed=False)
    shutil.copy(other / rank_file(0), one / rank_file(0))
    assert (
        "CHANGED: rank-0000.jsonl and host@3.log, line 1, say different times of p000 host@3"
        in call(one).stdout
    )


# ---- what is no rank's file ----


def test_copies_of_rank_files_are_left_out_and_named(folder: Path) -> None:
    before = shown(call(folder, "--format", "json"))
    for name in ("rank-0000 (copy).jsonl", "rank-00001.jsonl", "rank-x.jsonl", "rank-٣٣٣٣.jsonl"):
        shutil.copy(folder / rank_file(0), folder / name)
    result = call(folder, "--format", "json")
    assert result.exit_code == 0
    assert shown(result) == before
    notes = json.loads(result.stdout)[0]["notes"]
    assert sum("is ignored: a rank's file is named like" in note for note in notes) == 4


@pytest.mark.parametrize("name", ["rank-0001.jsonl", "run.json"])
@pytest.mark.parametrize("kind", ["folder", "loop", "pipe"])
def test_what_is_no_regular_file_is_refused(folder: Path, name: str, kind: str) -> None:
    (folder / name).unlink()
    if kind == "folder":
        (folder / name).mkdir()
    elif kind == "loop":
        (folder / name).symlink_to(folder / name)
    else:
        os.mkfifo(folder / name)
    result = call(folder)
    assert result.exit_code == 2
    assert str(folder / name) in result.stderr
    assert ("Too many levels" if kind == "loop" else "not a regular file") in result.stderr


def test_a_note_of_who_stopped_first_may_be_anything(folder: Path) -> None:
    (folder / "first-exit-0000.json").mkdir()
    assert call(folder).exit_code == 0


# ---- what was changed ----


@pytest.mark.parametrize(
    "edit",
    [
        record("microbatch", where=MPI, cpu_model_s=0.7),
        record("alone", ms=3.0),
        header(lambda top: top["experiment"].update(target_overhead=0.5)),
        header(lambda top: top["points"][0].update(kv_layout="ft")),
    ],
)
def test_what_was_changed_since_the_run_is_noted(tmp_path: Path, edit: Edit) -> None:
    folder = write_run(tmp_path / "r", ARMS, rounds=4, figure="fig25")
    assert "CHANGED" not in call(folder).stdout
    edit(folder)
    text = call(folder).stdout
    assert "CHANGED: r" in text
    assert "was changed after the run, so its numbers may not be the measured ones" in " ".join(
        text.split()
    )
    (drawing,), _ = plotdata.drawings(find([folder]).runs)
    assert "CHANGED: r" in drawing.caption


def test_other_line_ends_and_a_byte_order_mark_change_nothing(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", rounds=2)
    before = json.loads(call(folder, "--format", "json").stdout)
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert json.loads(call(folder, "--format", "json").stdout) == before


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (record("microbatch", where=MPI, drain={"stall_ms": 1e6}), "stall of 1e+06 ms, where"),
        (record("microbatch", where=MPI, token_ms=[0.01] * 5), "ALL-TOKEN of"),
        (
            record("microbatch", where=MPI, prompt={"nbytes": 19243008, "copies": 99}),
            "streamed in 104 copies, an earlier",
        ),
    ],
)
def test_what_may_be_so_but_is_odd_is_noted(folder: Path, edit: Edit, words: str) -> None:
    assert words not in " ".join(call(folder).stdout.split())
    edit(folder)
    assert words in " ".join(call(folder).stdout.split())


def test_the_experiment_of_older_records_is_checked_by_its_hash(folder: Path) -> None:
    edit_header(folder, lambda top: top["experiment"].update(target_overhead=0.5))
    assert (
        "CHANGED: run.json: the experiment does not match its experiment_hash"
        in call(folder).stdout
    )


# ---- all that is good is shown ----


def test_good_runs_are_shown_and_bad_ones_named(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    for name in ("a", "b", "c"):
        write_run(logs / name, rounds=2, figure="fig25")
    edit_record(logs / "b", 0, "iteration", lambda found: found.update(total_ms=-1.0))
    result = call(logs, tmp_path / "absent", "--format", "json")
    assert result.exit_code == 1
    assert [run["rows"][0]["run"] for run in json.loads(result.stdout)] == ["a", "c"]
    bad, absent = sorted(result.stderr.splitlines(), key=lambda line: "absent" in line)
    assert bad.startswith(f"left out: {logs / 'b'}/rank-0000.jsonl:")
    assert absent == f"left out: {tmp_path / 'absent'} does not exist"

    drawn = CliRunner().invoke(figures, [str(logs), "-o", str(tmp_path / "out")])
    assert drawn.exit_code == 1
    assert {Path(line).stem for line in drawn.stdout.splitlines()} == {
        "fig25-gpt2-a",
        "fig25-gpt2-c",
    }
    assert f"left out: {logs / 'b'}/rank-0000.jsonl:" in drawn.stderr


def test_files_of_a_run_are_answered_with_its_folder(folder: Path) -> None:
    for name in ("run.json", rank_file(0)):
        assert (
            f"{folder / name} is one of the files of a run; give the run's folder, {folder}"
            in call(folder / name).stderr
        )


def test_killed_runs_are_shown_wherever_they_ended(tmp_path: Path) -> None:
    """Cut anywhere, with the sink's file cut at the same place, no rule is broken."""
    whole = write_run(
        tmp_path / "whole", rounds=1, warmup=1, points=[point(0), point(1, input_len=64)]
    )
    text, of_sink = (
        (whole / rank_file(rank)).read_text().splitlines(keepends=True) for rank in (0, 1)
    )
    iterations = 0
    for cut in range(1, len(text)):
        iterations += '"kind":"iteration"' in text[cut - 1]
        (whole / rank_file(0)).write_text("".join(text[:cut]) + text[cut][:20])
        (whole / rank_file(1)).write_text("".join(of_sink[: 1 + 2 * iterations]))
        found = find([whole])
        assert found.bad == []
        assert any("INCOMPLETE" in note for note in report(found.runs[0]).notes)


def test_an_arm_that_went_no_further_does_not_spoil_the_others(folder: Path) -> None:
    def without_the_end_of_disk(text: list[str]) -> list[str]:
        kept = [line for line in text[:-1] if not re.search('"disk@3","iteration":[45]', line)]
        assert len(text) - len(kept) == 1 + 2 * 4
        reason = {"kind": "skipped", "point": "p000", "arm": "disk@3", "reason": "no space left"}
        return [*kept, json.dumps(reason) + "\n", text[-1]]

    edit_lines(folder, 0, without_the_end_of_disk)
    result = call(folder, "--format", "json")
    assert result.exit_code == 0, result.stderr
    assert [row["status"] for row in shown(result)] == ["ok", "ok", "ok", "ok", "SKIPPED"]


FAILED = {
    "kind": "arm-failure",
    "point": "p000",
    "arm": "disk@3",
    "iteration": 5,
    "phase": "tokens",
    "rank": 0,
}
NO_ROOM = FAILED | {"error": "no space left"}


def without_the_rest_of_disk(*added: dict[str, Any]) -> Callable[[list[str]], list[str]]:
    """The disk's arm ends before iteration 5, the last one; further records come before the end."""

    def change(text: list[str]) -> list[str]:
        kept = [line for line in text[:-1] if not re.search('"disk@3","iteration":5', line)]
        return [*kept, *(json.dumps(record) + "\n" for record in added), text[-1]]

    return change


def test_an_arm_whose_device_failed_does_not_spoil_the_others(folder: Path) -> None:
    edit_lines(folder, 0, without_the_rest_of_disk(NO_ROOM))
    result = call(folder, "--format", "json")
    assert result.exit_code == 0, result.stderr
    assert [row["status"] for row in shown(result)] == ["ok", "ok", "ok", "ok", "FAILED"]
    assert shown(result)[4]["reason"] == "iteration 5, phase tokens, rank 0: no space left"


@pytest.mark.parametrize(
    ("added", "rank", "message"),
    [
        ([NO_ROOM | {"arm": "host@3"}], 0, "arm host@3, which does not stream to disk"),
        ([NO_ROOM, NO_ROOM], 0, "a second failure of arm disk@3 at p000"),
        (
            [NO_ROOM | {"iteration": 3}],
            0,
            "iteration 4 of p000 disk@3 was measured after the arm had failed",
        ),
        (
            [NO_ROOM | {"iteration": -1}],
            0,
            "arm-failure.iteration: Input should be greater than or equal to 0",
        ),
        ([NO_ROOM], 1, "a record of kind arm-failure, which rank 1 (a sink) does not write"),
    ],
)
def test_a_failure_of_an_arm_that_cannot_be_is_refused(
    folder: Path, added: list[dict[str, Any]], rank: int, message: str
) -> None:
    edit_lines(folder, 0, without_the_rest_of_disk(*([] if rank else added)))
    if rank:
        edit_lines(
            folder,
            rank,
            lambda text: [*text[:-1], *(json.dumps(record) + "\n" for record in added), text[-1]],
        )
    result = call(folder)
    assert result.exit_code == 2, result.output
    assert message in result.stderr


# ---- anything at all ----


@pytest.mark.parametrize("sealed", [True, False])
def test_no_damage_is_a_traceback_and_none_changes_a_number_in_silence(
    tmp_path: Path, sealed: bool
) -> None:
    whole = write_run(tmp_path / "whole", [NONE, AGAIN, arm("mpi"), arm("disk")], rounds=2)
    whole = whole if sealed else without_seals(whole)
    (run,) = find([whole]).runs
    right = report(run)
    folder, refused, noted = tmp_path / "mutant", 0, 0
    for seed in range(100):
        shutil.copytree(whole, folder)
        what = mutate(folder, random.Random(seed))
        found = find([folder])
        assert len(found.runs) + len(found.bad) == 1, what
        for each in found.runs:
            read = report(each)
            plotdata.drawings([each])
            noted += read.notes != right.notes
            if read.notes == right.notes:
                but = () if sealed else TOLD_ONCE
                assert numbers(read.rows, but) == numbers(right.rows, but), (seed, what)
        refused += len(found.bad)
        shutil.rmtree(folder)
    assert refused > 50
    assert noted > 10 or not sealed


TOLD_ONCE = (
    *("model", "kv_layout", "stall_ms", "cpu_model_s", "cpu_helper_s", "cpu_sink_s"),
    *(
        "alone_ms",
        "alone_gb_per_s",
        "ceiling_share_pct",
        "hidden_pct",
        "prompt_tflop_per_s",
        "token_gb_per_s",
    ),
)
"""Columns of what older records say in one place alone, so that no rule can tell whether it was changed."""


def numbers(rows: list[Row], but: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in flat(row).items() if key not in ("run", *but)} for row in rows
    ]
