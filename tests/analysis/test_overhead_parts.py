"""Overhead = stall + drain + rest, per phase, from paired rounds."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from dejavubench.analysis.breakdown.overhead_parts import (
    MEASURED_PARTS,
    PARTS,
    PHASES,
    compute_overhead_parts,
)
from dejavubench.analysis.columns import names_of
from dejavubench.analysis.facts.samples import ArmSamples, PointSamples, RoundValues
from dejavubench.analysis.reports.report import make_report
from dejavubench.analysis.tables.overhead_part import PartRow
from dejavubench.records import ArmInfo, Microbatch, PhaseStreaming, Verification, read_run, to_line
from helpers.cli_calls import stdout_of, usage_error_of
from helpers.synthetic_runs import (
    AGAIN,
    GPU_ENVIRONMENT,
    NONE,
    arm_of,
    flat_rows,
    on_gpu,
    point_of,
    write_run,
)

ROUNDS = 24
PROMPT, TOKENS = 100.0, 400.0


def make_arm_samples(arm: ArmInfo, drift: np.ndarray, **added: float) -> ArmSamples:
    """An arm whose rounds drift, with ms added by each cause."""

    def rounds(value: float, grows: bool = False) -> RoundValues:
        return {number: value * (factor if grows else 1.0) for number, factor in enumerate(drift)}

    prompt_stall = added.get("prompt_stall", 0.0)
    tokens_stall = added.get("tokens_stall", 0.0)
    drain = added.get("drain", 0.0)
    rest = added.get("rest", 0.0)
    samples = ArmSamples(point_of(), arm)
    base = rounds(1.0, grows=True)
    times = samples.times
    stalls = samples.stalls
    times.prompt = {n: PROMPT * factor + prompt_stall for n, factor in base.items()}
    times.tokens = {n: TOKENS * factor + tokens_stall + rest for n, factor in base.items()}
    times.total = {n: times.prompt[n] + times.tokens[n] + drain for n in base}
    stalls.prompt = rounds(prompt_stall)
    stalls.tokens = rounds(tokens_stall)
    stalls.iteration = rounds(prompt_stall + tokens_stall)
    stalls.drain = rounds(drain)
    return samples


def parts_of(**added: float) -> dict[tuple[str, str], tuple[float, float]]:
    """Parts of an arm by phase and part: ms, and percent of the total without streaming."""
    drift = np.exp(np.random.default_rng(3).normal(0, 0.2, ROUNDS))
    arms = {
        "none": make_arm_samples(NONE, drift),
        "none#2": make_arm_samples(AGAIN, drift),
        "mpi@3": make_arm_samples(arm_of("mpi"), drift, **added),
    }
    parts = compute_overhead_parts(PointSamples(point_of(), arms), arms["mpi@3"])
    assert all(part.ms.sample_count == ROUNDS for part in parts)
    return {(part.phase, part.part): (part.ms.median, 100 * part.share.median) for part in parts}


@pytest.mark.parametrize(
    ("cause", "place"),
    [
        ("prompt_stall", ("prompt", "stall")),
        ("tokens_stall", ("tokens", "stall")),
        ("drain", ("total", "drain")),
        ("rest", ("tokens", "rest")),
    ],
)
def test_an_injected_cause_is_in_its_part_and_in_no_other(
    cause: str, place: tuple[str, str]
) -> None:
    parts = parts_of(**{cause: 30.0})
    assert place in parts
    phase, part = place
    for (part_phase, part_name), (ms, _) in parts.items():
        is_injected = part_phase in (phase, "total") and part_name in (part, "overhead")
        assert ms == pytest.approx(30.0 if is_injected else 0.0, abs=1e-9), (part_phase, part_name)


def test_parts_of_every_phase_add_up_where_rounds_are_equal() -> None:
    parts = parts_of(prompt_stall=1.0, tokens_stall=2.0, drain=3.0, rest=5.0)
    parts_of_phases = [
        (phase, part)
        for phase in PHASES
        for part in PARTS
        if not (part == "drain" and phase != "total")
    ]
    assert list(parts) == parts_of_phases
    for phase in PHASES:
        summands = [parts[phase, part][0] for part in PARTS[1:] if (phase, part) in parts]
        assert parts[phase, "overhead"][0] == pytest.approx(sum(summands))
    assert [parts["total", part][0] for part in PARTS] == pytest.approx([11, 3, 3, 5])


def test_a_share_is_of_the_same_round_and_the_totals_is_the_overhead(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "r", factors={"mpi@3": 1.1}, rounds=20))
    (arm_row,) = [row for row in flat_rows(run) if row["arm"] == "mpi@3"]
    rows = {(row.arm_phase.phase, row.part): row for row in read_part_rows(tmp_path / "r")}
    total = rows["total", "overhead"]
    assert total.part_pct == pytest.approx(arm_row["overhead_pct"])
    assert total.part_low_pct == pytest.approx(arm_row["overhead_low_pct"])
    assert total.part_high_pct == pytest.approx(arm_row["overhead_high_pct"])
    overhead_ms = arm_row["overhead_pct"] / 100 * arm_row["total_ms"]
    assert total.part_ms == pytest.approx(overhead_ms, rel=0.3)
    assert rows["total", "stall"].part_ms == arm_row["stall_ms"]
    assert rows["total", "drain"].part_ms == arm_row["drain_ms"]
    assert rows["tokens", "stall"].part_ms == pytest.approx(0.1)
    rest = rows["total", "rest"]
    assert rest.part_low_pct is not None
    assert rest.part_high_pct is not None
    assert rest.part_low_pct <= rest.part_pct <= rest.part_high_pct


def read_part_rows(folder: Path) -> list[PartRow]:
    rows: list[PartRow] = make_report(read_run(folder)).rows_of_parts["overhead"]
    return rows


def test_without_a_baseline_or_with_wrong_bytes_there_are_no_parts(tmp_path: Path) -> None:
    assert read_part_rows(write_run(tmp_path / "alone", [arm_of("mpi")])) == []
    failed_check = Verification(point="p000", arm="mpi@3", iteration=3, ok=False, nbytes=9)
    arms = [NONE, AGAIN, arm_of("host"), arm_of("mpi")]
    rows = read_part_rows(write_run(tmp_path / "bad", arms, bad=failed_check))
    assert {row.arm_phase.arm for row in rows} == {"host@3"}
    text = "\n".join(make_report(read_run(tmp_path / "alone")).note_texts)
    assert "stall + drain + rest" not in text


def test_one_round_has_no_interval(tmp_path: Path) -> None:
    rows = read_part_rows(write_run(tmp_path / "r", rounds=1))
    assert {(row.samples, row.part_low_ms, row.part_high_pct) for row in rows} == {(1, None, None)}


def test_microbatches_of_a_source_wait_and_drain_one_after_another(tmp_path: Path) -> None:
    """Two microbatches in flight: a phase has the median of both, the total the sum."""
    folder = write_run(tmp_path / "r", rounds=2, noise=0.0, sealed=False)
    path = folder / "rank-0000.jsonl"
    run = read_run(folder)
    extra = ""
    for _, microbatch in run.records_of(Microbatch):
        if microbatch.arm == "mpi@3":
            longer = {
                "prompt": microbatch.prompt.model_copy(update={"stall_ms": 2.2}),
                "tokens": PhaseStreaming(stall_ms=1.1),
                "drain_ms": 2.0,
            }
            extra += to_line(microbatch.model_copy(update={"ubatch": 1, **longer}))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:-1], extra, lines[-1]]))
    part_ms = {(row.arm_phase.phase, row.part): row.part_ms for row in read_part_rows(folder)}
    assert part_ms["prompt", "stall"] == pytest.approx((0.2 + 2.2) / 2)
    assert part_ms["tokens", "stall"] == pytest.approx((0.1 + 1.1) / 2)
    assert part_ms["total", "stall"] == pytest.approx(0.2 + 2.2 + 0.1 + 1.1)
    drains = [
        microbatch.drain_ms
        for _, microbatch in run.records_of(Microbatch)
        if microbatch.arm == "mpi@3" and microbatch.round
    ]
    assert part_ms["total", "drain"] == pytest.approx(2.0 + drains[0], rel=0.5)


def test_csv_json_and_the_tables_hold_the_same_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    folder = write_run(tmp_path / "r", points=[point_of(0), point_of(1, input_len=512)])
    text = stdout_of("process", folder, "--format", "csv", "--table", "overhead")
    table = list(csv.DictReader(io.StringIO(text)))
    assert tuple(table[0]) == names_of(PartRow)
    assert len(table) == 2 * 10  # points; 3 + 3 + 4 parts
    (document,) = json.loads(stdout_of("process", folder, "--format", "json"))
    parts_in_json = [row["part_ms"] for row in document["overhead"]]
    parts_in_csv = [float(row["part_ms"]) for row in table]
    assert parts_in_json == pytest.approx(parts_in_csv)
    shown = stdout_of("process", folder, "--long")
    assert "where the overhead comes from" in shown
    assert max(map(len, shown.splitlines())) <= 80
    markdown = stdout_of("process", folder, "--format", "markdown")
    assert "| prompt | arm | phase | overhead % | stall % | drain % | rest % |" in markdown
    message = usage_error_of("process", folder, "--table", "overhead")
    assert "Add --format csv" in message


def test_intervals_are_shown_where_two_arms_are_subtracted(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "r", factors={"mpi@3": 1.1}))
    (block,) = [block for block in make_report(run).blocks if "overhead comes from" in block.title]
    (group,) = block.groups
    assert [row[:2] for row in group] == [["mpi@3", phase] for phase in PHASES]
    for row in group:
        by_part = dict(zip(PARTS, row[2:], strict=True))
        assert all("[" in by_part[part] for part in PARTS if part not in MEASURED_PARTS)
        assert not any("[" in by_part[part] for part in MEASURED_PARTS)
    assert group[0][4] == "–"  # a prompt has no drain


def test_a_gpu_report_says_that_stall_may_be_hidden(tmp_path: Path) -> None:
    infos = [on_gpu(), on_gpu("bbbb")]
    folder = write_run(tmp_path / "g", environment=GPU_ENVIRONMENT, infos=infos)
    notes = make_report(read_run(folder)).note_texts
    assert any("in the library while the device computes" in note for note in notes)
    notes = make_report(read_run(write_run(tmp_path / "c"))).note_texts
    assert not any("while the device computes" in note for note in notes)
