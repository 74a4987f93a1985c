"""Traces and tables that are committed beside the records: today's program makes the same ones."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from helpers.cli_calls import call
from helpers.paths import DOCS, RESULTS, ROOT

COMMAND = re.compile(r"^ {4}dejavubench ((?:process|compare) results/(?:.*\\\n)*.*)$", re.MULTILINE)
"""The command of a guide that reads committed records, over all its lines."""


def test_the_committed_trace_is_what_the_command_writes(tmp_path: Path) -> None:
    (run,) = (RESULTS / "h200-x2" / "records").glob("fig25-*")
    path = tmp_path / "trace.json"
    trace_call = call("trace", run, "--arm", "mpi@3", "-o", path)
    assert trace_call.exit_code == 0, trace_call.stderr
    committed = gzip.decompress((RESULTS / "h200-x2" / "trace-mpi.json.gz").read_bytes())
    # By line, so that a failure names the first event that differs.
    committed_lines, lines = (
        committed.decode().splitlines(),
        path.read_text(encoding="utf-8").splitlines(),
    )
    differing = next(
        (pair for pair in zip(committed_lines, lines, strict=False) if pair[0] != pair[1]), None
    )
    assert differing is None
    assert len(lines) == len(committed_lines)


@pytest.mark.parametrize(
    ("guide", "columns", "status"),
    [("where-the-time-goes", 80, 0), ("reading-a-table", 130, 0), ("compare", 80, 3)],
)
def test_tables_of_a_guide_are_those_that_its_command_prints(
    guide: str, columns: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (DOCS / "guides" / f"{guide}.md").read_text(encoding="utf-8")
    (command,) = COMMAND.findall(text)
    blocks = re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", str(columns))
    finished_call = call(*command.replace("\\\n", " ").split())
    assert finished_call.exit_code == status, finished_call.stderr
    printed = set(finished_call.stdout.splitlines())
    shown = [line for block in blocks for line in block.splitlines() if not line.endswith("…")]
    assert len(shown) > 15
    assert [line for line in shown if line.strip() and line not in printed] == []
