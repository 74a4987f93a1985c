"""JSON Schema of what ``process --format json`` writes, made from the registry of columns."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from dejavubench.analysis.columns import columns_of
from dejavubench.analysis.reports.report_order import ROW_CLASSES
from dejavubench.analysis.tables.process_columns import Row
from dejavubench.records import Note
from dejavubench.records.json_schemas import DIALECT, make_class_schema, make_file_schema

TABLE_SCHEMA = 2
"""Version of the documents. It rises only where an older reader would misread them."""

_TEXTS = {"type": "array", "items": {"type": "string"}}


def make_table_schema() -> dict[str, Any]:
    """Return the schema of the list of documents, one for each run or text log."""
    header = make_file_schema("run")
    definitions = header.pop("$defs")
    for key in ("$schema", "title", "schema_version"):
        del header[key]
    header["properties"]["path"] = _make_text_schema("Folder of the run.")
    definitions["RunHeader"] = header
    rows: list[type[Any]] = [Row, *ROW_CLASSES.values()]
    for row in rows:
        definitions[row.__name__] = make_row_schema(row, definitions)
    definitions["Note"] = make_class_schema(Note)
    properties = {
        "run": _make_text_schema(
            "Name and folder of the run, its machine and start; path of a text log."
        ),
        "header": {
            "description": "What run.json holds; null for a text log.",
            "anyOf": [{"$ref": "#/$defs/RunHeader"}, {"type": "null"}],
        },
        "notes": {"description": "Notes for people, the most important first.", **_TEXTS},
        "rows": _make_list_schema(Row, "Rows of the points and arms, or of a text log's ranks."),
        **{
            name: _make_list_schema(row, f"Rows of the table {name}.")
            for name, row in ROW_CLASSES.items()
        },
        "notes_by_kind": {
            "description": "The notes again, each with its severity and kind.",
            "type": "array",
            "items": {"$ref": "#/$defs/Note"},
        },
        "schema_version": {"description": "Version of this schema.", "const": TABLE_SCHEMA},
    }
    # A text log has rows of its own kind alone.
    optional_names = set(ROW_CLASSES)
    return {
        "$schema": DIALECT,
        "title": "output of process --format json",
        "schema_version": TABLE_SCHEMA,
        "type": "array",
        "items": {
            "type": "object",
            "properties": properties,
            "required": [name for name in properties if name not in optional_names],
        },
        "$defs": definitions,
    }


def _make_text_schema(meaning: str) -> dict[str, Any]:
    return {"description": meaning, "type": "string"}


def _make_list_schema(row: type[Any], meaning: str) -> dict[str, Any]:
    row_reference = {"$ref": f"#/$defs/{row.__name__}"}
    return {"description": meaning, "type": "array", "items": row_reference}


def make_row_schema(row: type[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a row: every column is there, null where it has no value.

    Args:
        definitions: gets those that the types of columns refer to.
    """
    properties = {}
    for column in columns_of(row):
        value = TypeAdapter(column.value_type).json_schema()
        definitions.update(value.pop("$defs", {}))
        properties[column.name] = {"description": column.meaning, **value}
        if column.unit:
            properties[column.name]["unit"] = column.unit
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
