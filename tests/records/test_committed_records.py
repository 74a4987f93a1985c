"""The records under results/, which older programs have written: they are read as they were."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from dejavubench.analysis.columns import values_by_column
from dejavubench.analysis.tables import run_rows
from helpers.committed_runs import committed_runs, runs_of
from helpers.golden_texts import MACHINES, find_loss, make_texts, read_golden
from helpers.paths import RESULTS

COLUMNS = [
    "prompt_ms",
    "token_ms",
    "total_ms",
    "overhead_pct",
    "noise_floor_high_pct",
    "streamed_bytes",
    "alone_ms",
]


def test_every_committed_run_keeps_to_the_rules() -> None:
    runs_read = committed_runs()
    assert runs_read.bad == []
    assert len(runs_read.runs) == len(list(RESULTS.glob("*/records/*/run.json")))
    assert [note for run in runs_read.runs for note in run.notes] == []


@pytest.mark.parametrize("machine", ["xeon-2core", "h200"])
def test_numbers_are_those_that_were_committed_with_them(machine: str) -> None:
    committed = pd.read_csv(RESULTS / machine / "tables.csv", dtype={"level": str}).set_index(
        ["run", "point", "arm"]
    )
    runs = [run for run in runs_of(machine) if run.path.name.startswith("fig25-")]
    rows = [values_by_column(row) for run in runs for row in run_rows.run_rows(run)]
    assert len(rows) >= 5
    for row in rows:
        name_of_row: Any = (row["run"], row["point"], row["arm"])
        committed_row = committed.loc[name_of_row]
        for name in COLUMNS:
            if pd.isna(committed_row[name]):
                assert row[name] is None
            else:
                assert row[name] == pytest.approx(committed_row[name], rel=1e-9), name


@pytest.mark.parametrize("machine", MACHINES)
def test_tables_and_figures_data_are_those_of_the_earlier_program(machine: str) -> None:
    golden_texts, texts = read_golden(machine), make_texts(machine)
    assert sorted(texts) == sorted(golden_texts)
    for name, text in golden_texts.items():
        assert find_loss(name, text, texts[name]) is None, name


def test_a_changed_number_or_cell_is_found() -> None:
    assert find_loss("a.csv", "x,y\n1,2\n", "x,new,y\n1,0,2\n") is None
    assert find_loss("a.csv", "x,y\n1,2\n", "x,y\n1,3\n") == "/0/y: '2' is now '3'"
    assert find_loss("a.csv", "x\n1\n2\n", "x\n1\n") is not None
    assert find_loss("a.json", '{"rows": [{"x": 1}]}', '{"rows": [{"x": 1, "y": 2}]}') is None
    assert find_loss("a.json", '{"rows": [{"x": 1}]}', '{"rows": [{"y": 1}]}') is not None
    cells = '[[[[["none", "1"], ["mpi@3", "2"]]]]]'
    assert (
        find_loss("cells.json", cells, '[[[[["p", "none", "1"], ["p", "mpi@3", "2"]]], []]]')
        is None
    )
    assert find_loss("cells.json", cells, '[[[[["none", "1"], ["mpi@3", "3"]]]]]') is not None
    assert find_loss("cells.json", cells, '[[[[["none", "1"]], [["mpi@3", "2"]]]]]') is not None
