"""House rules on imports, for test_house.py: which package imports which, and what lies beside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from conventions.source_tree import PACKAGE, graph, modules
from helpers.paths import ROOT

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
    package_files = {"__init__.py", "__main__.py"}
    return sorted(
        path.name for path in (root / PACKAGE).glob("*.py") if path.name not in package_files
    )


def forbidden_imports(root: Path, arrows: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return each import between packages that a table of arrows does not allow, as a line."""
    ground = {Path(name).stem for name in top_level_modules(root)} | {""}
    return [
        f"{name} imports {target}"
        for name, room, target, target_room in _find_crossings(root, PACKAGE)
        if target_room not in ground
        and target_room not in arrows.get(room, ())
        and name != f"{PACKAGE}.__main__"
    ]


def forbidden_imports_inside(
    root: Path, package: str, arrows: Mapping[str, tuple[str, ...]]
) -> list[str]:
    """Return each import inside a package that a table of its folders' arrows does not allow.

    The table may name modules that lie beside the folders, too. The others import none of what the
    table names, and all may import them.
    """
    return [
        f"{name} imports {target}"
        for name, room, target, target_room in _find_crossings(root, f"{PACKAGE}.{package}")
        if target_room in arrows and target_room not in arrows.get(room, ())
    ]


def _find_crossings(root: Path, package: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield each import between two rooms of a package: importer, its room, imported, its room."""
    rooms = {name: _room(name, package) for name in modules(root)}
    for name, targets in graph(root).items():
        for target in sorted(targets):
            room, target_room = rooms[name], rooms[target]
            if room is not None and target_room is not None and room != target_room:
                yield name, room, target, target_room


def _room(name: str, package: str) -> str | None:
    """Return the folder or module of a package that a module is in; "" for the package itself."""
    if name == package:
        return ""
    return name[len(package) + 1 :].split(".")[0] if name.startswith(f"{package}.") else None
