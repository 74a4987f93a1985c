"""Pages of docs/reference, and figures.mk, against the registries that they are made from."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from dejavubench.analysis.columns import UNITS, columns_of
from dejavubench.analysis.comparison.change_rows import ComparisonRow
from dejavubench.analysis.figures.registry import load_figures
from dejavubench.analysis.reference import PAGES
from dejavubench.analysis.reports.report_order import ROW_CLASSES
from dejavubench.analysis.tables.process_columns import COLUMNS, Row
from dejavubench.analysis.tables.tails_part import TAIL_CELLS
from dejavubench.analysis.tables.text_cells import SHOWN_CELLS
from dejavubench.records import EndEnvironment, RankEnvironment, RunEnvironment
from helpers.paths import RESULTS, ROOT

LONG_ROWS = list(ROW_CLASSES.values())
KINDS = (Row, ComparisonRow, *LONG_ROWS, *dict.fromkeys(figure.row for figure in load_figures()))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_the_one_that_the_code_makes(page: str) -> None:
    text = (ROOT / PAGES[page].path).read_text()
    assert text == PAGES[page].text(), f"python -m dejavubench.analysis.reference {page}"


def test_tables_for_people_are_made_from_known_columns() -> None:
    columns = {column.name for column in COLUMNS}
    shown = [*SHOWN_CELLS.values(), TAIL_CELLS]
    used = {name for cells in shown for cell in cells for name in cell.columns}
    assert used <= columns


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_unique_and_meanings_are_sentences(kind: type[Any]) -> None:
    columns = list(columns_of(kind))
    assert len({column.name for column in columns}) == len(columns)
    for column in columns:
        assert column.meaning.endswith("."), column.name
        assert len(column.meaning.split()) <= 25, column.name


def test_a_longer_end_of_a_name_is_tried_before_a_shorter_one() -> None:
    ends = list(UNITS)
    hidden_ends = [
        (end, later_end)
        for place, end in enumerate(ends)
        for later_end in ends[place + 1 :]
        if later_end.endswith(end)
    ]
    assert not hidden_ends


def unnamed_keys(kind: type[BaseModel], environment: dict[str, Any]) -> Iterator[str]:
    """Yield the keys that were written and have no name, in nested models as well."""
    read = kind.model_validate(environment)
    yield from read.model_extra or {}
    for name in read.model_fields_set:
        value = getattr(read, name, None)
        if isinstance(value, BaseModel):
            yield from (f"{name}.{extra}" for extra in value.model_extra or {})


def test_every_key_of_committed_environments_has_a_name() -> None:
    unknown: set[str] = set()
    for folder in RESULTS.glob("*/records/*"):
        header = json.loads((folder / "run.json").read_text())
        unknown |= set(unnamed_keys(RunEnvironment, header["environment"]))
        for file in folder.glob("rank-*.jsonl"):
            for line in file.read_text().splitlines():
                if line.startswith('{"kind":"rank"'):
                    unknown |= set(unnamed_keys(RankEnvironment, json.loads(line)["environment"]))
                elif line.startswith('{"kind":"end"'):
                    environment = json.loads(line).get("environment", {})
                    unknown |= set(unnamed_keys(EndEnvironment, environment))
    assert not unknown


def test_analysis_loads_neither_torch_nor_mpi() -> None:
    code = (
        "import sys, dejavubench.analysis.reports.formats, dejavubench.analysis.figures.files;"
        "print([name for name in ('torch', 'mpi4py') if name in sys.modules])"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert completed.stdout.strip() == "[]"


def test_every_key_that_is_recorded_has_a_name() -> None:
    from dejavubench.bench.environment.facts import describe_rank, describe_run

    assert set(describe_run(["a"], thread_count=1, core_count=2)) <= set(
        RunEnvironment.model_fields
    )
    assert set(describe_rank()) <= set(RankEnvironment.model_fields)
