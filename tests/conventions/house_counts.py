"""For test_house.py: print what the house rules count, for a checkout of any state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from conventions.import_rules import count_arrows, folder_imports, top_level_modules
from conventions.source_tree import PACKAGE, circles, graph
from conventions.walk_rules import count_lines, walk_gaps

MOST_SHOWN = 40
"""Findings of one check up to which all are printed."""


def print_counts(
    checks: Mapping[str, Callable[[Path], list[str]]],
    packages: Iterable[str],
    walk: Sequence[str],
    root: Path,
    verbose: bool,
) -> None:
    """Print the findings of each check; verbose, also those of a check that has many."""
    file_circles = circles(graph(root))
    _print_circles("files", file_circles)
    folder_circles = [
        circle for package in packages for circle in circles(folder_imports(package, root))
    ]
    _print_circles("folders", folder_circles)
    top_level = top_level_modules(root)
    print(f"{len(top_level):4} modules at top level: {' '.join(top_level)}")
    for title, check in checks.items():
        findings = check(root)
        print(f"{len(findings):4} {title}")
        if verbose or len(findings) <= MOST_SHOWN:
            for finding in findings:
                print(f"       {finding}")
    readme = (root / "README.md").read_text()
    print(f"     README: {len(readme.splitlines())} lines")
    gaps = "; ".join(walk_gaps(walk, root))
    print(f"     to the clock: {len(walk)} files, {count_lines(walk, root)} lines {gaps}")
    for (package, imported), count in sorted(count_arrows(root).items()):
        print(f"     {package or PACKAGE} -> {imported or PACKAGE}: {count}")


def _print_circles(kind: str, groups: Sequence[Sequence[str]]) -> None:
    members = "; ".join(" ".join(circle) for circle in groups)
    print(f"{len(groups):4} circles of {kind}: {members}")
