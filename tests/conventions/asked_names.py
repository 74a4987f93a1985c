"""For tests of names of modes and figures: the constants that code compares or looks up."""

from __future__ import annotations

import ast
from collections.abc import Iterator


def asked_constants(tree: ast.AST) -> Iterator[tuple[ast.Constant, ast.expr | None]]:
    """Yield each constant that is asked for, with the expression that is asked, if there is one.

    Comparisons, ``match``, sets, keys of mappings, subscripts, and ``startswith`` and the like ask.
    """
    for node in ast.walk(tree):
        expressions, subject = _compared_parts(node)
        for expression in expressions:
            within = [expression]
            if isinstance(expression, ast.Tuple | ast.List | ast.Set):
                within = expression.elts
            yield from (
                (constant, subject) for constant in within if isinstance(constant, ast.Constant)
            )


def _compared_parts(node: ast.AST) -> tuple[list[ast.expr], ast.expr | None]:
    match node:
        case ast.Compare(left, _, comparators):
            return [left, *comparators], left
        case ast.Match(subject, cases):
            parts = [part for case in cases for part in ast.walk(case.pattern)]
            return [part.value for part in parts if isinstance(part, ast.MatchValue)], subject
        case ast.Set(elements):
            return list(elements), None
        case ast.Dict(keys):
            return [key for key in keys if key is not None], None
        case ast.Subscript(value, index):
            return [index], value
        case ast.Call(ast.Attribute(_, "startswith" | "endswith" | "get" | "removeprefix"), words):
            return list(words), None
    return [], None
