"""Texts that are made of the records under ``results/``, now and by an earlier program.

A later program may add tables, columns and keys, but it changes none: :func:`lost` tells. So the
texts are written anew, by ``python tests/helpers/golden_texts.py [MACHINE…]``, only where a number
or a cell is meant to change.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import lzma
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dejavubench.analysis.figures.drawings import drawings
from dejavubench.analysis.tables import formats
from dejavubench.analysis.tables.report import RunReport, log_report
from dejavubench.analysis.tables.text_tables import Block
from dejavubench.records.text_log import TextLogError
from helpers.committed_runs import report_of, runs_of
from helpers.paths import GOLDEN, RESULTS

MACHINES = tuple(sorted(path.parent.name for path in RESULTS.glob("*/records")))


def made(machine: str) -> dict[str, str]:
    """Return by name the tables, csv, json and figures' data of one machine's runs.

    Notes, answers in words and headings are written for people and may change; they are left out.
    """
    runs = runs_of(machine)
    reports = [report_of(run) for run in runs]
    logs = [path for run in runs for path in sorted(run.path.glob("*none.log"))]
    texts = {
        "process.csv": _written(reports, "csv"),
        "process.json": _without_notes(_written(reports, "json")),
        "logs.csv": _written(_log_reports(logs), "csv").replace(f"{RESULTS}/", ""),
        "cells.json": json.dumps([[_cells(block) for block in each.blocks] for each in reports]),
    }
    compared = [run for run in runs if run.header.figure == "fig25"]
    for drawing in [*drawings(runs)[0], *drawings(compared, name="tails")[0]]:
        texts[f"{drawing.name}.csv"] = drawing.frame.to_csv(index=False)
    return texts


def lost(name: str, before: str, now: str) -> str | None:
    """Return what the earlier text has and the later one lacks; None if it has everything."""
    if name == "cells.json":
        old_cells, new_cells = json.loads(before), json.loads(now)
        pairs = zip(old_cells, new_cells, strict=True)
        return next((str(old)[:500] for old, new in pairs if not _within(old, new, _table)), None)
    if name.endswith(".csv"):
        old_rows, new_rows = (list(csv.DictReader(io.StringIO(text))) for text in (before, now))
        return _missing(old_rows, new_rows)
    return _missing(json.loads(before), json.loads(now))


def _missing(old: Any, new: Any, where: str = "") -> str | None:
    """Return the first value of ``old`` that ``new`` has not; it may have more keys."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(key, value, new.get(key, "nothing")) for key, value in old.items()]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(number, *pair) for number, pair in enumerate(zip(old, new, strict=True))]
    else:
        return None if old == new else f"{where}: {old!r} is now {new!r}"
    found = (_missing(each, other, f"{where}/{key}") for key, each, other in pairs)
    return next((each for each in found if each is not None), None)


def _within(old: Sequence[Any], new: Sequence[Any], same: Any) -> bool:
    """Return whether all of ``old`` is in ``new``, in the same order."""
    left = iter(new)
    return all(any(same(each, other) for other in left) for each in old)


def _table(old: list[list[list[str]]], new: list[list[list[str]]]) -> bool:
    """Return whether a table holds an earlier one: the same rows, with all of their cells."""
    return [len(group) for group in old] == [len(group) for group in new] and all(
        _within(row, other, str.__eq__)
        for group, others in zip(old, new, strict=True)
        for row, other in zip(group, others, strict=True)
    )


def _log_reports(paths: list[Path]) -> list[RunReport]:
    reports = []
    for path in paths:
        with contextlib.suppress(TextLogError):  # some runs were too short
            reports.append(log_report(path))
    return reports


def _cells(block: Block) -> list[list[list[str]]]:
    return [[[cell.rstrip() for cell in row] for row in group] for group in block.groups]


def golden(machine: str) -> dict[str, str]:
    with lzma.open(GOLDEN / f"{machine}.json.xz", "rt", encoding="utf-8") as file:
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
        del document["notes_by_kind"]
        for row in document["answers"]:
            for key in ("sentence", "limit_evidence", "limit_remedy"):
                del row[key]
        document["header"]["path"] = document["header"]["path"].removeprefix(f"{RESULTS}/")
    return json.dumps(documents, indent=2, ensure_ascii=False)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for each in sys.argv[1:] or MACHINES:
        with lzma.open(GOLDEN / f"{each}.json.xz", "wt", encoding="utf-8", preset=9) as file:
            json.dump(made(each), file, ensure_ascii=False)
