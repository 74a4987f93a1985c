"""Runs that were cut short: what counts, what is missing, and two sessions read as one run.

Pure, over copies of the fixture ``sweep``: its files are cut at random bytes, and a second session
is made of the lines of the run before it was cut.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dejavubench.analysis.continuable import check_can_continue
from dejavubench.analysis.facts.collect_samples import collect
from dejavubench.analysis.facts.host_rounds import read_host_rounds
from dejavubench.analysis.integrity import read_checked
from dejavubench.analysis.reports.report import make_report
from dejavubench.config.continued_run import find_continued_run
from dejavubench.errors import UsageError
from dejavubench.records import RUN_FILE, PointStart, RecordError, Run, read_chunk_times
from dejavubench.records.names import name_rank_file, name_session_file, name_text_log_file
from dejavubench.records.reading import find_largest_numbers, read_sessions
from dejavubench.records.whole_rounds import LargestNumbers, list_missing_rounds

ROUNDS = 3
WARMUP = 1
RANKS = 2
CUT = ("rank-0000.jsonl", "rank-0001.jsonl", "chunks-0000.jsonl", "conditions-0000.jsonl")
POINTS = ("p000", "p001", "p002")
ARMS = ("none", "none#2", "host@3", "mpi@3")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of a file."""
    for line in path.read_bytes().split(b"\n")[:-1]:
        if line:
            yield json.loads(line)


def whole_rounds_of(folder: Path) -> dict[str, set[int]]:
    """Count whole rounds from the bare lines: no rank lacks any record of any arm."""
    kinds = {
        (0, "iteration"),
        (0, "microbatch"),
        (0, "verification"),
        (1, "sink"),
    }
    records_of_iteration: dict[tuple[str, int], set[tuple[str, int, str]]] = {}
    for rank in range(RANKS):
        for record in read_lines(folder / name_rank_file(rank)):
            if (rank, record["kind"]) in kinds:
                place = record["point"], record["iteration"] - WARMUP
                records_of_iteration.setdefault(place, set()).add(
                    (record["arm"], rank, record["kind"])
                )
    expected = {(arm, *kind) for arm in ARMS for kind in kinds}
    rounds: dict[str, set[int]] = {point_id: set() for point_id in POINTS}
    for (point_id, number), records in records_of_iteration.items():
        if records == expected and number >= 0:
            rounds[point_id].add(number)
    return rounds


def cut(folder: Path, seed: int) -> None:
    """Cut files at random bytes. Half of the seeds cut all of them, as a power failure does."""
    chance = random.Random(seed)
    for name in CUT:
        path = folder / name
        content = path.read_bytes()
        if seed % 2 or chance.random() < 0.6:
            path.write_bytes(content[: chance.randrange(len(content) + 1)])


def write_session(folder: Path, original: Path, starts: list[PointStart], session: int) -> None:
    """Write a session as it would be: the original's lines with the numbers of the starts."""
    header = json.loads((original / RUN_FILE).read_text())
    session_header = {
        "schema_version": 1,
        "run_id": header["run_id"],
        "session": session,
        "started_utc": "2026-01-01T00:00:00Z",
        "command": ["dejavubench"],
        "environment": header["environment"],
        "starts": [start.model_dump() for start in starts],
    }
    (folder / name_session_file(session)).write_text(json.dumps(session_header))
    tasks = {start.point: start for start in starts}
    for name in (*CUT, "chunks-0001.jsonl"):
        with (folder / name.replace(".jsonl", f".s{session}.jsonl")).open("w") as file:
            for record in read_lines(original / name):
                if (renumbered := move_record(record, tasks, session)) is not None:
                    file.write(json.dumps(renumbered) + "\n")


def move_record(
    record: dict[str, Any], tasks: dict[str, PointStart], session: int
) -> dict[str, Any] | None:
    """Return a record as a session has it; None if the session does not measure it."""
    if record["kind"] == "end":
        return {"kind": "end"}
    if record["kind"] in ("rank", "conditions"):
        return record | {"session": session}
    if record.get("point") is not None and record["point"] not in tasks:
        return None
    iteration = record.get("iteration")
    if iteration is None:
        return record
    task = tasks[record["point"]]
    if iteration >= WARMUP + task.rounds:
        return None
    own_numbers = {"iteration": task.iteration + iteration}
    if record.get("round") is not None:
        own_numbers["round"] = task.round + record["round"]
    return record | own_numbers


