"""Traces and tables that are committed beside the records: today's program makes the same ones."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from helpers.cli_calls import call
from helpers.paths import DOCS, RESULTS, ROOT

GUIDE = DOCS / "guides" / "where-the-time-goes.md"


def test_the_committed_trace_is_what_the_command_writes(tmp_path: Path) -> None:
    (run,) = (RESULTS / "h200-x2" / "records").glob("fig25-*")
    path = tmp_path / "trace.json"
    result = call("trace", run, "--arm", "mpi@3", "-o", path)
    assert result.exit_code == 0, result.stderr
    committed = gzip.decompress((RESULTS / "h200-x2" / "trace-mpi.json.gz").read_bytes())
    # By line, so that a failure names the first event that differs.
    before, now = committed.decode().splitlines(), path.read_text(encoding="utf-8").splitlines()
    differing = next((pair for pair in zip(before, now, strict=False) if pair[0] != pair[1]), None)
    assert differing is None
    assert len(now) == len(before)


def test_tables_of_the_guide_are_those_of_the_run_that_it_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    (arguments,) = re.findall(r"^ +dejavubench (process results/.*)$", text, re.MULTILINE)
    blocks = re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "80")
    result = call(*arguments.split())
    assert result.exit_code == 0, result.stderr
    printed = set(result.stdout.splitlines())
    shown = [line for block in blocks for line in block.splitlines() if line.strip()]
    assert len(shown) > 20
    assert [line for line in shown if line not in printed] == []
