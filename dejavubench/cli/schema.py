"""``dejavubench schema``: JSON Schema of the files that this program writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import click

SCHEMA_NAMES = ("run", "session", "rank", "chunks", "conditions", "table", "compare", "doctor")
"""The files of a run's folder, and the json of ``process``, ``compare`` and ``doctor``."""


@click.command()
@click.argument("name", required=False, type=click.Choice(SCHEMA_NAMES))
def schema(name: str | None) -> None:
    """Print the JSON Schema of records and tables, with the meaning and unit of every key.

    \b
    run         run.json of a run's folder
    session     run.s2.json of a session that went on with a run
    rank        one line of rank-0000.jsonl and its like
    chunks      one line of chunks-0000.jsonl and its like
    conditions  one line of conditions-0000.jsonl and its like
    table       the output of process --format json
    compare     the output of compare --format json
    doctor      the output of doctor --format json

    Without a name, one JSON object holds all of them. Files of older programs keep to the schemas
    of runs; what they lack is optional there.
    """
    document = (
        _make_schema(name)
        if name
        else {schema_name: _make_schema(schema_name) for schema_name in SCHEMA_NAMES}
    )
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def _make_schema(name: str) -> dict[str, object]:
    if name in _OUTPUTS:
        return _OUTPUTS[name]()
    return _make_file_schema(name)


def _make_file_schema(name: str) -> dict[str, object]:
    from dejavubench.config.experiment import OPTIONS, help_of
    from dejavubench.records.json_schemas import make_file_schema

    document = make_file_schema(name)
    if name == "run":
        # The types of options have changed with the program's versions, so they are left open.
        document["properties"]["experiment"]["properties"] = {
            key: {"description": help_of(key)} for key in OPTIONS
        }
    return document


def _make_table_schema() -> dict[str, object]:
    from dejavubench.analysis.reports.table_schema import make_table_schema

    return make_table_schema()


def _make_comparison_schema() -> dict[str, object]:
    from dejavubench.analysis.comparison.json_output import make_comparison_schema

    return make_comparison_schema()


def _make_doctor_schema() -> dict[str, object]:
    from dejavubench.doctor.report import SCHEMA, Examination
    from dejavubench.records.json_schemas import make_output_schema

    return make_output_schema("output of doctor --format json", SCHEMA, Examination)


_OUTPUTS: Mapping[str, Callable[[], dict[str, object]]] = {
    "table": _make_table_schema,
    "compare": _make_comparison_schema,
    "doctor": _make_doctor_schema,
}
"""Makes the schema of each command's json."""
