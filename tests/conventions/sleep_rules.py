"""House rule on sleep, for test_house.py: tests wait by ``helpers.waits``."""

from __future__ import annotations

import ast
from pathlib import Path

from helpers.paths import ROOT

MAY_SLEEP = ("helpers/waits.py", "mpi/")
"""Files that may sleep: waits that have a deadline, and stand-ins for a slow or dead rank."""


def sleeping_tests(root: Path = ROOT) -> list[str]:
    """Return the calls of ``sleep`` in tests: a fixed time is too long, or too short when busy.

    A test waits by ``until`` and ``stays`` of ``helpers.waits``.
    """
    tests = root / "tests"
    return [
        f"{path.relative_to(root)}:{node.lineno}: {ast.unparse(node)}"
        for path in sorted(tests.rglob("*.py"))
        if not str(path.relative_to(tests)).startswith(MAY_SLEEP)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "sleep")
    ]
