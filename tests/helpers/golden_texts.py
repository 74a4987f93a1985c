"""Texts that are made of the records under ``results/``, now and by an earlier program.

``python tests/helpers/golden_texts.py`` writes the earlier ones anew. Run it only where a number, a
column or a cell is meant to change.
"""

from __future__ import annotations

import contextlib
import io
import json
import lzma
from pathlib import Path

from dejavubench.analysis.figures.drawings import drawings
from dejavubench.analysis.findruns import find
from dejavubench.analysis.tables import formats
from dejavubench.analysis.tables.report import RunReport, log_report, report
from dejavubench.analysis.tables.textcells import Block
from dejavubench.records.textlog import TextLogError

TESTS = Path(__file__).parent.parent
RESULTS = TESTS.parent / "results"
FOLDER = TESTS / "golden"
MACHINES = tuple(sorted(path.parent.name for path in RESULTS.glob("*/records")))


def made(machine: str) -> dict[str, str]:
    """Return by name the tables, csv, json and figures' data of one machine's runs.

    Notes and headings are written for people and may change; they are left out.
    """
    runs = find([RESULTS / machine / "records"]).runs
    reports = [report(run) for run in runs]
    logs = [path for run in runs for path in sorted(run.path.glob("*none.log"))]
    texts = {
        "process.csv": _written(reports, "csv"),
        "process.json": _without_notes(_written(reports, "json")),
        "logs.csv": _written(_log_reports(logs), "csv").replace(f"{RESULTS}/", ""),
        "cells.json": json.dumps([[_cells(block) for block in each.blocks] for each in reports]),
    }
    for drawing in drawings(runs)[0]:
        texts[f"{drawing.name}.csv"] = drawing.frame.to_csv(index=False)
    return texts


def _log_reports(paths: list[Path]) -> list[RunReport]:
    reports = []
    for path in paths:
        with contextlib.suppress(TextLogError):  # some runs were too short
            reports.append(log_report(path))
    return reports


def _cells(block: Block) -> list[list[list[str]]]:
    return [[[cell.rstrip() for cell in row] for row in group] for group in block.groups]


def golden(machine: str) -> dict[str, str]:
    with lzma.open(FOLDER / f"{machine}.json.xz", "rt", encoding="utf-8") as file:
        texts: dict[str, str] = json.load(file)
    return texts


def _written(reports: list[RunReport], style: str) -> str:
    out = io.StringIO()
    formats.write(reports, style, out)
    return out.getvalue()


def _without_notes(text: str) -> str:
    documents = json.loads(text)
    for document in documents:
        document["notes"] = []
        document["header"]["path"] = document["header"]["path"].removeprefix(f"{RESULTS}/")
    return json.dumps(documents, indent=2, ensure_ascii=False)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in MACHINES:
        with lzma.open(FOLDER / f"{each}.json.xz", "wt", encoding="utf-8", preset=9) as file:
            json.dump(made(each), file, ensure_ascii=False)
