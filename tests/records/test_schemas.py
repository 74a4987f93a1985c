"""The printed JSON Schemas against committed records, a fresh run, and every key's meaning.

The fresh run is that of the fixture ``sweep``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from dejavubench.analysis.columns import columns_of
from dejavubench.analysis.reference import make_columns_page
from dejavubench.analysis.reports.report_order import ROW_CLASSES
from dejavubench.analysis.tables.process_columns import Row
from dejavubench.cli.schema import SCHEMA_NAMES
from dejavubench.doctor.checks.registry import find_rows
from dejavubench.doctor.facts.job import Job
from dejavubench.doctor.report import as_json
from dejavubench.records.json_schemas import format_meaning, read_attributes, unit_of
from helpers.cli_calls import call
from helpers.doctor_facts import GPUS, HOST, make_job, two_hosts
from helpers.paths import RESULTS
from helpers.synthetic_runs import write_run

FILES = {"rank": "rank-*.jsonl", "chunks": "chunks-*.jsonl", "conditions": "conditions-*.jsonl"}


@cache
def print_schema(name: str) -> dict[str, Any]:
    schema_call = call("schema", name)
    assert schema_call.exit_code == 0, schema_call.output
    schema: dict[str, Any] = json.loads(schema_call.output)
    return schema


@cache
def make_validator(name: str) -> Draft202012Validator:
    Draft202012Validator.check_schema(print_schema(name))
    return Draft202012Validator(print_schema(name))


def find_complaints(name: str, document: Any) -> list[str]:
    return [
        f"{error.json_path}: {error.message}"
        for error in make_validator(name).iter_errors(document)
    ]


def list_keys(schema: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every key that a schema describes, with its own schema."""
    if isinstance(schema, dict):
        properties = schema.get("properties", {})
        yield from properties.items()
        for name, value in schema.items():
            if name != "experiment":  # its keys have the texts of the options' help
                yield from list_keys(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from list_keys(value)


def lines_of(folder: Path, pattern: str) -> Iterator[Any]:
    """Yield the first and the last line of each kind of each file."""
    for path in folder.glob(pattern):
        chosen: dict[tuple[str, bool], str] = {}
        for line in path.read_text().splitlines():
            kind = line.split('"', 4)[3]
            chosen.setdefault((kind, True), line)
            chosen[kind, False] = line
        yield from map(json.loads, dict.fromkeys(chosen.values()))


@pytest.mark.parametrize("name", SCHEMA_NAMES)
def test_every_key_has_a_meaning_in_sentences(name: str) -> None:
    described = list(list_keys(print_schema(name)))
    assert len(described) > 10
    for key, value in described:
        meaning = value.get("description", "")
        assert meaning.endswith("."), key
        for clause in meaning.replace("; ", ". ").split(". "):
            assert len(clause.split()) <= 25, f"{key}: {clause}"
        assert value.get("unit") or unit_of(key) is None or name in ("table", "compare"), key


def test_without_a_name_all_schemas_are_printed() -> None:
    schema_call = call("schema")
    assert json.loads(schema_call.output) == {name: print_schema(name) for name in SCHEMA_NAMES}


def test_every_option_is_a_key_of_the_experiment() -> None:
    experiment = print_schema("run")["properties"]["experiment"]["properties"]
    assert {"threads", "staging_mib", "durability"} <= set(experiment)
    assert all(option["description"] for option in experiment.values())


def test_every_column_is_on_the_reference_page() -> None:
    page = make_columns_page()
    rows: list[type[Any]] = [Row, *ROW_CLASSES.values()]
    for row in rows:
        assert [
            column.name for column in columns_of(row) if f"| `{column.name}` |" not in page
        ] == []


def test_committed_records_keep_to_the_schemas() -> None:
    folders = sorted(path.parent for path in RESULTS.glob("*/records/*/run.json"))
    assert len(folders) > 20
    for folder in folders:
        assert find_complaints("run", json.loads((folder / "run.json").read_text())) == [], folder
        for name, pattern in FILES.items():
            for record in lines_of(folder, pattern):
                assert find_complaints(name, record) == [], f"{folder}: {record['kind']}"


def test_a_fresh_run_and_its_table_keep_to_the_schemas(sweep: Path) -> None:
    header = json.loads((sweep / "run.json").read_text())
    assert find_complaints("run", header) == []
    assert set(header) <= set(print_schema("run")["properties"])
    for name, pattern in FILES.items():
        kinds = set()
        for record in lines_of(sweep, pattern):
            assert find_complaints(name, record) == []
            kinds.add(record["kind"])
        assert len(kinds) >= 2, name
    process_call = call("process", sweep, "--format", "json")
    documents = json.loads(process_call.stdout)
    assert find_complaints("table", documents) == []
    described = print_schema("table")["items"]["properties"]
    assert set(documents[0]) == set(described)
    assert documents[0]["schema_version"] == described["schema_version"]["const"] == 2


def test_a_comparison_keeps_to_its_schema(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / name, seed=seed, rounds=rounds, experiment={"threads": threads})
        for name, seed, rounds, threads in (("a", 1, 12, 1), ("b", 2, 12, 2), ("c", 3, 3, 1))
    ]
    operand_a, operand_b, short_run = map(str, folders)
    for words in (
        [operand_a, operand_b],
        [operand_a, operand_b, "--fail-above", "0"],
        [operand_a, short_run],
        [f"{operand_a}:none", f"{operand_a}:mpi@3"],
    ):
        compare_call = call("compare", *words, "--format", "json")
        document = json.loads(compare_call.stdout)
        assert find_complaints("compare", document) == []
        assert set(document) == set(print_schema("compare")["properties"])
        assert document["schema_version"] == print_schema("compare")["schema_version"] == 1
    assert find_complaints("compare", document | {"verdict": "maybe"})
    assert find_complaints("compare", document | {"rows": [{}]})
    assert find_complaints("compare", document | {"schema_version": 2})


