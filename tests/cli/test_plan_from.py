"""``dejavubench plan --from RUN``: its formats, the sizes that it takes, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dejavubench.cli import main
from dejavubench.dejavulib.destinations.registry import DESTINATIONS
from dejavubench.machine.launcher import LAUNCHED
from dejavubench.records import ChunkList, ChunkPart, ChunkTimes, ListedChunk
from helpers.cli_calls import heavy_after, usage_error
from helpers.synthetic_runs import AGAIN, NONE, arm, point, write_run

STEPS = 5
US = 1000
POINT = point()
"""gpt2, batch 4, prompt 256, 6 new tokens: K and V of a step are 147,456 bytes."""

STEP_NBYTES = 147_456
LAYER_NBYTES = 256 * STEP_NBYTES // 12
PARTS = [ChunkPart(name=part.name, until=part.until) for part in DESTINATIONS["mpi"].parts]


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for variable in LAUNCHED:
        monkeypatch.delenv(variable, raising=False)


def chunk(step: int, layer: int | None) -> ListedChunk:
    phase: Any = "tokens" if step else "prompt"
    nbytes, layers = (STEP_NBYTES, 12) if step else (LAYER_NBYTES, 1)
    return ListedChunk(
        phase=phase, step=step, layer=layer, layers=layers, nbytes=nbytes, extents=96
    )


CHUNKS = [
    *(chunk(0, layer) for layer in range(12)),
    *(chunk(step, None) for step in range(1, STEPS + 1)),
]


def timed(which: str, number: int) -> ChunkTimes:
    """Queue 10, gather 20, post 30, wire 100 and acknowledgement 40 µs for every chunk."""
    ready = [1000 * US * place for place in range(len(CHUNKS))]
    after = {"begun": 10, "gathered": 30, "posted": 60, "complete": 200}
    columns: dict[str, Any] = {
        name: [each + us * US for each in ready] for name, us in after.items()
    }
    return ChunkTimes(
        point="p000",
        arm=which,
        iteration=number + 2,
        round=number,
        ubatch=0,
        began_ns=10**12,
        ready=ready,
        sink_ns=[40 * US] * len(CHUNKS),
        **columns,
    )


def measured(folder: Path, levels: str = "123", chunks: bool = True, **changes: Any) -> Path:
    """A run over a link of 10 GB/s, of which the cost is known in every round."""
    arms = [NONE, AGAIN, *(arm("mpi", level) for level in levels)]
    rounds = changes.setdefault("rounds", 8)
    run = write_run(folder, changes.pop("arms", arms), **changes)
    records: list[ChunkList | ChunkTimes] = []
    for which in (f"mpi@{level}" for level in levels):
        records.append(
            ChunkList(
                point="p000",
                arm=which,
                ubatch=0,
                prompt_parts=PARTS,
                token_parts=PARTS,
                chunks=CHUNKS,
            )
        )
        records += [timed(which, number) for number in range(rounds)]
    if chunks:
        text = "".join(record.model_dump_json() + "\n" for record in records)
        (run / "chunks-0000.jsonl").write_text(text)
    return run


def invoke(run: Path, *arguments: str) -> Result:
    return CliRunner().invoke(
        main, ["plan", "--from", str(run), *arguments], prog_name="dejavubench"
    )


def printed(run: Path, *arguments: str) -> str:
    result = invoke(run, "--link", "10GB/s", *arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def document(run: Path, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed(run, *arguments, "--format", "json"))
    return found


def test_the_answer_comes_first_then_tables(tmp_path: Path) -> None:
    lines = printed(measured(tmp_path / "run")).splitlines()
    assert lines[0] == "ANSWER"
    text = " ".join(" ".join(lines).split())
    assert "mpi at 10 GB/s, expected overhead: level 3 " in text
    assert "mpi costs nothing (at most " in text
    assert "layer-by-layer streaming (level 2 against 1) pays " in text
    assert "overhead % over rates: gpt2, bf16, batch 4, prompt 256, new tokens 6" in text
    assert "compute times: measured at these sizes" in text
    assert "compute times of the other prompts: SCALED by arithmetic and bytes" in text
    assert "NOT HELD AGAINST MEASUREMENT" not in text
    assert max(map(len, lines)) <= 80


def test_programs_get_rows_of_every_rate_and_length(tmp_path: Path) -> None:
    run = measured(tmp_path / "run")
    rows = list(csv.DictReader(io.StringIO(printed(run, "--format", "csv"))))
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
    found = document(run)
    assert [row for row in rows if row["input_len"] == "256"] == [
        {key: str(value) for key, value in row.items()} for row in found["over_rates"]
    ]


def test_markdown_has_the_same_answer(tmp_path: Path) -> None:
    run = measured(tmp_path / "run")
    text = printed(run, "--format", "markdown")
    assert text.startswith("## ANSWER\n\n- mpi at 10 GB/s")
    assert all(f"- {answer}\n" in text for answer in document(run)["answers"])


def test_another_model_and_setup_are_marked(tmp_path: Path) -> None:
    run = measured(tmp_path / "run")
    text = " ".join(printed(run, "--model", "opt-125m").split())
    assert "opt-125m, bf16" in text
    found = document(run, "--model", "gpt2-medium", "--pipeline-para-size", "2")
    assert not any(row["held_against_measurement"] for row in found["over_rates"])
    assert any("NOT HELD AGAINST MEASUREMENT" in remark for remark in found["remarks"])
    # 355 million weights in place of 124: compute is longer, and each of 2 stages has half.
    one = document(run, "--model", "gpt2-medium")["over_rates"][0]["none_ms"]
    assert found["over_rates"][0]["none_ms"] == pytest.approx(one / 2)


def test_sinks_that_share_a_link_halve_its_rate(tmp_path: Path) -> None:
    run = measured(tmp_path / "run")
    alone = document(run, "--pipeline-para-size", "2")
    shared = document(run, "--pipeline-para-size", "2", "--sink-pipeline-para-size", "1")

    def limits(found: dict[str, Any]) -> dict[str, float]:
        return dict(found["costs_nothing"]["from_bytes_per_s"])

    assert limits(shared)["mpi@3"] == pytest.approx(2 * limits(alone)["mpi@3"], rel=1e-3)


def test_levels_that_were_not_measured_are_named(tmp_path: Path) -> None:
    found = document(measured(tmp_path / "run", levels="3"))
    assert {row["costs_of"] for row in found["over_rates"]} == {"mpi@3"}
    assert any("mpi@1 from mpi@3" in remark for remark in found["remarks"])


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, [], "--from needs --link"),
        ({}, ["--link", "fast"], "is not a rate"),
        ({"chunks": False}, ["--link", "1GB/s"], "has no times of chunks"),
        ({"arms": [arm("mpi", "3")]}, ["--link", "1GB/s"], "has no rounds of the arm none"),
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
    ],
)
def test_bad_input_is_one_message(
    tmp_path: Path, changes: dict[str, Any], arguments: list[str], message: str
) -> None:
    run = measured(tmp_path / "run", **changes)
    result = invoke(run, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_run_without_a_rate_is_refused(tmp_path: Path) -> None:
    run = measured(tmp_path / "run", sealed=False)
    file = run / "rank-0000.jsonl"
    kept = [line for line in file.read_text().splitlines() if '"kind":"ceiling"' not in line]
    file.write_text("\n".join(kept) + "\n")
    message = usage_error(invoke(run, "--link", "1GB/s"))
    assert "the speed of the link is unknown (mpi@1, mpi@2, mpi@3)" in message


def test_no_such_run(tmp_path: Path) -> None:
    message = usage_error(invoke(tmp_path / "nothing", "--link", "1GB/s"))
    assert message.startswith("--from: ")


def test_a_forecast_needs_neither_torch_nor_mpi(tmp_path: Path) -> None:
    run = measured(tmp_path / "run")
    said = heavy_after({"torch", "mpi4py", "pandas"}, "plan", "--from", str(run), "--link", "1GB/s")
    assert said.endswith("HEAVY []\n")
