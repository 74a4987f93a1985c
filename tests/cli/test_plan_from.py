"""``dejavubench plan --from RUN``: its formats, the sizes that it takes, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from dejavubench.analysis.prediction.run_inputs import read_inputs
from dejavubench.analysis.prediction.table import RATE_RATIO
from dejavubench.cli.plan import plan
from dejavubench.cli.plan_from import POINT_KEYS
from dejavubench.dejavulib.destinations.registry import DESTINATIONS
from dejavubench.records import ChunkList, ChunkPart, ChunkTimes, ListedChunk, read_run
from helpers.cli_calls import call, heavy_after, stdout_of, usage_error
from helpers.synthetic_runs import AGAIN, ENVIRONMENT, NONE, arm_of, point_of, write_run

STEPS = 5
US = 1000
"""Nanoseconds of a microsecond."""

POINT = point_of()
"""gpt2, batch 4, prompt 256, 6 new tokens: K and V of a step are 147,456 bytes."""

STEP_NBYTES = 147_456
LAYER_NBYTES = 256 * STEP_NBYTES // 12
PARTS = [ChunkPart(name=part.name, until=part.until) for part in DESTINATIONS["mpi"].parts]


@pytest.fixture(autouse=True)
def _narrow(no_launcher: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def make_chunk(step: int, layer: int | None) -> ListedChunk:
    phase: Any = "tokens" if step else "prompt"
    nbytes, layers = (STEP_NBYTES, 12) if step else (LAYER_NBYTES, 1)
    return ListedChunk(
        phase=phase, step=step, layer=layer, layers=layers, nbytes=nbytes, extents=96
    )


CHUNKS = [
    *(make_chunk(0, layer) for layer in range(12)),
    *(make_chunk(step, None) for step in range(1, STEPS + 1)),
]


def make_chunk_times(
    point_id: str, arm_name: str, round_number: int, complete_us: int
) -> ChunkTimes:
    """Queue 10, gather 20, post 30, wire 100 and acknowledgement 40 µs for every chunk."""
    ready = [1000 * US * place for place in range(len(CHUNKS))]
    stamps_ns = {"begun": 10, "gathered": 30, "posted": 60, "complete": complete_us}
    columns: dict[str, Any] = {
        name: [ready_ns + us * US for ready_ns in ready] for name, us in stamps_ns.items()
    }
    return ChunkTimes(
        point=point_id,
        arm=arm_name,
        iteration=round_number + 2,
        round=round_number,
        ubatch=0,
        began_ns=10**12,
        ready=ready,
        sink_ns=[40 * US] * len(CHUNKS),
        **columns,
    )


def write_measured_run(
    folder: Path,
    levels: str = "123",
    chunks: bool = True,
    mode: str = "mpi",
    complete_us: Mapping[str, int] | None = None,
    **changes: Any,
) -> Path:
    """A run over a link of 10 GB/s, of which the cost is known in every round.

    Args:
        complete_us: µs from ready to complete of every chunk of a point, if they are not 200.
    """
    arms = [NONE, AGAIN, *(arm_of(mode, level) for level in levels)]
    rounds = changes.setdefault("rounds", 8)
    points = changes.setdefault("points", [POINT])
    run = write_run(folder, changes.pop("arms", arms), **changes)
    records: list[ChunkList | ChunkTimes] = []
    for point_id, arm_name in product(
        (info.id for info in points), (f"{mode}@{level}" for level in levels)
    ):
        records.append(
            ChunkList(
                point=point_id,
                arm=arm_name,
                ubatch=0,
                prompt_parts=PARTS,
                token_parts=PARTS,
                chunks=CHUNKS,
            )
        )
        us = (complete_us or {}).get(point_id, 200)
        records += [make_chunk_times(point_id, arm_name, number, us) for number in range(rounds)]
    if chunks:
        text = "".join(record.model_dump_json() + "\n" for record in records)
        (run / "chunks-0000.jsonl").write_text(text)
    return run


def write_run_over(rate: str | None, folder: Path, **changes: Any) -> Path:
    """Write a run that measured no link, and states that its link has a rate."""
    experiment = {} if rate is None else {"link": rate}
    run = write_measured_run(folder, sealed=False, experiment=experiment, **changes)
    file = run / "rank-0000.jsonl"
    lines_without_ceilings = [
        line for line in file.read_text().splitlines() if '"kind":"ceiling"' not in line
    ]
    file.write_text("\n".join(lines_without_ceilings) + "\n")
    return run


def call_plan(run: Path, *arguments: str) -> Result:
    return call("plan", "--from", run, *arguments)


def print_plan(run: Path, *arguments: str) -> str:
    return stdout_of("plan", "--from", run, "--link", "10GB/s", *arguments)


def read_forecast(run: Path, *arguments: str) -> dict[str, Any]:
    forecast: dict[str, Any] = json.loads(print_plan(run, *arguments, "--format", "json"))
    return forecast


@pytest.mark.parametrize("key", [*POINT_KEYS, "flush_interval"])
def test_help_says_which_defaults_a_run_replaces(key: str) -> None:
    (text,) = (vars(param)["help"] for param in plan.params if param.name == key)
    assert text.endswith("; with --from, the run's]")


def test_the_answer_comes_first_then_tables(tmp_path: Path) -> None:
    lines = print_plan(write_measured_run(tmp_path / "run")).splitlines()
    assert lines[0] == "ANSWER"
    text = " ".join(" ".join(lines).split())
    assert "mpi at 10 GB/s, gpt2, batch 4, prompt 256: expected overhead level 3 " in text
    assert re.search(r"expected overhead level 3 \S+ % \[\S+ \S+\] \(measured \S+ %\); ", text)
    assert "mpi at prompt 256: level 3 costs nothing (upper end at most 2 %) from " in text
    assert "layer-by-layer streaming (level 2 against 1) saves 0.5 % of TOTAL " in text
    assert "own noise" not in text
    assert "overhead % over rates: gpt2, bf16, batch 4, prompt 256, new tokens 6" in text
    assert "compute times: measured at these sizes" in text
    assert "compute times of the other prompts: SCALED by arithmetic and bytes" in text
    assert "NOT HELD AGAINST MEASUREMENT" not in text
    assert max(map(len, lines)) <= 80
    headings = [line for line in lines if line.startswith(("to ", "to\n"))]
    assert [re.findall("level (.)", heading) for heading in headings] == 2 * [["3", "2", "1"]]


SIZES = [point_of(0), point_of(1, input_len=512)]


def test_each_measured_point_has_an_answer_of_its_own(tmp_path: Path) -> None:
    run = write_measured_run(tmp_path / "run", points=SIZES)
    forecast = read_forecast(run)
    costs = [answer.partition(":")[0] for answer in forecast["answers"] if "expected" in answer]
    assert costs == [f"mpi at 10 GB/s, gpt2, batch 4, prompt {length}" for length in (256, 512)]
    (other_point,) = forecast["other_measured_points"]
    assert (other_point["ubatch_size"], other_point["input_len"]) == (4, 512)
    assert {row["compute"] for row in other_point["rows"]} == {"measured"}
    # Whoever asks for a size gets an answer for that one alone.
    asked_forecast = read_forecast(run, "--input-len", "300")
    costs = [answer for answer in asked_forecast["answers"] if "expected" in answer]
    assert [answer.partition(":")[0][-3:] for answer in costs] == ["300"]
    assert asked_forecast["other_measured_points"] == []


@pytest.mark.parametrize(
    ("rate", "words"),
    [("1GB/s", "is slower than"), ("10GB/s", "is about as fast as"), ("30GB/s", "is faster than")],
)
def test_the_answer_begins_with_the_asked_link_against_the_measured_one(
    tmp_path: Path, rate: str, words: str
) -> None:
    plan_call = call_plan(write_measured_run(tmp_path / "run"), "--link", rate, "--format", "json")
    answer = json.loads(plan_call.stdout)["answers"][0]
    assert f"{words} the measured link, 10 GB/s." in answer


def test_a_cost_that_no_link_takes_away_is_named_with_its_cause(tmp_path: Path) -> None:
    run = write_measured_run(tmp_path / "run", factors={"mpi@3": 1.2})
    text = " ".join(read_forecast(run)["answers"])
    pattern = (
        r"level 3 always costs: \+\S+ % remain that are not the link's \(contention\), and from "
        r"\S+ .B/s on a faster link saves less than 0\.5 %"
    )
    assert re.search(pattern, text), text
    assert "no link" not in text
    limits = read_forecast(run)["costs_nothing"]["from_bytes_per_s"]
    assert limits["mpi@3"] is None


def test_a_cost_that_noise_can_explain_is_not_said_to_remain_always(tmp_path: Path) -> None:
    """The median is far above 2 %: first its interval holds 0, then the run's noise exceeds it."""
    unknown = "mpi at prompt 256: level 3 is not shown to cost nothing at any rate with this noise"
    arms = [NONE, arm_of("mpi")]  # without none#2 the noise is unknown
    wide_run = write_measured_run(
        tmp_path / "wide", levels="3", arms=arms, factors={"mpi@3": 1.05}, noise=0.2
    )
    text = " ".join(read_forecast(wide_run)["answers"])
    expected_cost = re.search(r"expected overhead level 3 \+(\S+) % \[−", text)
    assert expected_cost is not None, text
    assert float(expected_cost[1]) > 2
    assert unknown in text
    factors = {"none#2": 1.2, "mpi@3": 1.15}
    unlike_run = write_measured_run(tmp_path / "unlike", levels="3", factors=factors)
    text = " ".join(read_forecast(unlike_run)["answers"])
    assert re.search(r"expected overhead level 3 \+\S+ % \[\+", text), text
    assert unknown in text


