"""House rule on arguments, for test_house.py: sizes in calls of tests are given by name."""

from __future__ import annotations

import ast
from pathlib import Path

from helpers.paths import ROOT

INTERVALS = ("Span",)
"""Classes of a start and a stop, which are read in their order as ``range`` is."""


def nameless_sizes(root: Path = ROOT) -> list[str]:
    """Return the calls of classes in tests that give two or more bare numbers by position.

    In ``KVGeometry(2, 4, 8, 16, 64, 2)`` nobody sees which number is which.
    """
    return [
        f"{path.relative_to(root)}:{node.lineno}: {ast.unparse(node)}"
        for path in sorted((root / "tests").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and _is_of_a_class(node.func)
        and sum(_is_number(argument) for argument in node.args) > 1
    ]


def _is_of_a_class(function: ast.expr) -> bool:
    name = ast.unparse(function).rpartition(".")[2]
    return name[:1].isupper() and name not in INTERVALS


def _is_number(argument: ast.expr) -> bool:
    """Return whether an argument is a number or a boolean, and no name or string."""
    if isinstance(argument, ast.UnaryOp):
        argument = argument.operand
    return isinstance(argument, ast.Constant) and isinstance(argument.value, int | float)
