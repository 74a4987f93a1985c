"""House rules on size, for test_house.py: files, classes, functions, texts, arguments, dots."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

from conventions.source_tree import PACKAGE, modules, place_of
from helpers.paths import ROOT

FILE_LINES = 350
CLASS_LINES = 250
FUNCTION_LINES = 60
TEST_FILE_LINES = 600
README_LINES = 130
GUIDE_LINES = 80
ARGUMENTS = 8
HOPS = 3


def _size(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how many lines a definition takes, decorators included."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return (node.end_lineno or node.lineno) - first + 1


def _long(kinds: tuple[type[ast.AST], ...], limit: int, root: Path) -> list[str]:
    return [
        f"{module.path.relative_to(root)}::{node.name}: {_size(node)} lines"
        for module in modules(root).values()
        for node in ast.walk(module.tree)
        if isinstance(node, kinds)
        and isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and _size(node) > limit
    ]


def long_classes(root: Path = ROOT) -> list[str]:
    return _long((ast.ClassDef,), CLASS_LINES, root)


def long_functions(root: Path = ROOT) -> list[str]:
    return _long((ast.FunctionDef, ast.AsyncFunctionDef), FUNCTION_LINES, root)


def _long_files(paths: Iterable[Path], limit: int, root: Path) -> list[str]:
    counts = ((path, path.read_text().count("\n")) for path in sorted(paths))
    return [f"{path.relative_to(root)}: {count} lines" for path, count in counts if count > limit]


def long_files(root: Path = ROOT) -> list[str]:
    return _long_files((root / PACKAGE).rglob("*.py"), FILE_LINES, root)


def long_tests(root: Path = ROOT) -> list[str]:
    return _long_files((root / "tests").rglob("*.py"), TEST_FILE_LINES, root)


def long_texts(root: Path = ROOT) -> list[str]:
    """Return the README and the guides that are too long."""
    readme = _long_files([root / "README.md"], README_LINES, root)
    return readme + _long_files((root / "docs" / "guides").glob("*.md"), GUIDE_LINES, root)


COMPILED = re.compile(r"(jit|compiled|kernel|intrinsic)\b")
"""Decorators of functions that run in compiled code, where an object would cost a copy."""


def many_arguments(root: Path = ROOT) -> list[str]:
    """Return the functions that take too many arguments; what belongs together should be one."""
    return [
        f"{module.path.relative_to(root)}::{node.name}: {count} arguments"
        for module in modules(root).values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and not any(COMPILED.search(ast.unparse(decorator)) for decorator in node.decorator_list)
        and (count := _arguments(node)) > ARGUMENTS
    ]


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    return sum(argument.arg not in ("self", "cls") for argument in arguments)


def long_chains(root: Path = ROOT) -> list[str]:
    """Return the chains of attributes that reach too far: ``a.b.c.d.e`` knows five objects."""
    return [
        f"{place_of(module, node, root)}: {'.'.join(names)}"
        for module in modules(root).values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute)
        and (names := _chain(node))
        and len(names) - (names[0] == "self") > HOPS + 1
    ]


def _chain(node: ast.expr) -> list[str]:
    """Return the names of a chain that begins with a name; none of any other expression."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (before := _chain(node.value)):
        return [*before, node.attr]
    return []
