"""The library on its own: what it imports, and the example of docs/LIBRARY.md."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from jobs import HERE, Job

PACKAGE = HERE.parent / "dejavubench"
EXAMPLE = HERE.parent / "docs" / "stream_transformers.py"


def imported(path: Path) -> set[str]:
    """Modules of this project that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name for name in names if name.startswith("dejavubench")}
    return found


def test_the_library_can_be_lifted_out() -> None:
    files = sorted((PACKAGE / "dejavulib").rglob("*.py"))
    assert len(files) > 10
    allowed = ("dejavubench.dejavulib",)
    foreign = {
        f"{path.name}: {name}"
        for path in files
        for name in imported(path)
        if not name.startswith(allowed)
    }
    assert not foreign


@pytest.mark.mpi
def test_the_example_streams_the_cache_of_a_transformers_model(tmp_path: Path) -> None:
    with Job(tmp_path, 2, driver=(str(EXAMPLE),)) as job:
        assert job.wait() == 0, job.stderr
        assert (
            job.stdout == "98304 bytes streamed; the next 12 tokens of each request are the same\n"
        )


@pytest.mark.mpi
def test_the_example_would_see_a_layer_that_did_not_come(tmp_path: Path) -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    line = "        receive_all([receiver])\n"
    assert line in text
    wrong = tmp_path / "wrong.py"
    wrong.write_text(text.replace(line, f"{line}        cache.v[2, 1].zero_()\n"), encoding="utf-8")
    with Job(tmp_path, 2, driver=(str(wrong),)) as job:
        assert job.wait() != 0
        assert "AssertionError" in job.stderr


def test_the_example_is_as_short_as_the_page_says() -> None:
    assert (
        sum(bool(line.strip()) for line in EXAMPLE.read_text(encoding="utf-8").splitlines()) < 120
    )
