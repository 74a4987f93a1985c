"""House rules on texts, for test_house.py: the first words of docstrings and help texts."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from conventions.source_tree import modules, place_of
from helpers.paths import ROOT

NAMELESS_DOCSTRING = re.compile(r"(What|Where|Return what|Yield what)\b")
"""Beginnings of docstrings that name nothing."""

NAMELESS_HELP = re.compile(r"(Of|If|Whether|What)\b")
"""Beginnings of help texts that name nothing."""


def nameless_docstrings(root: Path = ROOT) -> list[str]:
    """Return docstrings, of attributes as well, that begin with a word that names nothing."""
    nameless = []
    for module in modules(root).values():
        for node in ast.walk(module.tree):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
                and NAMELESS_DOCSTRING.match(node.value.value.lstrip())
            ):
                first_line = node.value.value.strip().splitlines()[0]
                nameless.append(f"{place_of(module, node, root)}: {first_line}")
    return nameless


def nameless_helps(root: Path = ROOT) -> list[str]:
    """Return help texts that begin with a word that names nothing."""
    return [
        f"{place_of(module, text, root)}: {str(text.value)[:60]}"
        for module in modules(root).values()
        for text in _help_texts(module.tree)
        if NAMELESS_HELP.match(str(text.value))
    ]


def _help_texts(tree: ast.Module) -> Iterator[ast.Constant]:
    """Yield the help texts of options: arguments named ``help`` or ``description``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in ("help", "short_help", "description"):
            value = node.value
            if isinstance(value, ast.JoinedStr) and value.values:
                value = value.values[0]  # the beginning, which is all that the rule reads
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value
