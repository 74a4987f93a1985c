"""Names in the source: words that stand beside the glossary's, and functions that are no verbs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from helpers.source_tree import modules

KEYS_OF_FILES: Mapping[str, tuple[str, ...]] = {
    "ubatch": ("ubatch", "ubatch_size", "sink_ubatch_size"),  # microbatch
    "takeover": (),  # handover
    "take_over": (),
    "handed": ("handed_over",),
    "resume": ("resume", "resumed_run", "resumed_at_token"),  # restart
}
"""Words beside the glossary's: the names in which flags and keys of files have fixed them."""

PARTICIPLE = re.compile(r"_?[a-z]{2,}ed")

VERBS = ("embed", "feed", "need", "proceed", "seed", "speed")
"""Names of one word that end like a participle and are none."""

DATA = ("property", "setter")
"""Ends of the decorators that make a method a value, which may be an adjective."""


def names(node: ast.AST) -> Iterator[str]:
    """Yield the name that a node binds or reads, whatever it is a name of."""
    for field in ("id", "arg", "attr", "name"):
        if isinstance(name := getattr(node, field, None), str):
            yield name


def second_words(root: Path) -> list[str]:
    """Return the names that hold a word beside the glossary's, and are no key of a file."""
    return [
        f"{module.path.relative_to(root)}:{getattr(node, 'lineno', 1)}: {name}"
        for module in modules(root).values()
        for node in ast.walk(module.tree)
        for name in names(node)
        for word, keys in KEYS_OF_FILES.items()
        if word in name.lower() and name not in keys
    ]


def participles(root: Path) -> list[str]:
    """Return the functions whose whole name is a participle: it says neither deed nor thing."""
    return [
        f"{module.path.relative_to(root)}:{node.lineno}: {node.name}"
        for module in modules(root).values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and PARTICIPLE.fullmatch(node.name)
        and node.name.lstrip("_") not in VERBS
        and not any(ast.unparse(each).endswith(DATA) for each in node.decorator_list)
    ]
