"""From records to rows: times, overheads, rates, hosts, and what is wrong with a run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dejavubench.analysis.breakdown.ceiling_shares import sum_ceilings
from dejavubench.analysis.columns import names_of
from dejavubench.analysis.facts import raw_loops
from dejavubench.analysis.facts.arm_destinations import hosts_of
from dejavubench.analysis.facts.collect_samples import collect
from dejavubench.analysis.number_texts import format_rate, format_signed_percent
from dejavubench.analysis.reports.report import make_report
from dejavubench.analysis.tables import ending_part, run_rows
from dejavubench.analysis.tables.process_columns import Row, make_frame
from dejavubench.records import (
    ArmInfo,
    Ceiling,
    End,
    Handover,
    HandoverAtSink,
    Microbatch,
    RankFailure,
    RankInfo,
    RecordError,
    Skipped,
    Verification,
    read_run,
    to_line,
)
from helpers.synthetic_runs import AGAIN, CEILINGS, NONE, arm_of, flat_rows, point_of, write_run


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["arm"]: row for row in flat_rows(read_run(folder))}


def append(folder: Path, rank: int, line: str) -> None:
    with (folder / f"rank-{rank:04d}.jsonl").open("a") as file:
        file.write(line)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (54.296, "54.30"),
        (1.004, "1.00"),
        (0.342_6, "0.343"),
        (0.024_97, "0.0250"),
        (0.000_012_34, "0.0000123"),
        (0.0, "0.00"),
    ],
)
def test_a_small_rate_has_three_significant_digits(value: float | None, text: str) -> None:
    assert format_rate(value, decimal_count=2) == text


@pytest.mark.parametrize(
    ("percent", "text"),
    [
        (0.0, "0.00"),
        (-0.0, "0.00"),
        (0.004_9, "0.00"),
        (-0.004_9, "0.00"),
        (-0.005_1, "−0.01"),
        (0.42, "+0.42"),
        (9150.4, "+9,150"),
    ],
)
def test_a_percentage_that_rounds_to_zero_has_no_sign(percent: float, text: str) -> None:
    assert format_signed_percent(percent) == text


def test_the_overhead_is_recovered_through_the_drift(tmp_path: Path) -> None:
    arms = [NONE, AGAIN, arm_of("host"), arm_of("mpi")]
    rows = rows_of(
        write_run(tmp_path / "r", arms, factors={"host@3": 1.10, "mpi@3": 1.01}, rounds=20)
    )
    assert rows["host@3"]["overhead_pct"] == pytest.approx(10, abs=0.3)
    assert rows["mpi@3"]["overhead_low_pct"] < 1.1 < rows["mpi@3"]["overhead_high_pct"] + 0.2
    assert rows["mpi@3"]["noise_floor_pct"] == pytest.approx(0, abs=0.3)
    assert rows["none"]["overhead_pct"] is None
    assert rows["mpi@3"]["baseline"] == "none and none#2"
    assert (rows["mpi@3"]["samples"], rows["mpi@3"]["warmups"]) == (20, 2)
    assert (
        rows["mpi@3"]["total_low_ms"] <= rows["mpi@3"]["total_ms"] <= rows["mpi@3"]["total_high_ms"]
    )


STREAMED_NBYTES = 4 * (256 + 5) * 12 * 12 * 64 * 2 * 2
"""4 requests, prompt and 5 steps, of gpt2 in 16 bits: layers, heads, head size, K and V, bytes."""


def test_bytes_copies_stall_and_rates_of_streaming_are_added_up(tmp_path: Path) -> None:
    arms = [NONE, AGAIN, arm_of("mpi"), arm_of("disk"), arm_of("host")]
    rows = rows_of(write_run(tmp_path / "r", arms, noise=0.0))
    mpi = rows["mpi@3"]
    assert mpi["streamed_bytes"] == STREAMED_NBYTES
    assert (mpi["copies_per_prompt"], mpi["copies_per_token"]) == (12, 1.0)
    assert mpi["stall_ms"] == pytest.approx(0.3)  # prompt and tokens; the drain is no stall
    assert mpi["largest_lag_bytes"] == STREAMED_NBYTES // 2
    assert mpi["alone_gb_per_s"] == pytest.approx(STREAMED_NBYTES / 4e-3 / 1e9)
    assert (mpi["ceiling"], mpi["ceiling_share_pct"]) == (
        "mpi-windowed",
        pytest.approx(100 * mpi["alone_gb_per_s"] / CEILINGS["mpi-windowed"], abs=0.1),
    )
    assert mpi["total_gb_per_s"] == pytest.approx(STREAMED_NBYTES / 1e6 / mpi["total_ms"])
    assert (mpi["cpu_model_s"], mpi["cpu_helper_s"], mpi["cpu_sink_s"]) == (0.5, 0.02, 0.03)
    assert mpi["verified"] == "yes (14)"
    assert (mpi["hosts"], rows["disk@3"]["hosts"], rows["none"]["hosts"]) == (
        "same host",
        "local",
        None,
    )
    assert (rows["disk@3"]["durability"], rows["disk@3"]["ceiling"]) == ("fdatasync", "disk-write")
    assert rows["host@3"]["ceiling"] == "memory-copy"
    assert rows["none"]["verified"] == "yes (14)"  # of its tokens; nothing is streamed


def test_hidden_fraction_is_one_less_the_excess_over_t_alone(tmp_path: Path) -> None:
    row_of_a_quiet_run = rows_of(
        write_run(tmp_path / "quiet", factors={"mpi@3": 1.002}, noise=0.0, rounds=12)
    )
    none_ms = row_of_a_quiet_run["none"]["total_ms"]
    expected = 100 * (1 - row_of_a_quiet_run["mpi@3"]["overhead_pct"] / 100 * none_ms / 4.0)
    assert row_of_a_quiet_run["mpi@3"]["hidden_pct"] == pytest.approx(expected)
    noisy = rows_of(write_run(tmp_path / "noisy", noise=0.05, rounds=12))
    assert noisy["mpi@3"]["hidden_pct"] is None  # T_alone of 4 ms is below the noise
    single = rows_of(write_run(tmp_path / "single", [NONE, arm_of("mpi")], noise=0.0))
    assert single["mpi@3"]["hidden_pct"] is None  # the noise is not known


@pytest.mark.parametrize(
    ("factor", "noise", "expected"),
    [(1.01, 0.002, "met"), (1.02, 0.02, "unresolved"), (1.05, 0.002, "missed")],
)
def test_verdicts_need_a_target(tmp_path: Path, factor: float, noise: float, expected: str) -> None:
    experiment = {"target_overhead": 0.02}
    folder = write_run(
        tmp_path / "r", factors={"mpi@3": factor}, experiment=experiment, rounds=20, noise=noise
    )
    assert rows_of(folder)["mpi@3"]["verdict"] == expected
    assert rows_of(write_run(tmp_path / "none"))["mpi@3"]["verdict"] is None


@pytest.mark.parametrize(
    ("arms", "baseline"), [([NONE, arm_of("mpi")], "none"), ([arm_of("mpi")], "no baseline")]
)
def test_a_missing_baseline_is_reported(tmp_path: Path, arms: list[ArmInfo], baseline: str) -> None:
    row = rows_of(write_run(tmp_path / "r", arms, factors={"mpi@3": 1.5}))["mpi@3"]
    assert row["baseline"] == baseline
    assert row["overhead_pct"] == (pytest.approx(50, abs=1) if baseline == "none" else None)
    assert row["total_ms"] > 0


@pytest.mark.parametrize(
    "broken", [{"ok": False, "where": "layer 3, K, request 1"}, {"ok": True, "tokens_equal": False}]
)
def test_an_arm_whose_bytes_are_wrong_has_no_times(tmp_path: Path, broken: dict[str, Any]) -> None:
    failed_check = Verification(point="p000", arm="mpi@3", iteration=5, nbytes=1, **broken)
    rows = rows_of(write_run(tmp_path / "r", bad=failed_check))
    assert (rows["mpi@3"]["status"], rows["mpi@3"]["verified"]) == ("FAILED", "FAILED")
    assert rows["mpi@3"]["reason"].startswith("iteration 5: ")
    assert all(
        rows["mpi@3"][name] is None
        for name in names_of(Row)
        if name.endswith(("_ms", "_pct", "_per_s"))
    )
    assert rows["none"]["status"] == "ok"


def test_skipped_points_and_arms_say_why(tmp_path: Path) -> None:
    points = [
        point_of(0),
        point_of(1, input_len=512),
        point_of(2, input_len=1024, skipped="needs 9 GB"),
    ]
    skipped = [
        Skipped(point="p000", arm="mpi@3", reason="no CUDA device"),
        Skipped(point="p001", reason="too long"),
    ]
    rows = flat_rows(read_run(write_run(tmp_path / "r", points=points, skipped=skipped)))
    statuses = {(row["point"], row["arm"]): (row["status"], row["reason"]) for row in rows}
    assert statuses["p000", "none"] == ("ok", None)
    assert statuses["p000", "mpi@3"] == ("SKIPPED", "no CUDA device")
    assert statuses["p001", "none#2"] == ("SKIPPED", "too long")
    assert statuses["p002", "none"] == ("SKIPPED", "needs 9 GB")


def test_cross_rank_times_are_the_maximum_over_sources(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", [NONE], rounds=6, noise=0.0)
    run = read_run(folder)
    row_of_one_source = rows_of(folder)["none"]
    slower_records = [
        microbatch.model_copy(update={"prompt_ms": 2 * microbatch.prompt_ms})
        for _, microbatch in run.records_of(Microbatch)
    ]
    (folder / "rank-0001.jsonl").write_text("".join(map(to_line, slower_records)))
    row_of_two_sources = rows_of(folder)["none"]
    assert row_of_two_sources["prompt_ms"] == pytest.approx(2 * row_of_one_source["prompt_ms"])
    assert row_of_two_sources["token_ms"] == row_of_one_source["token_ms"]
    assert row_of_two_sources["cpu_model_s"] == 2 * row_of_one_source["cpu_model_s"]
    assert row_of_two_sources["statistic"] == "median over rounds of the maximum over sources"


def test_a_round_that_was_cut_short_does_not_count(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", [NONE], rounds=5)
    run = read_run(folder)
    last_microbatch = [microbatch for _, microbatch in run.records_of(Microbatch)][-1]
    append(
        folder,
        0,
        to_line(last_microbatch.model_copy(update={"round": 5, "iteration": 7, "prompt_ms": 1e9})),
    )
    samples = collect(read_run(folder))["p000"].arms["none"]
    assert sorted(samples.times.prompt) == sorted(samples.times.total) == [0, 1, 2, 3, 4]


def test_ceilings_of_the_point_go_first_and_ranks_add_up(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r")

    def ceiling_line(value: float, unit: str = "GB/s", **place: Any) -> str:
        return to_line(
            Ceiling(
                name="mpi-windowed", unit=unit, value=value, samples=[value], shape="1 MiB", **place
            )
        )

    append(folder, 1, ceiling_line(5.0) + ceiling_line(7.0))
    assert sum_ceilings(read_run(folder), "mpi-windowed", "p000", None) == (17.0, 2)
    of_point = ceiling_line(3.0, point="p000") + ceiling_line(900.0, unit="MB/s", point="p000")
    append(folder, 1, of_point)
    assert sum_ceilings(read_run(folder), "mpi-windowed", "p000", None) == (3.0, 1)
    assert sum_ceilings(read_run(folder), "pcie", "p000", None) is None


def test_a_hand_over_stands_beside_the_time_of_its_bytes_and_of_one_step(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", [arm_of("mpi")], [point_of(handed_over=1)], rounds=3)
    rank_file = folder / "rank-0000.jsonl"
    left = 40_000_000  # 4 ms at the 10 GB/s of mpi-windowed
    rank_file.write_text(
        re.sub(r'("drain":{[^}]*"lag_nbytes":)0', rf"\g<1>{left}", rank_file.read_text())
    )
    for round_number, token_ms in enumerate((2.5, 2.0, 3.0)):
        iteration: dict[str, Any] = {
            "point": "p000",
            "arm": "mpi@3",
            "iteration": 2 + round_number,
            "round": round_number,
        }
        append(folder, 0, to_line(Handover(**iteration, ms=8.0)))
        at_sink = HandoverAtSink(
            **iteration, waited_ms=100.0, first_ms=3.0, token_ms=[token_ms, 9.0, token_ms]
        )
        append(folder, 1, to_line(at_sink))
    row = rows_of(folder)["mpi@3"]
    assert (row["handover_ms"], row["sink_token_ms"]) == (8.0, 2.5)
    assert row["handover_floor_ms"] == pytest.approx(4.0 + 2.5)
    sentences = [
        sentence
        for _, content in make_report(read_run(folder)).parts
        for sentence in content.sentences
    ]
    assert any("The floor is 6.50 ms: the bytes left" in sentence for sentence in sentences)


def test_a_destination_is_held_against_its_raw_loop_pair_by_pair(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r")
    for name, samples in (("mpi-windowed", [10.0, 2.0, 4.0]), ("mpi-destination", [9.0, 2.0, 4.4])):
        ceiling = Ceiling(
            name=name, unit="GB/s", value=max(samples), samples=samples, shape="1 MiB", point="p000"
        )
        append(folder, 0, to_line(ceiling))
    ((label, ratio),) = raw_loops.compare_with_raw_loops(read_run(folder)).items()
    assert label == "mpi-destination / mpi-windowed"
    assert ratio.median == pytest.approx(1.0)
    assert ratio.sample_count == 3
    assert any(
        "mpi-destination / mpi-windowed 100.0 [" in note
        for note in make_report(read_run(folder)).note_texts
    )


def test_no_share_where_only_some_sources_measured_the_ceiling(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r")
    info = RankInfo(rank=2, role="source", host="node-a", pid=1, cores=[0], threads=1)
    (folder / "rank-0002.jsonl").write_text(to_line(info) + to_line(End()))
    row = rows_of(folder)["mpi@3"]
    assert row["ceiling_gb_per_s"] == 10.0
    assert row["ceiling_share_pct"] is None
    assert any(
        "not every source measured the ceiling" in note
        for note in make_report(read_run(folder)).note_texts
    )


@pytest.mark.parametrize(
    ("sinks", "expected"),
    [
        (["node-a", "node-a"], "same host"),
        (["node-b", "node-c"], "different hosts"),
        (["node-a", "node-b"], "some on"),
    ],
)
def test_pairs_on_one_host_are_labelled(tmp_path: Path, sinks: list[str], expected: str) -> None:
    folder = write_run(tmp_path / "r")
    for rank in range(4):
        info = RankInfo(
            rank=rank,
            role="source" if rank < 2 else "sink",
            host="node-a" if rank < 2 else sinks[rank - 2],
            pid=1,
            cores=[0],
            threads=1,
            peers=[(rank + 2) % 4],
        )
        (folder / f"rank-{rank:04d}.jsonl").write_text(to_line(info))
    label = hosts_of(read_run(folder), arm_of("mpi"))
    assert label is not None
    assert label.startswith(expected)


def test_a_killed_run_names_rank_and_phase(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", [NONE, arm_of("mpi")], rounds=2)
    file = folder / "rank-0001.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]) + '{"kind":"sink","poi')
    run = read_run(folder)
    notes = [note.text for note in ending_part.make_notes(run)]
    assert notes[0] == (
        "INCOMPLETE: rank 1 (sink on node-a) stopped in phase tokens, point p000, arm mpi@3, "
        "iteration 3, without an End record"
    )
    assert (
        "rank-0001.jsonl: the last line is cut off, as its process ended while writing it" in notes
    )
    assert not ending_part.is_complete(run)
    assert ending_part.describe_health(run) == "INCOMPLETE: 1 of 2 ranks of r wrote no End record."


def test_failures_and_absent_ranks_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", ended=False)
    append(folder, 0, to_line(RankFailure(phase="drain", error="OSError: no space left")))
    (folder / "rank-0001.jsonl").unlink()
    notes = [note.text for note in ending_part.make_notes(read_run(folder))]
    assert notes[0] == "FAILED: rank 0 (source on node-a), drain: OSError: no space left"
    assert "INCOMPLETE: rank 1 has no file" in notes
    (folder / "rank-0000.jsonl").unlink()
    assert [(note.kind, note.severity) for note in ending_part.make_notes(read_run(folder))] == [
        ("incomplete", "error")
    ]


def test_a_good_run_has_no_notes(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "r"))
    assert ending_part.make_notes(run) == []
    assert ending_part.describe_health(run) == ""
    assert ending_part.is_complete(run)


def test_records_of_an_unknown_arm_are_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", rounds=1)
    header = json.loads((folder / "run.json").read_text())
    header["arms"] = header["arms"][:2]
    (folder / "run.json").write_text(json.dumps(header))
    with pytest.raises(RecordError, match=r"arm mpi@3, which run\.json does not name"):
        run_rows.run_rows(read_run(folder))


def test_the_frame_has_every_column(tmp_path: Path) -> None:
    table = make_frame(run_rows.run_rows(read_run(write_run(tmp_path / "r"))))
    assert tuple(table.columns) == names_of(Row)
    assert list(table["arm"]) == ["none", "none#2", "mpi@3"]
