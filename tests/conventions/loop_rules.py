"""Variables of loops that hide those of a loop around them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from conventions.naming import NAMED_BY_US
from conventions.source_tree import syntax_trees
from helpers.paths import ROOT

Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


def hidden_loop_names(root: Path = ROOT) -> list[str]:
    """Return the variables of comprehensions that hide a variable of a loop around them."""
    return [
        f"{path.relative_to(root)}:{line}: {name}"
        for path, tree in syntax_trees(root, NAMED_BY_US).items()
        for line, name in _find_hidden(tree, frozenset())
    ]


def _find_hidden(node: ast.AST, outer_names: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Yield line and name of what hides one of ``outer_names``, in a node and below it."""
    if isinstance(node, ast.For | ast.AsyncFor):
        yield from _find_hidden(node.iter, outer_names)
        inner_names = outer_names | _target_names(node.target)
        for statement in (*node.body, *node.orelse):
            yield from _find_hidden(statement, inner_names)
    elif isinstance(node, Comprehension):
        yield from _find_in_comprehension(node, outer_names)
    else:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            outer_names = frozenset()
        for child in ast.iter_child_nodes(node):
            yield from _find_hidden(child, outer_names)


def _find_in_comprehension(
    node: Comprehension, outer_names: frozenset[str]
) -> Iterator[tuple[int, str]]:
    for generator in node.generators:
        yield from _find_hidden(generator.iter, outer_names)
        own_names = _target_names(generator.target)
        yield from ((node.lineno, name) for name in sorted((own_names & outer_names) - {"_"}))
        outer_names |= own_names
        for condition in generator.ifs:
            yield from _find_hidden(condition, outer_names)
    results = (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,)
    for result in results:
        yield from _find_hidden(result, outer_names)


def _target_names(target: ast.AST) -> frozenset[str]:
    return frozenset(node.id for node in ast.walk(target) if isinstance(node, ast.Name))
