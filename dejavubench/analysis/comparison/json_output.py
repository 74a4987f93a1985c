"""A comparison as json, and its JSON Schema: both made from :class:`ComparisonDocument`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import IO, Any

from dejavubench.analysis.columns import values_by_column
from dejavubench.analysis.comparison import change_result, change_sentences
from dejavubench.analysis.comparison.build import Comparison
from dejavubench.analysis.comparison.change_rows import ComparisonRow
from dejavubench.analysis.comparison.differences import RunDifference
from dejavubench.analysis.comparison.gate import GateVerdict
from dejavubench.analysis.comparison.metric import Metric
from dejavubench.analysis.comparison.pairing import Pairing
from dejavubench.analysis.reports.table_schema import make_row_schema
from dejavubench.records import Note
from dejavubench.records.json_schemas import make_output_schema

COMPARISON_SCHEMA = 1
"""Version of the json, which rises when a key changes its meaning or goes away."""


@dataclass(frozen=True)
class ComparisonDocument:
    """Output of compare --format json.

    Attributes:
        schema_version: version of this schema.
        a: folders of the runs of A.
        b: folders of the runs of B.
        metric: time that is compared.
        pairing: how the runs belong together, as in the rows.
        compared: the one setting or arm that differs on purpose; null if nothing does.
        differences: everything else in which the runs differ.
        only: points and arms that A or B alone has, by its name.
        limit_pct: largest change that is no regression, in %; null without --fail-above.
        verdict: of all rows together; null without --fail-above.
        exit_status: that of the command.
        result: the result in words.
        notes: sentences on the result, those that qualify it first.
        rows: one for each point and arm that A and B have in common.
    """

    schema_version: int
    a: list[str]
    b: list[str]
    metric: Metric
    pairing: Pairing
    compared: RunDifference | None
    differences: list[RunDifference]
    only: dict[str, list[str]]
    limit_pct: float | None
    verdict: GateVerdict | None
    exit_status: int
    result: str
    notes: list[Note]
    rows: list[dict[str, Any]]


def write_json(comparison: Comparison, out: IO[str]) -> None:
    """Write a comparison as one JSON object."""
    is_gated = comparison.is_gated
    document = ComparisonDocument(
        schema_version=COMPARISON_SCHEMA,
        a=[str(run.path) for run in comparison.a.runs],
        b=[str(run.path) for run in comparison.b.runs],
        metric=comparison.metric,
        pairing=comparison.pairing,
        compared=comparison.compared_difference,
        differences=comparison.differences,
        only=comparison.unmatched_names,
        limit_pct=100 * comparison.limit if is_gated else None,
        verdict=comparison.verdict if is_gated else None,
        exit_status=int(comparison.exit_status),
        result=change_result.describe_result(comparison),
        notes=change_sentences.make_notes(comparison),
        rows=[values_by_column(row) for row in comparison.rows],
    )
    json.dump(asdict(document), out, indent=2, allow_nan=False, ensure_ascii=False)
    out.write("\n")


def make_comparison_schema() -> dict[str, Any]:
    """Return the schema of what :func:`write_json` writes."""
    title = "output of compare --format json"
    document = make_output_schema(title, COMPARISON_SCHEMA, ComparisonDocument)
    definitions: dict[str, Any] = document.setdefault("$defs", {})
    definitions["ComparisonRow"] = make_row_schema(ComparisonRow, definitions)
    document["properties"]["rows"]["items"] = {"$ref": "#/$defs/ComparisonRow"}
    return document