@pytest.mark.parametrize(
    "examined_job",
    [make_job(), replace(two_hosts(), hosts=(replace(HOST, gpus=GPUS),)), Job(problem="no answer")],
    ids=["healthy", "GPUs and links", "ended early"],
)
def test_an_examination_keeps_to_its_schema(examined_job: Job) -> None:
    document = json.loads(as_json(examined_job, find_rows(examined_job)))
    assert find_complaints("doctor", document) == []
    assert set(document) == set(print_schema("doctor")["properties"])
    assert document["schema_version"] == print_schema("doctor")["schema_version"]
    assert find_complaints("doctor", document | {"findings": [{}]})


def test_units_come_from_the_ends_of_names() -> None:
    units = {"write_gb_s": "GB/s", "mbit_s": "Mbit/s", "sync_p99_ms": "ms", "cpu_s": "s"}
    assert {name: unit_of(name) for name in units} == units
    assert unit_of("status") is None


def test_a_damaged_record_breaks_its_schema() -> None:
    sink_record = {"kind": "sink", "point": "p000", "arm": "mpi@3", "iteration": 0, "round": None}
    sink_record |= {"nbytes": 1, "messages": 1, "cpu_s": 0.1}
    assert find_complaints("rank", sink_record) == []
    assert find_complaints("rank", sink_record | {"nbytes": "1"})
    assert find_complaints("rank", sink_record | {"other": 1})
    assert find_complaints(
        "rank", {key: value for key, value in sink_record.items() if key != "kind"}
    )


def test_meanings_come_from_docstrings_of_the_class_and_its_bases() -> None:
    class Base:
        """A base.

        Attributes:
            one, two: the first, and
                the :class:`~a.second`.
        """

    class Derived(Base):
        """A class.

        Attributes:
            two: another; None without it.
        """

    assert read_attributes(Derived) == {
        "one": "The first, and the a.second.",
        "two": "Another; null without it.",
    }
    assert format_meaning("``x`` of it") == "'x' of it."
