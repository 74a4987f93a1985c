"""The bill of chunks: parts of their latency per arm and phase, from records made by hand."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dejavubench.analysis.breakdown.chunk_bill import LATENCY, Bill, make_bills
from dejavubench.analysis.columns import names_of
from dejavubench.analysis.facts.collect_samples import collect
from dejavubench.analysis.facts.samples import ArmSamples, PhaseTimes, PointSamples
from dejavubench.analysis.reports.report import make_report
from dejavubench.analysis.tables.chunks_part import ChunkRow
from dejavubench.dejavulib.chunk_times import cut
from dejavubench.dejavulib.destinations.registry import DESTINATIONS
from dejavubench.records import (
    ChunkList,
    ChunkPart,
    ChunkTimes,
    ExtentTimes,
    ListedChunk,
    RecordError,
    TimedChunks,
    Verification,
    read_chunk_times,
    read_run,
)
from helpers.cli_calls import call, stdout_of
from helpers.synthetic_runs import AGAIN, NONE, arm_of, point_of, write_run

US, MS = 1000, 1_000_000
STEPS = 5
MPI = [ChunkPart(name=part.name, until=part.until) for part in DESTINATIONS["mpi"].parts]
JOINT = [
    ChunkPart(name="queue", until="begun"),
    ChunkPart(name="wire + acknowledgement", until="complete"),
]


def make_chunk(step: int, layer: int | None = None, extents: int = 24) -> ListedChunk:
    return ListedChunk(
        phase="tokens" if step else "prompt",
        step=step,
        layer=layer,
        layers=1,
        nbytes=128 * extents,
        extents=extents,
    )


CHUNKS = [
    make_chunk(step=0, layer=0),
    make_chunk(step=0, layer=1),
    *(make_chunk(step) for step in range(1, STEPS + 1)),
]


def make_chunk_list(
    arm_name: str = "mpi@3", parts: Sequence[ChunkPart] = MPI, more: int = 0, microbatch: int = 0
) -> ChunkList:
    return ChunkList(
        point="p000",
        arm=arm_name,
        ubatch=microbatch,
        prompt_parts=list(parts),
        token_parts=list(parts),
        chunks=CHUNKS,
        more=more,
    )


def make_chunk_times(
    number: int | None, arm_name: str = "mpi@3", slow: int = 1, **more: Any
) -> ChunkTimes:
    """Chunk times: queue 10, gather 20, post 30, wire 100 and acknowledgement 40 µs, × ``slow``."""
    ready = [1 * MS * place for place in range(len(CHUNKS))]

    def after(us: int) -> list[int]:
        return [begin + us * slow * US for begin in ready]

    columns: dict[str, Any] = {
        "ready": ready,
        "begun": after(10),
        "gathered": after(30),
        "posted": after(60),
        "complete": after(200),
        "sink_ns": [40 * slow * US] * len(CHUNKS),
    }
    return ChunkTimes(
        point="p000",
        arm=arm_name,
        iteration=0 if number is None else number + 2,
        round=number,
        ubatch=0,
        began_ns=10**12,
        **(columns | more),
    )


def write_chunks(
    folder: Path, records: Sequence[ChunkList | ChunkTimes | ExtentTimes], rank: int = 0
) -> None:
    text = "".join(record.model_dump_json() + "\n" for record in records)
    (folder / f"chunks-{rank:04d}.jsonl").write_text(text)


def bills_of(folder: Path) -> dict[tuple[str, str], Bill]:
    run_bills = make_bills(read_chunk_times(folder), collect(read_run(folder)))
    return {(bill.arm_name, bill.phase): bill for bill in run_bills}


def parts_of(bill: Bill) -> dict[str, float]:
    return {part.name: part.sum_ms for part in bill.parts}


def test_parts_are_summed_per_iteration_and_shared_over_the_latency(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", rounds=4)
    write_chunks(
        folder, [make_chunk_list(), *(make_chunk_times(number) for number in (None, 0, 1, 2, 3))]
    )
    run_bills = bills_of(folder)
    assert list(run_bills) == [("mpi@3", "prompt"), ("mpi@3", "tokens")]
    tokens = run_bills["mpi@3", "tokens"]
    assert (tokens.round_count, tokens.chunk_count, tokens.extent_count) == (4, STEPS, 24 * STEPS)
    assert tokens.extent_nbytes == 128
    assert tokens.extent_us is None  # extents are packed first
    expected = {"queue": 10, "gather": 20, "post": 30, "wire": 100, "acknowledgement": 40}
    assert parts_of(tokens) == pytest.approx(
        {name: STEPS * us / 1e3 for name, us in {LATENCY: 200, **expected}.items()}
    )
    assert {part.name: part.median_us for part in tokens.parts[1:]} == pytest.approx(expected)
    shares = [part.share for part in tokens.parts[1:]]
    assert shares == pytest.approx([0.05, 0.1, 0.15, 0.5, 0.2])
    assert sum(shares) == pytest.approx(1)
    assert all(part.p99_us is None for part in tokens.parts)  # 20 chunks


def test_sums_are_of_all_sources_and_microbatches_and_medians_of_all_rounds(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", rounds=3)
    slowness = [1, 1, 7]
    first_microbatch = [make_chunk_times(number, slow=slow) for number, slow in enumerate(slowness)]
    second_microbatch = [times.model_copy(update={"ubatch": 1}) for times in first_microbatch]
    both_microbatches = [*first_microbatch, *second_microbatch]
    write_chunks(
        folder, [make_chunk_list(), make_chunk_list(microbatch=1), *both_microbatches], rank=0
    )
    write_chunks(folder, [make_chunk_list(), *first_microbatch], rank=2)
    prompt = bills_of(folder)["mpi@3", "prompt"]
    assert (prompt.round_count, prompt.chunk_count, prompt.extent_count) == (3, 3 * 2, 3 * 2 * 24)
    assert parts_of(prompt)["wire"] == pytest.approx(3 * 2 * 0.1)  # median of rounds 1, 1, 7
    (wire,) = [part for part in prompt.parts if part.name == "wire"]
    assert wire.median_us == pytest.approx(100)
    assert wire.share == pytest.approx(0.5)


def test_a_p99_is_of_single_chunks(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", rounds=40)
    times = [make_chunk_times(number, slow=10 if number == 39 else 1) for number in range(40)]
    write_chunks(folder, [make_chunk_list(), *times])
    parts = {part.name: part for part in bills_of(folder)["mpi@3", "tokens"].parts}
    assert parts["wire"].p99_us == pytest.approx(1000)  # 5 of 200 chunks are slow
    assert parts["wire"].median_us == pytest.approx(100)
    prompt = {part.name: part for part in bills_of(folder)["mpi@3", "prompt"].parts}
    assert prompt["wire"].p99_us is None  # 80 chunks


def test_rounds_cut_short_and_failed_arms_are_left_out(tmp_path: Path) -> None:
    failed_check = Verification(point="p000", arm="host@3", iteration=3, ok=False, nbytes=9)
    arms = [NONE, AGAIN, arm_of("host"), arm_of("mpi")]
    folder = write_run(tmp_path / "r", arms, rounds=2, bad=failed_check)
    write_chunks(
        folder,
        [
            make_chunk_list("host@3"),
            make_chunk_list(),
            make_chunk_times(0, "host@3"),
            make_chunk_times(1),
            make_chunk_times(7),
        ],
    )
    run_bills = bills_of(folder)
    assert {arm_name for arm_name, _ in run_bills} == {"mpi@3"}
    assert run_bills["mpi@3", "prompt"].round_count == 1


@pytest.mark.parametrize(("level", "naive"), [("0", True), ("0-batched", True), ("1", False)])
def test_naive_levels_have_a_time_per_extent(tmp_path: Path, level: str, naive: bool) -> None:
    arm = arm_of("mpi", level)
    folder = write_run(tmp_path / "r", [NONE, AGAIN, arm], rounds=2)
    write_chunks(
        folder,
        [make_chunk_list(arm.name, JOINT), *(make_chunk_times(n, arm.name) for n in range(2))],
    )
    tokens = bills_of(folder)[arm.name, "tokens"]
    assert list(parts_of(tokens)) == [LATENCY, "queue", "wire + acknowledgement"]
    # A chunk of 24 extents was 200 µs on its way, of which it waited 10 for the helper.
    assert tokens.extent_us == (pytest.approx(190 / 24) if naive else None)


def test_chunks_beyond_the_list_are_in_the_sums_alone(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", rounds=2)
    sums = {"begun": 70, "gathered": 90, "posted": 100, "complete": 1100, "sink_ns": 400}
    beyond_ns = {name: us * US for name, us in sums.items()}
    times = [make_chunk_times(number, beyond=3, beyond_ns=beyond_ns) for number in range(2)]
    write_chunks(folder, [make_chunk_list(more=3), *times])
    tokens = bills_of(folder)["mpi@3", "tokens"]
    assert (tokens.chunk_count, tokens.chunks_beyond, tokens.extent_count) == (
        STEPS + 3,
        3,
        24 * STEPS,
    )
    assert parts_of(tokens)["wire"] == pytest.approx((STEPS * 100 + 600) / 1e3)
    assert parts_of(tokens)[LATENCY] == pytest.approx((STEPS * 200 + 1100) / 1e3)
    assert tokens.parts[0].median_us == pytest.approx(200)
    assert bills_of(folder)["mpi@3", "prompt"].chunks_beyond == 0
    assert any("Chunks beyond 65,536" in note for note in make_report(read_run(folder)).note_texts)


def test_parts_are_those_that_the_library_cuts() -> None:
    """Stamps in any order give the same parts in analysis as ``dejavulib.chunk_times.cut``."""
    rng = np.random.default_rng(5)
    points = _points_of_one_arm(rounds=1)
    for _ in range(50):
        columns: dict[str, Any] = {
            name: [int(ticks) for ticks in rng.integers(0, 50, len(CHUNKS))]
            for name in (
                "ready",
                "begun",
                "gathered",
                "copied",
                "seen",
                "posted",
                "moved",
                "sink_ns",
            )
        }
        columns["complete"] = [60] * len(CHUNKS)
        for name in ("copied", "seen", "moved", "sink_ns"):
            if rng.random() < 0.3:
                columns[name] = None
        ends = ["begun", "gathered", "copied", "seen", "posted", "moved", "received", "complete"]
        parts = [ChunkPart(name=end, until=end) for end in ends]  # type: ignore[arg-type]
        times = make_chunk_times(0, **columns)
        chunks = TimedChunks(0, make_chunk_list(parts=parts), times)
        bill_by_phase = {bill.phase: bill for bill in make_bills([chunks], points)}
        by_hand = [cut(parts, stamps) for stamps in times.stamps()]
        for phase, rows in (("prompt", by_hand[:2]), ("tokens", by_hand[2:])):
            sums = [sum(row[place] for row in rows) / MS for place in range(len(parts))]
            assert [part.sum_ms for part in bill_by_phase[phase].parts[1:]] == pytest.approx(sums)


def _points_of_one_arm(rounds: int) -> dict[str, PointSamples]:
    samples = ArmSamples(
        point_of(), arm_of("mpi"), PhaseTimes(total=dict.fromkeys(range(rounds), 1.0))
    )
    return {"p000": PointSamples(point_of(), {"mpi@3": samples})}


def test_times_of_an_arm_without_a_whole_iteration_are_left_out() -> None:
    cut_short = TimedChunks(4, make_chunk_list("disk@3"), make_chunk_times(0, "disk@3"))
    chunks = TimedChunks(4, make_chunk_list(), make_chunk_times(0))
    run_bills = make_bills([cut_short, chunks], _points_of_one_arm(1))
    assert {bill.arm_name for bill in run_bills} == {"mpi@3"}


@pytest.fixture
def billed_folder(tmp_path: Path) -> Path:
    """Return a run of 6 rounds with times of chunks to a disk and by MPI."""
    folder = write_run(tmp_path / "r", [NONE, AGAIN, arm_of("disk"), arm_of("mpi")], rounds=6)
    disk = [ChunkPart(name=part.name, until=part.until) for part in DESTINATIONS["disk"].parts]
    moved: dict[str, Any] = {"moved": make_chunk_times(0).posted, "sink_ns": None}
    write_chunks(
        folder,
        [
            make_chunk_list("disk@3", disk),
            make_chunk_list(),
            *(make_chunk_times(number, "disk@3", **moved) for number in range(6)),
            *(make_chunk_times(number) for number in range(6)),
        ],
    )
    return folder


def test_the_long_table_shows_the_bill(
    billed_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = stdout_of("process", billed_folder, "--long").splitlines()
    start = lines.index("where a chunk's time goes")
    assert " ".join(lines[start + 1].split()) == "arm phase part sum ms median µs p99 µs share %"
    assert "mpi@3   tokens  acknowledgement   0.200       40.0       –     20.0" in lines
    assert "disk@3  prompt  sync              0.280      140.0       –     70.0" in lines
    assert max(map(len, lines)) <= 80


def test_csv_and_json_have_a_row_for_each_part_of_the_bill(billed_folder: Path) -> None:
    (document,) = json.loads(stdout_of("process", billed_folder, "--format", "json"))
    text = stdout_of("process", billed_folder, "--format", "csv", "--table", "chunks")
    table = list(csv.DictReader(io.StringIO(text)))
    assert tuple(table[0]) == names_of(ChunkRow)
    assert [row["part"] for row in table] == [row["part"] for row in document["chunks"]]
    assert len(table) == 2 * (5 + 6)
    assert {row["extent_bytes"] for row in document["chunks"]} == {128}
    assert sum(
        row["share_pct"] for row in document["chunks"] if row["part"] == LATENCY
    ) == pytest.approx(400)


def test_the_markdown_table_shows_the_bill(billed_folder: Path) -> None:
    assert "| mpi@3 | tokens | wire | 0.500 | 100.0 | – | 50.0 |" in stdout_of(
        "process", billed_folder, "--format", "markdown"
    )


def test_a_run_without_times_has_no_bill(tmp_path: Path) -> None:
    run_report = make_report(read_run(write_run(tmp_path / "r")))
    assert run_report.rows_of_parts["chunks"] == []
    assert not any("chunk" in block.title for block in run_report.blocks)
    assert not any("chunk's latency" in note for note in run_report.note_texts)


def test_a_damaged_file_of_times_is_left_out_with_its_line(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", rounds=2)
    write_chunks(folder, [make_chunk_times(0)])
    process_call = call("process", folder)
    assert process_call.exit_code == 1
    assert (
        "chunks-0000.jsonl:1: times of chunks that no line before has listed" in process_call.stderr
    )


def test_sampled_extents_have_a_table_of_their_own(tmp_path: Path) -> None:
    arm = arm_of("mpi", "0")
    folder = write_run(tmp_path / "r", [NONE, AGAIN, arm], rounds=6)
    sampled = ExtentTimes(
        point="p000",
        arm="mpi@0-sampled",
        of="mpi@0",
        ubatch=0,
        total_ms=9.0,
        extents=4000,
        every=20,
        step=[0] * 50 + [1] * 100 + [2] * 50,
        nbytes=[64] * 50 + [16] * 150,
        ns=[5 * US] * 49 + [70 * US] + [2 * US] * 147 + [30 * US] * 3,
    )
    write_chunks(folder, [make_chunk_list(arm.name), make_chunk_times(0, arm.name), sampled])
    prompt, tokens = make_report(read_run(folder)).rows_of_parts["extents"]
    assert (prompt.arm, prompt.of_arm, prompt.phase) == ("mpi@0-sampled", "mpi@0", "prompt")
    assert (prompt.timed_extents, prompt.extent_bytes, prompt.median_us) == (50, 64, 5)
    assert (prompt.p99_us, prompt.max_us) == (None, 70)
    assert (tokens.timed_extents, tokens.extent_bytes) == (150, 16)
    assert (tokens.median_us, tokens.p99_us, tokens.max_us) == (2, 30, 30)
    (block,) = [
        block for block in make_report(read_run(folder)).blocks if "single ext" in block.title
    ]
    assert block.groups[0][0] == ["mpi@0-sampled", "prompt", "50", "64 B", "5.000", "–", "70.0"]
    of_no_arm = sampled.model_copy(update={"of": "disk@0"})
    write_chunks(folder, [make_chunk_list(arm.name), make_chunk_times(0, arm.name), of_no_arm])
    with pytest.raises(RecordError, match="arm disk@0, on rank 0: no such arm"):
        make_report(read_run(folder))
