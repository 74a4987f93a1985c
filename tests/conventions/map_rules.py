"""House rules on the map of the package at the head of ARCHITECTURE, for test_house.py."""

from __future__ import annotations

import re
from pathlib import Path

from conventions.source_tree import PACKAGE
from helpers.paths import ROOT

INDENT = 2
"""Spaces that set a folder's content off from the folder."""


def drawn_paths(root: Path = ROOT) -> set[str]:
    """Return the folders and files that the map names, as paths inside the repository."""
    page = (root / "docs" / "ARCHITECTURE.md").read_text()
    lines = page.partition("## Structure")[2].split("```")[1].strip().splitlines()
    paths: set[str] = set()
    folders: list[str] = []
    for line in lines:
        depth = (len(line) - len(line.lstrip())) // INDENT
        if folder := re.match(r" *(\w+)/", line):
            folders[depth:] = [folder[1]]
            paths.add("/".join(folders))
        else:
            paths |= {
                "/".join([*folders[:depth], name]) for name in re.findall(r"\b\w+\.py\b", line)
            }
    return paths


def map_gaps(root: Path = ROOT) -> list[str]:
    """Return what the map lacks, or names though it does not exist.

    It has a line for each package, and names the modules of each package that holds packages.
    """
    packages = {path.parent for path in (root / PACKAGE).rglob("__init__.py")}
    divided = {package.parent for package in packages} & packages
    expected = packages | {
        module
        for package in divided
        for module in package.glob("*.py")
        if module.name != "__init__.py"
    }
    expected_paths = {path.relative_to(root).as_posix() for path in expected}
    drawn = drawn_paths(root)
    return [
        *(f"no line for {path}" for path in sorted(expected_paths - drawn)),
        *(f"no such file: {path}" for path in sorted(drawn) if not (root / path).exists()),
    ]
