"""For tests of committed records: texts made of ``results/``, now and by an earlier program.

A later program may add tables, columns and keys, but it changes none: :func:`find_loss` tells. So
the texts are written anew, by ``python tests/helpers/golden_texts.py [MACHINE…]``, only where a
number or a cell is meant to change. They are plain text with sorted keys, so that a diff can be
read.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dejavubench.analysis.figures.drawings import make_drawings
from dejavubench.analysis.reports import formats
from dejavubench.analysis.reports.report import RunReport, make_log_report
from dejavubench.analysis.tables.text_tables import Block
from dejavubench.records.text_log import TextLogError
from helpers.committed_runs import report_of, runs_of
from helpers.paths import GOLDEN, RESULTS

MACHINES = tuple(sorted(path.parent.name for path in RESULTS.glob("*/records")))

ONE_TOKEN_OF = 25
"""Tokens of a tails figure per kept one. Each row has a sorted token and its share of all tokens,
so a token that is lost or changed also moves rows that are kept."""


def make_texts(machine: str) -> dict[str, str]:
    """Return by name the tables, csv, json and figures' data of one machine's runs.

    Notes, answers in words and headings are written for people and may change; they are left out.
    """
    runs = runs_of(machine)
    reports = [report_of(run) for run in runs]
    logs = [path for run in runs for path in sorted(run.path.glob("*none.log"))]
    texts = {
        "process.csv": _formatted(reports, "csv"),
        "process.json": _without_notes(_formatted(reports, "json")),
        "logs.csv": _formatted(_log_reports(logs), "csv").replace(f"{RESULTS}/", ""),
        "cells.json": _to_json([[_cells(block) for block in report.blocks] for report in reports])
        + "\n",
    }
    for drawing in make_drawings(runs)[0]:
        texts[f"{drawing.name}.csv"] = drawing.frame.to_csv(index=False)
    compared = [run for run in runs if run.header.figure == "fig25"]
    for drawing in make_drawings(compared, name="tails")[0]:
        texts[f"{drawing.name}.csv"] = drawing.frame[::ONE_TOKEN_OF].to_csv(index=False)
    return texts


def find_loss(name: str, golden: str, current: str) -> str | None:
    """Return what the earlier text has and the later one lacks; None if it has everything."""
    if name == "cells.json":
        old_cells, new_cells = json.loads(golden), json.loads(current)
        pairs = zip(old_cells, new_cells, strict=True)
        return next(
            (str(old)[:500] for old, new in pairs if not _is_within(old, new, _has_table)), None
        )
    if name.endswith(".csv"):
        old_rows, new_rows = (list(csv.DictReader(io.StringIO(text))) for text in (golden, current))
        return _find_missing(old_rows, new_rows)
    return _find_missing(json.loads(golden), json.loads(current))


def _find_missing(old: Any, new: Any, path: str = "") -> str | None:
    """Return the first value of ``old`` that ``new`` has not; it may have more keys."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(key, value, new.get(key, "nothing")) for key, value in old.items()]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(number, *pair) for number, pair in enumerate(zip(old, new, strict=True))]
    else:
        return None if old == new else f"{path}: {old!r} is now {new!r}"
    losses = (_find_missing(old_value, other, f"{path}/{key}") for key, old_value, other in pairs)
    return next((loss for loss in losses if loss is not None), None)


def _is_within(old: Sequence[Any], new: Sequence[Any], same: Any) -> bool:
    """Return whether all of ``old`` is in ``new``, in the same order."""
    new_elements = iter(new)
    return all(
        any(same(old_element, new_element) for new_element in new_elements) for old_element in old
    )


def _has_table(old: list[list[list[str]]], new: list[list[list[str]]]) -> bool:
    """Return whether a table holds an earlier one: the same rows, with all of their cells."""
    return [len(group) for group in old] == [len(group) for group in new] and all(
        _is_within(row, new_row, str.__eq__)
        for group, new_group in zip(old, new, strict=True)
        for row, new_row in zip(group, new_group, strict=True)
    )


def _log_reports(paths: list[Path]) -> list[RunReport]:
    reports = []
    for path in paths:
        with contextlib.suppress(TextLogError):  # some runs were too short
            reports.append(make_log_report(path))
    return reports


def _cells(block: Block) -> list[list[list[str]]]:
    return [[[cell.rstrip() for cell in row] for row in group] for group in block.groups]


def read_golden(machine: str) -> dict[str, str]:
    """Return by name the texts of the earlier program, which :func:`made` makes anew."""
    return {path.name: path.read_text() for path in (GOLDEN / machine).iterdir()}


def _to_json(value: Any, indent: str = "") -> str:
    """Return a value as JSON with sorted keys: one key per line, and each table row on a line."""
    within = f"{indent} "
    if isinstance(value, dict) and value:
        lines = [f"{json.dumps(key)}: {_to_json(value[key], within)}" for key in sorted(value)]
        brackets = "{}"
    elif isinstance(value, list) and any(isinstance(element, dict | list) for element in value):
        lines, brackets = [_to_json(element, within) for element in value], "[]"
    else:
        return json.dumps(value, ensure_ascii=False)
    text = ",\n".join(f"{within}{line}" for line in lines)
    return f"{brackets[0]}\n{text}\n{indent}{brackets[1]}"


def _formatted(reports: list[RunReport], style: str) -> str:
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
    return _to_json(documents) + "\n"


def _write(machine: str) -> None:
    folder = GOLDEN / machine
    shutil.rmtree(folder, ignore_errors=True)  # a figure may have another name now
    folder.mkdir(parents=True)
    for name, text in make_texts(machine).items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    for name in sys.argv[1:] or MACHINES:
        _write(name)
