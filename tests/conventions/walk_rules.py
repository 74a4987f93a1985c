"""House rules on the walk of one request, for test_house.py: ARCHITECTURE shows the walk."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from conventions.source_tree import PACKAGE, graph
from helpers.paths import ROOT


def walk_gaps(files: Sequence[str], root: Path = ROOT) -> list[str]:
    """Return the files of a walk that do not exist, or do not import the next one."""
    paths = [root / PACKAGE / name for name in files]
    if missing := [f"no file {path.relative_to(root)}" for path in paths if not path.exists()]:
        return missing
    module_names = [".".join((PACKAGE, *Path(name).with_suffix("").parts)) for name in files]
    return [
        f"{module} does not import {successor}"
        for module, successor in pairwise(module_names)
        if successor not in graph(root)[module]
    ]


def count_lines(files: Sequence[str], root: Path = ROOT) -> int:
    """Return the lines of some files of the package together; files that do not exist have none."""
    paths = [root / PACKAGE / name for name in files]
    return sum(path.read_text().count("\n") for path in paths if path.exists())


def read_on_the_walk(root: Path = ROOT) -> list[str]:
    """Return the files that the walk in ARCHITECTURE has a reader open, in its order."""
    page = (root / "docs" / "ARCHITECTURE.md").read_text()
    table = re.split(r"\n##+ ", page.partition("## The walk of one request")[2])[0]
    return re.findall(r"^\| `(\S+\.py)` \|", table, re.MULTILINE)


def calls_of_a_step(root: Path = ROOT) -> list[tuple[str, str, str]]:
    """Return (class, method, file) of each line of the call trees in ARCHITECTURE."""
    page = (root / "docs" / "ARCHITECTURE.md").read_text()
    return re.findall(r"^[│├└─ ]*(_?[A-Z]\w+)\.(\w+) +(\S+\.py)", page, re.MULTILINE)