@pytest.fixture
def folder(sweep: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "run"
    shutil.copytree(sweep, copy)
    return copy


@pytest.mark.parametrize("seed", range(50))
def test_a_run_cut_at_random_bytes_is_made_whole_by_the_rounds_that_are_missing(
    seed: int, folder: Path, sweep: Path
) -> None:
    cut(folder, seed)
    whole_rounds = whole_rounds_of(folder)
    numbers = find_largest_numbers(folder)
    starts = list_missing_rounds(read_sessions(folder), numbers)
    tasks = {start.point: start for start in starts}
    for point_id in POINTS:
        missing_rounds_of_point = tasks[point_id].rounds if point_id in tasks else 0
        assert len(whole_rounds[point_id]) + missing_rounds_of_point == ROUNDS
    for start in starts:
        # No file may name a point whose lines are all cut off; −1 then stands for its numbers.
        assert start.iteration == numbers.get(start.point, LargestNumbers()).iteration + 1

    check_can_continue(read_sessions(folder))
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    if starts:
        write_session(folder, sweep, starts, 2)
    assert {name: (folder / name).read_bytes() for name in contents} == contents
    run = read_checked(folder)
    assert list_missing_rounds(read_sessions(folder), find_largest_numbers(folder)) == []
    for point_id, samples in collect(run).items():
        assert {
            arm: len(arm_samples.times.total) for arm, arm_samples in samples.arms.items()
        } == dict.fromkeys(ARMS, ROUNDS)
        rounds = {arm: set(arm_samples.times.total) for arm, arm_samples in samples.arms.items()}
        assert len(set(map(frozenset, rounds.values()))) == 1, "every round has all arms"
        assert whole_rounds[point_id] <= set(rounds["none"])
    make_report(run)  # no reader stumbles


def test_a_run_that_was_killed_before_any_record_can_be_continued(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != RUN_FILE:
            path.unlink()
    check_can_continue(read_sessions(folder))
    assert [
        start.rounds
        for start in list_missing_rounds(read_sessions(folder), find_largest_numbers(folder))
    ] == [3, 3, 3]


@pytest.mark.parametrize("iteration", [1, 2])
@pytest.mark.parametrize("changed", [False, True])
def test_lines_of_an_unfinished_round_do_not_make_a_text_log_differ(
    changed: bool, iteration: int, folder: Path, sweep: Path
) -> None:
    rank_path = folder / name_rank_file(0)
    content = rank_path.read_bytes()
    # Cut right behind the records of an arm that is not the last one of its round.
    mark = f'"kind":"verification","point":"p001","arm":"host@3","iteration":{iteration}'.encode()
    rank_path.write_bytes(content[: content.index(b"\n", content.index(mark)) + 1])
    write_session(
        folder, sweep, list_missing_rounds(read_sessions(folder), find_largest_numbers(folder)), 2
    )
    log = folder / name_text_log_file("p001", "host@3", True)
    if changed:  # a time of the warm-up, which counts in every case
        log.write_text(re.sub(r"took [0-9.]+ ms", "took 1.000000 ms", log.read_text(), count=1))
    changes = [note.text for note in read_checked(folder).notes if note.text.startswith("CHANGED")]
    name = "CHANGED: rank-0000.jsonl and p001-host@3.log, line 1, have different times of p001"
    assert [text.startswith(name) for text in changes] == [True] * changed


def test_a_session_that_is_cut_is_followed_by_a_third(folder: Path, sweep: Path) -> None:
    cut(folder, 7)
    write_session(
        folder, sweep, list_missing_rounds(read_sessions(folder), find_largest_numbers(folder)), 2
    )
    second_path = folder / name_rank_file(rank=0, session=2)
    second_path.write_bytes(second_path.read_bytes()[: len(second_path.read_bytes()) // 2])
    starts = list_missing_rounds(read_sessions(folder), find_largest_numbers(folder))
    assert starts
    write_session(folder, sweep, starts, 3)
    run = read_checked(folder)
    assert [part.number for part in run.sessions] == [1, 2, 3]
    for samples in collect(run).values():
        assert all(len(arm.times.total) == ROUNDS for arm in samples.arms.values())


@pytest.fixture
def cut_folder(folder: Path) -> Path:
    """Return the run, cut in the middle of its second point."""
    content = (folder / name_rank_file(0)).read_bytes()
    middle = content.index(b'"point":"p001","arm":"none","iteration":2')
    (folder / name_rank_file(0)).write_bytes(content[:middle])
    return folder


@pytest.fixture
def continued_run(cut_folder: Path, sweep: Path) -> Run:
    """Return the cut run with a second session that measures what is missing."""
    starts = list_missing_rounds(read_sessions(cut_folder), find_largest_numbers(cut_folder))
    assert [start.point for start in starts] == ["p001", "p002"]
    write_session(cut_folder, sweep, starts, 2)
    return read_checked(cut_folder)


def test_a_report_of_a_cut_run_names_the_command_that_continues_it(cut_folder: Path) -> None:
    notes = make_report(read_checked(cut_folder)).note_texts
    assert any("INCOMPLETE" in note for note in notes)
    assert json.loads((cut_folder / RUN_FILE).read_text())["environment"]["ranks"] == 2
    command = f"mpirun -n 2 dejavubench run --continue {cut_folder}"  # without mpirun it is refused
    assert f"To measure what is missing: {command}" in notes


def test_a_continued_run_is_no_longer_incomplete(continued_run: Run) -> None:
    run_report = make_report(continued_run)
    assert not [note for note in run_report.note_texts if "INCOMPLETE" in note], (
        "the last state counts"
    )
    assert {row.status for row in run_report.rows} == {"ok"}


def test_notes_name_each_session_and_its_conditions(continued_run: Run) -> None:
    notes = make_report(continued_run).notes
    session_notes = [
        note.text for note in notes if note.kind == "session" and note.text.startswith("session ")
    ]
    assert [text.split(",")[0] for text in session_notes] == ["session 1", "session 2"]
    assert "p002 rounds" in session_notes[1]
    conditions = [note.text for note in notes if note.text.startswith("conditions, median")]
    assert [text.split(": ")[1].split(",")[0] for text in conditions] == ["session 1", "session 2"]


def test_rounds_of_hosts_and_times_of_chunks_are_read_from_all_sessions(
    continued_run: Run, cut_folder: Path
) -> None:
    measured = set(collect(continued_run)["p001"].arms["none"].times.total)
    (host,) = read_host_rounds(continued_run)
    assert {number for point, number in host.rounds if point == "p001"} == measured
    times_of_chunks = [times for _, _, times in read_chunk_times(cut_folder)]
    assert measured <= {times.round for times in times_of_chunks if times.point == "p001"}


@pytest.mark.parametrize(
    ("session", "changes", "message"),
    [
        (2, {"run_id": "another"}, "run.s2.json is of another run"),
        (2, {"session": 4}, "run.s2.json describes session 4"),
        (2, {"starts": []}, "has round None, after 1 warm-ups"),
    ],
)
def test_a_session_of_another_run_is_refused(
    session: int, changes: dict[str, Any], message: str, folder: Path, sweep: Path
) -> None:
    cut(folder, 7)
    write_session(
        folder,
        sweep,
        list_missing_rounds(read_sessions(folder), find_largest_numbers(folder)),
        session,
    )
    path = folder / name_session_file(session)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(RecordError, match=message):
        read_checked(folder)


def test_two_sessions_with_the_same_rounds_are_refused(folder: Path, sweep: Path) -> None:
    start = PointStart(point="p000", iteration=0, round=0, rounds=ROUNDS)
    write_session(folder, sweep, [start], 2)
    with pytest.raises(RecordError, match="sessions 1 and 2 both have iteration 0 of p000"):
        read_checked(folder)


def test_an_arm_that_failed_is_given_up_and_the_point_is_whole_without_it(folder: Path) -> None:
    path = folder / name_rank_file(0)
    records = [
        line for line in read_lines(path) if line.get("arm") != "host@3" or line["point"] != "p000"
    ]
    failure = {"kind": "arm-failure", "point": "p000", "arm": "host@3", "iteration": 0}
    failure |= {"phase": "tokens", "rank": 0, "error": "disk full"}
    records = [line for line in records if line["kind"] != "end" and line.get("point") != "p002"]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*records, failure]))
    (start,) = list_missing_rounds(read_sessions(folder), find_largest_numbers(folder))
    assert (start.point, start.rounds, start.without) == ("p002", ROUNDS, [])


def test_a_precision_asks_for_more_unless_the_session_went_on(folder: Path) -> None:
    header = json.loads((folder / RUN_FILE).read_text())
    header["experiment"]["precision"] = 0.01
    (folder / RUN_FILE).write_text(json.dumps(header))
    assert list_missing_rounds(read_sessions(folder), find_largest_numbers(folder)) == []
    for rank in range(RANKS):  # killed before it said that p002 was exact enough
        path = folder / name_rank_file(rank)
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
        marks = [line for line in read_lines(path) if line["kind"] != "end"]
        path.write_text("".join(json.dumps(line) + "\n" for line in marks))
    (start,) = list_missing_rounds(read_sessions(folder), find_largest_numbers(folder))
    assert (start.point, start.rounds) == ("p002", 1)


def test_points_may_be_chosen_and_unknown_ones_are_refused(folder: Path) -> None:
    for rank in range(RANKS):
        (folder / name_rank_file(rank)).write_bytes(b"")
    continued = find_continued_run(folder, ("p002", "p000"))
    assert [start.point for start in continued.starts] == ["p000", "p002"]
    with pytest.raises(UsageError, match=r"there is no point 'p003'; this run has p000 to p002$"):
        find_continued_run(folder, ("p003",))


def test_a_run_whose_bytes_were_wrong_is_refused(folder: Path) -> None:
    path = folder / name_rank_file(0)
    path.write_text(path.read_text().replace('"ok":true', '"ok":false', 1))
    with pytest.raises(UsageError, match=r"verification failed in .*: p000 .*start a new run"):
        find_continued_run(folder, None)


@pytest.mark.parametrize("content", [b"", b"{", b"[]"])
def test_a_cut_run_json_is_refused_by_its_name(content: bytes, folder: Path) -> None:
    (folder / RUN_FILE).write_bytes(content)
    with pytest.raises(UsageError, match=r"--continue: .*run\.json"):
        find_continued_run(folder, None)


def test_earlier_rounds_and_tokens_are_known_to_a_precision_and_a_reference(folder: Path) -> None:
    continued = find_continued_run(folder, None)
    assert continued.starts == ()
    assert {len(tokens) for tokens in continued.earlier_iterations.values()} == {len(ARMS) * ROUNDS}
    with (folder / "tokens.jsonl").open("a") as file:
        file.write('{"point": "p000", "ubatch')  # cut off
    tokens = find_continued_run(folder, None).tokens
    assert tokens == continued.tokens
    assert {place for token in tokens.values() for place in token} == {(0, 0), (0, 1)}
    assert {len(token) for token in tokens["p001"].values()} == {5}


def test_the_text_logs_of_sessions_have_names_of_their_own() -> None:
    log_names = [name_text_log_file("p000", "mpi@3", True, session) for session in (1, 2, 13)]
    assert log_names == ["p000-mpi@3.log", "p000-mpi@3.s2.log", "p000-mpi@3.s13.log"]


def test_left_out_points_are_reported_until_a_session_measures_them(
    folder: Path, sweep: Path
) -> None:
    header = json.loads((folder / RUN_FILE).read_text())
    header["asked_points"] = ["p001"]
    (folder / RUN_FILE).write_text(json.dumps(header))
    for name in (*CUT, "chunks-0001.jsonl"):
        records = [
            line for line in read_lines(folder / name) if line.get("point") in (None, "p001")
        ]
        ends = [{"kind": "end"} if line["kind"] == "end" else line for line in records]
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in ends))
    reasons = {row.point: row.reason for row in make_report(read_checked(folder)).rows}
    assert reasons == {"p000": "left out by --points", "p001": None, "p002": "left out by --points"}
    starts = list_missing_rounds(read_sessions(folder), find_largest_numbers(folder))
    assert [start.point for start in starts] == ["p000", "p002"]
    write_session(folder, sweep, starts, 2)
    assert {row.status for row in make_report(read_checked(folder)).rows} == {"ok"}
