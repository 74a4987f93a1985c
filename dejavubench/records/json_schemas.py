"""JSON Schema of the files of a run's folder, made from the models that write and read them.

Meanings come from the models: from a field's description, or from the ``Attributes`` of the class's
docstring. Units come from the ends of the keys' names. Keys that older records lack are optional.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from dejavubench.records.chunk_times import CHUNK_RECORD
from dejavubench.records.conditions import CONDITION
from dejavubench.records.header import SCHEMA, RunHeader
from dejavubench.records.schema import RECORD
from dejavubench.records.sessions import SessionHeader

DIALECT = "https://json-schema.org/draft/2020-12/schema"
"""JSON Schema's version."""

UNITS = {
    "gb_s": "GB/s",
    "mbit_s": "Mbit/s",
    "us": "µs",
    "percent": "%",
    "nbytes": "bytes",
    "mib": "MiB",
    "offset_ns": "ns",
    "ms": "ms",
    "ns": "ns",
    "mhz": "MHz",
    "w": "W",
    "c": "°C",
    "s": "s",
}
"""Unit of a key by the last words of its name."""

COMMON_MEANINGS = {
    "kind": "Kind of the record.",
    "run_id": "Identifier of the run, as in its run.json.",
    "rank": "Number of the rank.",
    "point": "Point of the sweep, such as p000.",
    "arm": "Name of the arm, such as mpi@3.",
    "iteration": "Number of the iteration within its point and arm, from 0, warm-ups included.",
    "round": "Number of the round from 0; null in warm-up.",
    "ubatch": "Number of the microbatch among those in flight.",
}
"""Meanings of keys that many records have. A class's own words come first."""

_FILES: Mapping[str, tuple[str, TypeAdapter[Any]]] = {
    "run": ("run.json", TypeAdapter(RunHeader)),
    "session": ("run.s2.json and its like", TypeAdapter(SessionHeader)),
    "rank": ("one line of rank-0000.jsonl and its like", RECORD),
    "chunks": ("one line of chunks-0000.jsonl and its like", CHUNK_RECORD),
    "conditions": ("one line of conditions-0000.jsonl and its like", CONDITION),
}

NAMES = tuple(_FILES)
"""Names of the schemas of files."""

_ATTRIBUTES = re.compile(r"^Attributes:\n((?:    .*\n|\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"^    (\w+(?:, \w+)*): ", re.MULTILINE)


def make_file_schema(name: str) -> dict[str, Any]:
    """Return the schema of a file, or of each of its lines."""
    title, adapter = _FILES[name]
    document = adapter.json_schema(schema_generator=_Described)
    document.pop("title", None)
    return {"$schema": DIALECT, "title": title, "schema_version": SCHEMA, **document}


def make_class_schema(described_class: type[Any]) -> dict[str, Any]:
    """Return the schema of a class whose docstring tells the meaning of each key."""
    document = TypeAdapter(described_class).json_schema(schema_generator=_Described)
    document.pop("title", None)
    return document


def make_output_schema(title: str, version: int, described_class: type[Any]) -> dict[str, Any]:
    """Return the schema of a command's json, which is one object of a described class.

    Args:
        version: value of the object's key ``schema_version``.
    """
    document = make_class_schema(described_class)
    document["properties"]["schema_version"]["const"] = version
    return {"$schema": DIALECT, "title": title, "schema_version": version, **document}


def unit_of(key: str) -> str | None:
    """Return the unit that the end of a key's name tells."""
    # With a leading underscore, the key `ms` has a unit and the key `items` has none.
    units = (unit for key_end, unit in UNITS.items() if f"_{key}".endswith(f"_{key_end}"))
    return next(units, None)


def read_attributes(described_class: type[Any]) -> dict[str, str]:
    """Return the meanings of a class's attributes by its docstring and those of its bases."""
    meanings: dict[str, str] = {}
    for base in reversed(described_class.__mro__):
        meanings |= dict(_attributes_of(base))
    return meanings


def _attributes_of(described_class: type[Any]) -> Iterator[tuple[str, str]]:
    section = _ATTRIBUTES.search(inspect.cleandoc(described_class.__doc__ or "") + "\n")
    if section is None:
        return
    # The text before the first entry is empty; names and texts alternate after it.
    _, *names_and_texts = _ENTRY.split(section[1])
    for names, text in zip(names_and_texts[::2], names_and_texts[1::2], strict=True):
        for name in names.split(", "):
            yield name, format_meaning(text)


def format_meaning(text: str) -> str:
    """Return a meaning as a sentence on one line, without the marks of code."""
    plain_text = re.sub(r":\w+:`[~.]*([^`]+)`", r"\1", " ".join(text.split())).replace("``", "'")
    plain_text = re.sub(r"\bNone\b", "null", plain_text)
    return f"{plain_text[:1].upper()}{plain_text[1:].rstrip('.')}."


class _Described(GenerateJsonSchema):
    """Adds the meaning and the unit of each key, and requires the kind of a record."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        return self._describe(super().model_schema(schema), schema["cls"])

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        return self._describe(super().dataclass_schema(schema), schema["cls"])

    def _describe(self, document: JsonSchemaValue, described_class: type[Any]) -> JsonSchemaValue:
        """Add to a class's schema what its docstring and its keys' names tell."""
        summary, *_ = inspect.cleandoc(described_class.__doc__ or "").split("\n\n")
        document["description"] = format_meaning(summary)
        meanings = read_attributes(described_class)
        properties: dict[str, Any] = document.get("properties", {})
        for key, value in properties.items():
            # The title would only repeat the key.
            value.pop("title", None)
            meaning = value.get("description") or meanings.get(key) or COMMON_MEANINGS.get(key)
            if meaning:
                value["description"] = format_meaning(meaning)
            unit = unit_of(key)
            if unit is not None:
                value["unit"] = unit
        # Each line names its kind, which the models fill in themselves.
        if "const" in properties.get("kind", {}):
            document["required"] = ["kind", *document.get("required", [])]
        return document
