"""For tests of damaged records: named edits of a run's files, and random ones from a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dejavubench.records import RUN_FILE

JSON = dict[str, Any]

WRONG: tuple[Any, ...] = (
    0,
    -1,
    -0.5,
    1e300,
    10**30,
    1e-320,
    None,
    True,
    "x",
    "1.5",
    [],
    {},
    [[]],
    {"a": 1},
    "$5",
)
"""Replacements for values."""


def edit_header(folder: Path, change: Callable[[JSON], Any]) -> None:
    document = json.loads((folder / RUN_FILE).read_text())
    change(document)
    (folder / RUN_FILE).write_text(json.dumps(document, indent=2))


def edit_lines(folder: Path, rank: int, change: Callable[[list[str]], list[str]]) -> None:
    file = folder / f"rank-{rank:04d}.jsonl"
    file.write_text("".join(change(file.read_text().splitlines(keepends=True))))


def edit_record(
    folder: Path, rank: int, kind: str, change: Callable[[JSON], Any], **place: Any
) -> None:
    """Change the first record of a kind that has the given values."""
    lines, is_changed = [], False
    file = folder / f"rank-{rank:04d}.jsonl"
    for line in file.read_text().splitlines():
        record = json.loads(line)
        if (
            not is_changed
            and record["kind"] == kind
            and all(record[key] == value for key, value in place.items())
        ):
            is_changed = True
            change(record)
        lines.append(json.dumps(record) + "\n")
    assert is_changed, f"no {kind} record of {place}"
    file.write_text("".join(lines))


def without_seals(folder: Path) -> Path:
    """Write a run as an older program did, without run id and digests; return its folder."""
    for file in folder.glob("rank-*.jsonl"):
        records = [json.loads(line) for line in file.read_text().splitlines()]
        for record in records:
            for key in (
                ("run_id", "digest", "header_digest") if record["kind"] in ("rank", "end") else ()
            ):
                record.pop(key, None)
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


# ---- from a seed ----


def mutate(folder: Path, rng: random.Random) -> str:
    """Change one thing in one file; what was changed, in words."""
    file = rng.choice(
        sorted(file for file in folder.iterdir() if file.suffix in (".json", ".jsonl"))
    )
    way = rng.choice(
        (
            _change_byte,
            _change_value,
            _change_value,
            _change_value,
            _scale_value,
            _scale_value,
            _scale_value,
            _remove_value,
            _change_line,
        )
    )
    return f"{file.name}: {way(file, rng)}"


def _change_byte(file: Path, rng: random.Random) -> str:
    content = bytearray(file.read_bytes())
    place = rng.randrange(len(content))
    content[place] = rng.randrange(256)
    file.write_bytes(content)
    return f"byte {place} is {content[place]}"


def _change_value(file: Path, rng: random.Random) -> str:
    wrong = rng.choice(WRONG)
    return _change_leaf(file, rng, lambda value: wrong, f"is {wrong!r}")


def _scale_value(file: Path, rng: random.Random) -> str:
    factor = rng.choice((0.5, 2, 3))
    return _change_leaf(
        file,
        rng,
        lambda value: type(value)(value * factor) if type(value) in (int, float) else factor,
        f"times {factor}",
    )


def _change_leaf(file: Path, rng: random.Random, change: Callable[[Any], Any], words: str) -> str:
    documents = _read_documents(file)
    number = rng.randrange(len(documents))
    path = rng.choice(list(_value_paths(documents[number])))
    parent = documents[number]
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = change(parent[path[-1]])
    _write_documents(file, documents)
    return f"{number + 1}: {path} {words}"


def _remove_value(file: Path, rng: random.Random) -> str:
    documents = _read_documents(file)
    number = rng.randrange(len(documents))
    path = rng.choice(list(_value_paths(documents[number])))
    path = path[: rng.randint(1, len(path))]
    parent = documents[number]
    for key in path[:-1]:
        parent = parent[key]
    del parent[path[-1]]
    _write_documents(file, documents)
    return f"{number + 1}: {path} is gone"


def _change_line(file: Path, rng: random.Random) -> str:
    lines = file.read_text().splitlines(keepends=True)
    index, other_index = rng.randrange(len(lines)), rng.randrange(len(lines))
    way = rng.choice(("dropped", "doubled", "exchanged", "cut short", "glued"))
    if way == "dropped":
        del lines[index]
    elif way == "doubled":
        lines.insert(other_index, lines[index])
    elif way == "exchanged":
        lines[index], lines[other_index] = lines[other_index], lines[index]
    elif way == "cut short":
        lines[index:] = [lines[index][: len(lines[index]) // 2]]
    else:
        lines[index] = lines[index].rstrip("\n")
    file.write_text("".join(lines))
    return f"line {index + 1} is {way} (with {other_index + 1})"


def _read_documents(file: Path) -> list[Any]:
    text = file.read_text()
    return (
        [json.loads(text)]
        if file.name == RUN_FILE
        else [json.loads(line) for line in text.splitlines()]
    )


def _write_documents(file: Path, documents: list[Any]) -> None:
    if file.name == RUN_FILE:
        file.write_text(json.dumps(documents[0], indent=2))
    else:
        file.write_text("".join(json.dumps(document) + "\n" for document in documents))


def _value_paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return the places of the values in a document."""
    inside = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, child in inside:
        yield from _value_paths(child, (*before, key))
    if before and not isinstance(value, dict | list):
        yield before