def test_an_interval_is_printed_in_one_form(tmp_path: Path) -> None:
    run = write_measured_run(tmp_path / "run")
    text = " ".join(print_plan(run).split())
    answer = re.search(r"expected overhead level 3 (\S+) % (\[\S+ \S+\])", text)
    assert answer is not None
    assert f"{answer[1]} {answer[2]}" in text
    assert "±" not in text


def test_contention_of_a_busy_link_is_marked_in_its_cells_and_named(tmp_path: Path) -> None:
    """Level 3's contention is a mean over both lengths, so a busy link at one is in all of it."""
    busy = {"p001": 10**6}  # a second, much longer than a step
    run = write_measured_run(tmp_path / "run", points=SIZES, complete_us=busy)
    marked = {
        row["level"]
        for row in read_forecast(run)["over_lengths"]
        if row["contention_of_busy_link"] == "mpi@3 at prompt 512"
    }
    assert marked == {"3"}
    lines = print_plan(run).splitlines()
    (line,) = (line for line in lines if line.startswith("* contention is in part that of "))
    assert "mpi@3 at prompt 512" in line
    (cells,) = (line for line in lines if line.split()[:2] == ["mpi", "256"])
    assert cells.count("]*") == 1


# ---- several runs ----


def write_two_runs(folder: Path) -> Path:
    """Write a run with prompts of 256 tokens over 10 GB/s, and one with 512 over 5 GB/s."""
    write_measured_run(folder / "fast")
    write_run_over("5GB/s", folder / "slow", points=[point_of(input_len=512)])
    return folder


