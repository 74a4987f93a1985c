"""For test_house.py: the package's modules as syntax trees, and what each of them imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from helpers.paths import ROOT

PACKAGE = "dejavubench"


@dataclass(frozen=True)
class Module:
    """A source file. ``imports`` holds the lazy imports and those for type checkers, too."""

    name: str
    path: Path
    text: str = field(repr=False)
    tree: ast.Module = field(repr=False)

    @property
    def lines(self) -> int:
        return self.text.count("\n")

    @property
    def room(self) -> str:
        """The package or top-level module below ``dejavubench`` that the file belongs to."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else ""

    def imported(self) -> Iterator[str]:
        """Yield the full name of each thing that the file imports, as ``package.module.name``."""
        is_package = self.path.name == "__init__.py"
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parents = self.name.split(".")
                    parents = parents[: len(parents) - node.level + is_package]
                    base = ".".join([*parents, *([node.module] if node.module else [])])
                yield from (f"{base}.{alias.name}" for alias in node.names)


@cache
def modules(root: Path = ROOT) -> dict[str, Module]:
    """Return every module of the package by its full name."""
    by_name = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text()
        by_name[name] = Module(name, path, text, ast.parse(text))
    return by_name


@cache
def syntax_trees(root: Path, folders: tuple[str, ...]) -> dict[Path, ast.Module]:
    """Return the syntax tree of every Python file below some folders of a checkout."""
    paths = (path for folder in folders for path in sorted((root / folder).rglob("*.py")))
    return {path: ast.parse(path.read_text()) for path in paths}


@cache
def graph(root: Path = ROOT) -> dict[str, set[str]]:
    """Return the names of the modules of the package that each module imports."""
    all_modules = modules(root)

    def module_of(full: str) -> str | None:
        while full and full not in all_modules:
            full = full.rpartition(".")[0]
        return full or None

    return {
        name: {
            target
            for imported in module.imported()
            if (target := module_of(imported)) and target != name
        }
        for name, module in all_modules.items()
    }


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other, by Tarjan's algorithm."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for after in sorted(edges.get(node, ())):
            if after not in number:
                visit(after)
                low[node] = min(low[node], low[after])
            elif after in stack:
                low[node] = min(low[node], number[after])
        if low[node] == number[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for node in sorted(edges):
        if node not in number:
            visit(node)
    return groups


def place_of(module: Module, node: ast.AST, root: Path) -> str:
    """Return file and line of a node."""
    return f"{module.path.relative_to(root)}:{getattr(node, 'lineno', 1)}"
