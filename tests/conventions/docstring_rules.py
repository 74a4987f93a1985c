"""House rule on docstrings, for test_house.py: what they document by name exists in the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from conventions.source_tree import modules
from helpers.paths import ROOT

SECTION = re.compile(r"^(?:Args|Attributes):\n((?:\n| {4}.*\n?)+)", re.MULTILINE)
ENTRY = re.compile(r"^ {4}(\*{0,2}\w+(?:, \*{0,2}\w+)*): ", re.MULTILINE)

EMPTY_BASES = ("ABC", "BaseModel", "Enum", "Exception", "Generic", "NamedTuple", "Protocol")
"""Base classes from outside that have nothing which a docstring here would document."""


def unknown_documented_names(root: Path = ROOT) -> list[str]:
    """Return the names of arguments and attributes in docstrings that the code does not have."""
    trees = {module.path.relative_to(root): module.tree for module in modules(root).values()}
    classes = {
        node.name: node
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    return [
        f"{path}:{node.lineno}: {node.name} has no {name}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and (known_names := _names_of(node, classes)) is not None
        for name in _documented_names(ast.get_docstring(node) or "")
        if name not in known_names
    ]


def _documented_names(docstring: str) -> Iterator[str]:
    for section in SECTION.finditer(docstring):
        for entry in ENTRY.finditer(section[1]):
            yield from (name.strip("* ") for name in entry[1].split(","))


def _names_of(
    node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, classes: Mapping[str, ast.ClassDef]
) -> set[str] | None:
    """Return the arguments or attributes of a node; None if it inherits from an unread class."""
    if not isinstance(node, ast.ClassDef):
        return {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
    names = set(_own_names(node))
    for base in node.bases:
        base_name = ast.unparse(base).partition("[")[0].rpartition(".")[2]
        if base_name in EMPTY_BASES:
            continue
        base_names = _names_of(classes[base_name], classes) if base_name in classes else None
        if base_names is None:
            return None
        names |= base_names
    return names


def _own_names(node: ast.ClassDef) -> Iterator[str]:
    """Yield the fields, methods and attributes of a class, and what its ``__init__`` takes."""
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
            yield part.attr
        elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            yield part.id
        elif isinstance(part, ast.FunctionDef):
            yield part.name
            if part.name == "__init__":
                yield from (arg.arg for arg in ast.walk(part.args) if isinstance(arg, ast.arg))