def test_a_folder_above_several_runs_is_predicted_from_all_of_them(tmp_path: Path) -> None:
    forecast = read_forecast(write_two_runs(tmp_path))
    assert forecast["from"] == "fast, slow"
    assert "mpi: 10 GB/s is in the range of the measured links, " in forecast["answers"][0]
    remark = next(text for text in forecast["remarks"] if text.startswith("from fast, slow"))
    assert "measured speed of the links: mpi " in remark
    costs = [text for text in forecast["answers"] if "expected overhead" in text]
    assert [re.search(r"prompt (\d+)", text)[1] for text in costs] == ["256", "512"]  # type: ignore[index]


def test_a_run_that_tells_nothing_is_left_out_and_named(tmp_path: Path) -> None:
    folder = write_two_runs(tmp_path)
    write_measured_run(folder / "bare", chunks=False)
    finished_call = call_plan(folder, "--link", "1GB/s")
    assert finished_call.exit_code == 0
    assert "left out: bare has no times of chunks" in finished_call.stderr
    assert read_forecast(folder)["from"] == "fast, slow"


def test_runs_that_all_tell_nothing_are_refused_with_the_first_reason(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_measured_run(tmp_path / name, chunks=False)
    message = usage_error(call_plan(tmp_path, "--link", "1GB/s"))
    assert message.startswith(f"--from: no run below {tmp_path} tells a prediction. left out: one ")


def test_runs_of_different_machines_are_refused_together(tmp_path: Path) -> None:
    folder = write_two_runs(tmp_path)
    write_measured_run(folder / "zzz", environment=ENVIRONMENT | {"cpu_model": "another"})
    message = usage_error(call_plan(folder, "--link", "1GB/s"))
    assert message == (
        "--from: fast and zzz are of different machines, so they cannot be predicted from "
        "together. Give the folder of one run"
    )


@pytest.mark.parametrize("mode", ["disk", "host"])
def test_a_destination_that_is_no_link_is_refused_as_such(tmp_path: Path, mode: str) -> None:
    run = write_measured_run(tmp_path / "run", mode=mode)
    message = usage_error(call_plan(run, "--link", "1GB/s"))
    assert f"{mode} is no link, so no other rate can be asked about" in message
    assert "ceilings" not in message


def test_programs_get_rows_of_every_rate_and_length(tmp_path: Path) -> None:
    run = write_measured_run(tmp_path / "run")
    rows = list(csv.DictReader(io.StringIO(print_plan(run, "--format", "csv"))))
    assert {row["level"] for row in rows} == {"1", "2", "3"}
    assert {int(row["input_len"]) for row in rows} == {32, 64, 128, 256, 512}
    assert {row["compute"] for row in rows if row["input_len"] == "256"} == {"measured"}
    assert {row["compute"] for row in rows if row["input_len"] != "256"} == {"scaled"}
    for row in rows:
        low, middle, high = (
            float(row[key]) for key in ("overhead_low_pct", "overhead_pct", "overhead_high_pct")
        )
        assert low <= middle <= high
        expected = 100 * (float(row["predicted_ms"]) / float(row["none_ms"]) - 1)
        assert middle == pytest.approx(expected)
    forecast = read_forecast(run)
    printed_rows = [row for row in rows if row["input_len"] == "256"]
    rows_of_json = [
        {key: str(value) for key, value in row.items()} for row in forecast["over_rates"]
    ]
    assert printed_rows == rows_of_json


def test_markdown_has_the_same_answer(tmp_path: Path) -> None:
    run = write_measured_run(tmp_path / "run")
    text = print_plan(run, "--format", "markdown")
    assert text.startswith("## ANSWER\n\n- mpi: 10 GB/s is")
    assert all(f"- {answer}\n" in text for answer in read_forecast(run)["answers"])


def test_another_model_and_setup_are_marked(tmp_path: Path) -> None:
    run = write_measured_run(tmp_path / "run")
    text = " ".join(print_plan(run, "--model", "opt-125m").split())
    assert "opt-125m, bf16" in text
    forecast = read_forecast(run, "--model", "gpt2-medium", "--pipeline-para-size", "2")
    assert not any(row["held_against_measurement"] for row in forecast["over_rates"])
    assert any("NOT HELD AGAINST MEASUREMENT" in remark for remark in forecast["remarks"])
    # 355 million weights in place of 124: compute is longer, and each of 2 stages has half.
    times = read_forecast(run, "--model", "gpt2-medium")["over_rates"][0]["none_ms"]
    assert forecast["over_rates"][0]["none_ms"] == pytest.approx(times / 2)


def test_sinks_that_share_a_link_halve_its_rate(tmp_path: Path) -> None:
    run = write_measured_run(tmp_path / "run")
    forecast_of_two_links = read_forecast(run, "--pipeline-para-size", "2")
    forecast_of_a_shared_link = read_forecast(
        run, "--pipeline-para-size", "2", "--sink-pipeline-para-size", "1"
    )

    def limits(forecast: dict[str, Any]) -> dict[str, float]:
        return dict(forecast["costs_nothing"]["from_bytes_per_s"])

    # Both are looked for in steps of RATE_RATIO.
    assert limits(forecast_of_a_shared_link)["mpi@3"] == pytest.approx(
        2 * limits(forecast_of_two_links)["mpi@3"], rel=RATE_RATIO - 1
    )


def test_a_level_that_was_not_measured_is_marked_and_less_sure(tmp_path: Path) -> None:
    forecast = read_forecast(write_measured_run(tmp_path / "run", levels="2"))
    assert {row["costs_of"] for row in forecast["over_rates"]} == {"mpi@2"}
    assert any(
        "† costs" in remark and "mpi@1 from mpi@2" in remark for remark in forecast["remarks"]
    )
    (cost,) = (answer for answer in forecast["answers"] if "expected" in answer)
    pattern = r"level 2 \S+ % \[\S+ \S+\] \(measured \S+ %\); level 1 \S+ % \[\S+ \S+\]†\."
    assert re.search(pattern, cost), cost
    for row in forecast["over_rates"]:
        width = row["overhead_high_pct"] - row["overhead_low_pct"]
        assert width >= 4 or row["level"] == "2"
    # Costs that are one level's say nothing of what the other would gain.
    assert not any("layer-by-layer" in answer for answer in forecast["answers"])
    assert forecast["layerwise_pays_from_input_len"] == {"mpi": None}


def test_levels_that_wait_are_not_predicted_from_one_that_does_not(tmp_path: Path) -> None:
    forecast = read_forecast(write_measured_run(tmp_path / "run", levels="3"))
    assert {row["level"] for row in forecast["over_rates"]} == {"3"}


def test_more_noise_makes_no_level_free(tmp_path: Path) -> None:
    quiet_forecast = read_forecast(write_measured_run(tmp_path / "quiet", noise=0.001, rounds=12))
    noisy_forecast = read_forecast(write_measured_run(tmp_path / "noisy", noise=0.2, rounds=12))
    assert (
        quiet_forecast["costs_nothing"]["limit_pct"]
        == noisy_forecast["costs_nothing"]["limit_pct"]
        == 2
    )
    free_if_quiet, free_if_noisy = (
        {name for name, rate in forecast["costs_nothing"]["from_bytes_per_s"].items() if rate}
        for forecast in (quiet_forecast, noisy_forecast)
    )
    assert free_if_quiet == {"mpi@1", "mpi@2", "mpi@3"}
    assert free_if_noisy < free_if_quiet


def test_swept_staging_slots_are_those_of_the_point(tmp_path: Path) -> None:
    sweep = [
        point_of(0, staging_slots=1, staging_mib=2),
        point_of(1, staging_slots=8, staging_mib=4),
    ]
    experiment = {"staging_slots": [1, 8], "staging_mib": [2, 4], "target_overhead": None}
    run = write_measured_run(tmp_path / "run", points=sweep, experiment=experiment)
    inputs = read_inputs(read_run(run))
    staging = {arm.point.info.id: arm.staging for arm in inputs.arms}
    assert (staging["p000"].slot_count, staging["p000"].slot_nbytes) == (1, 2 * 2**20)
    assert (staging["p001"].slot_count, staging["p001"].slot_nbytes) == (8, 4 * 2**20)
    assert "expected overhead" in print_plan(run)


def test_what_was_measured_stands_beside_the_forecast(tmp_path: Path) -> None:
    forecast = read_forecast(
        write_measured_run(tmp_path / "run", factors={"mpi@3": 1.5}, noise=0.001)
    )
    (line,) = (remark for remark in forecast["remarks"] if remark.startswith("measured here"))
    start = r"measured here, mpi at 10 GB/s, prompt 256: level 3 \+(49|50)\S* % \["
    assert re.match(start, line), line


def test_damage_is_reported_on_stderr_and_among_the_remarks(tmp_path: Path) -> None:
    run = write_measured_run(tmp_path / "run", ended=False)
    plan_call = call_plan(run, "--link", "10GB/s", "--format", "json")
    assert plan_call.exit_code == 0, plan_call.stderr
    assert "INCOMPLETE" in plan_call.stderr
    assert any("INCOMPLETE" in remark for remark in json.loads(plan_call.stdout)["remarks"])


def test_an_incomplete_run_without_a_rate_is_called_incomplete(tmp_path: Path) -> None:
    run = write_measured_run(tmp_path / "run", sealed=False, ended=False)
    file = run / "rank-0000.jsonl"
    remaining_lines = [
        line for line in file.read_text().splitlines() if '"kind":"ceiling"' not in line
    ]
    file.write_text("\n".join(remaining_lines) + "\n")
    message = usage_error(call_plan(run, "--link", "1GB/s"))
    assert "INCOMPLETE" in message
    assert "--no-ceilings" not in message


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, [], "--from needs --link"),
        ({}, ["--link", "fast"], "is not a rate"),
        ({"chunks": False}, ["--link", "1GB/s"], "has no times of chunks"),
        ({"arms": [arm_of("mpi", "3")]}, ["--link", "1GB/s"], "has no rounds of the arm none"),
        ({}, ["--link", "1GB/s", "--requests", "4"], "--requests cannot be combined with --from"),
        ({}, ["--link", "1GB/s", "--input-len", "1024"], "more than the 1024 positions of gpt2"),
        ({}, ["--link", "1GB/s", "--flush-interval", "6"], "more than the 5 decode steps"),
        ({}, ["--link", "1GB/s", "--pipeline-para-size", "13"], "more than the 12 layers of gpt2"),
        ({}, ["--link", "1GB/s", "--layer-cuts", "0,5"], "the last cut must be 12"),
        (
            {},
            ["--link", "1GB/s", "--layer-cuts", "0,5,12", "--pipeline-para-size", "3"],
            "--layer-cuts does not make the 3 stages of --pipeline-para-size",
        ),
        ({}, ["--link", "1GB/s", "--tensor-para-size", "5"], "cannot be shared evenly"),
        ({}, ["--link", "1GB/s", "--sink-ubatch-size", "3"], "do not fill the sinks' microbatches"),
    ],
)
def test_bad_input_of_a_forecast_is_one_message(
    tmp_path: Path, changes: dict[str, Any], arguments: list[str], message: str
) -> None:
    run = write_measured_run(tmp_path / "run", **changes)
    plan_call = call_plan(run, *arguments)
    assert (plan_call.exit_code, plan_call.stdout) == (2, "")
    assert message in plan_call.stderr
    assert "Traceback" not in plan_call.stderr


