"""House rules on imports: which package imports which, and which modules lie beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from helpers.paths import ROOT
from helpers.source_tree import PACKAGE, graph, modules

ROOT_ABOVE_FOLDERS = ("bench",)
"""Packages whose folders import no module that lies beside them. In the other packages a folder may
share base modules with its parent, but no two folders side by side import each other."""


def folder_imports(package: str, root: Path = ROOT) -> dict[str, set[str]]:
    """Return the folders of a package that each of its folders imports; see ROOT_ABOVE_FOLDERS."""
    all_modules = modules(root)
    edges: dict[str, set[str]] = {}
    for name, targets in graph(root).items():
        path = all_modules[name].path
        if all_modules[name].room != package or path.name == "__init__.py":  # it only passes on
            continue
        folder = path.parent
        for target in targets:
            if all_modules[target].room != package:
                continue
            target_folder = all_modules[target].path.parent
            nested = folder.is_relative_to(target_folder) or target_folder.is_relative_to(folder)
            if folder != target_folder and (not nested or package in ROOT_ABOVE_FOLDERS):
                imported = edges.setdefault(str(folder.relative_to(root)), set())
                imported.add(str(target_folder.relative_to(root)))
    return edges


def count_arrows(root: Path = ROOT) -> Counter[tuple[str, str]]:
    """Return how many imports lead from one package, or top-level module, to another one."""
    all_modules = modules(root)
    return Counter(
        (all_modules[name].room, all_modules[target].room)
        for name, targets in graph(root).items()
        for target in targets
        if all_modules[name].room != all_modules[target].room
    )


def top_level_modules(root: Path = ROOT) -> list[str]:
    """Return the modules that lie beside the packages."""
    own = {"__init__.py", "__main__.py"}
    return sorted(path.name for path in (root / PACKAGE).glob("*.py") if path.name not in own)


def forbidden_imports(root: Path, arrows: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return each import that a table of arrows does not allow, as a line."""
    all_modules = modules(root)
    ground = {Path(name).stem for name in top_level_modules(root)} | {""}
    wrong = []
    for name, targets in graph(root).items():
        package = all_modules[name].room
        for target in sorted(targets):
            imported = all_modules[target].room
            allowed = package == imported or imported in ground or name == f"{PACKAGE}.__main__"
            if not allowed and imported not in arrows.get(package, ()):
                wrong.append(f"{name} imports {target}")
    return wrong