def test_a_run_without_a_rate_is_refused(tmp_path: Path) -> None:
    run = write_run_over(None, tmp_path / "run")
    message = usage_error(call_plan(run, "--link", "1GB/s"))
    assert "the speed of the link is unknown (mpi@1, mpi@2, mpi@3)" in message


def test_a_stated_rate_serves_a_run_that_did_not_measure_its_link(tmp_path: Path) -> None:
    run = write_run_over("2GB/s", tmp_path / "run")
    arms = read_inputs(read_run(run)).arms
    assert {(arm.link.rate, arm.link.origin) for arm in arms} == {(2e9, "--link 2GB/s")}
    report = call_plan(run, "--link", "1GB/s").stdout
    assert "mpi (--link 2GB/s) 2 GB/s" in report


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    message = usage_error(call_plan(tmp_path / "nothing", "--link", "1GB/s"))
    assert message.startswith("--from: ")


def test_a_forecast_needs_neither_torch_nor_mpi(tmp_path: Path) -> None:
    run = write_measured_run(tmp_path / "run")
    output = heavy_after(
        {"torch", "mpi4py", "pandas"}, "plan", "--from", str(run), "--link", "1GB/s"
    )
    assert output.endswith("HEAVY []\n")


def test_a_run_too_noisy_for_a_forecast_says_so(tmp_path: Path) -> None:
    run = write_measured_run(tmp_path / "run", factors={"none#2": 1.1})
    (noise,) = (answer for answer in read_forecast(run)["answers"] if "own noise" in answer)
    assert noise.startswith("The run's own noise is ±10.2 % of TOTAL: ")
