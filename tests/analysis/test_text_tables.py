"""Tables as lines: they fit the width by whole columns and break no word."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from dejavubench.analysis.reports import formats
from dejavubench.analysis.reports.report import RunReport, make_log_report, make_report
from dejavubench.analysis.tables.text_tables import Block, make_lines, wrap
from dejavubench.records import read_run
from helpers.committed_runs import committed_runs, report_of
from helpers.synthetic_runs import AGAIN, NONE, arm_of, point_of, write_run


def lines_of(block: Block, width: int) -> list[str]:
    return [line.text for line in make_lines(block, width)]


def make_table(columns: list[str], *rows: list[str], leading: int = 1) -> Block:
    return Block("", columns, leading, [[row] for row in rows])


def cells_of(report: RunReport) -> Iterator[str]:
    """Yield the cells of all tables of a report."""
    for block in report.blocks:
        for group in block.groups:
            for row in group:
                yield from row


def words_of(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in text.split()}


def test_a_table_that_fits_is_one_part() -> None:
    assert lines_of(make_table(["arm", "total ms"], ["none", "3.5"], ["disk@3", "12.25"]), 20) == [
        "arm     total ms",
        "────────────────",
        "none         3.5",
        "disk@3     12.25",
    ]


def test_headings_take_two_lines_only_where_that_is_needed() -> None:
    block = make_table(["arm", "copies per prompt / token"], ["mpi@3", "12 / 1"])
    assert lines_of(block, 40)[0] == "arm    copies per prompt / token"
    assert lines_of(block, 30)[:2] == ["           copies per", "arm    prompt / token"]


def test_further_parts_repeat_only_what_tells_rows_apart() -> None:
    columns = ["point", "layout", "arm", "total ms", "verified"]
    rows = (["p000", "hnd", "none", "3.5", "yes"], ["p001", "ft", "none", "4.5", "no"])
    text_lines = lines_of(make_table(columns, *rows, leading=3), 22)
    assert [line for line in text_lines if line.startswith("p001")] == [
        "p001   ft      none",
        "p001     4.5        no",
    ]
    wide_lines = lines_of(make_table(columns, *rows, leading=3), 29)
    assert [line for line in wide_lines if line.startswith("p001")] == [
        "p001   ft      none    4.5",
        "p001   ft      none        no",
    ]


def test_a_cell_wider_than_a_part_is_wrapped_between_words() -> None:
    text_lines = lines_of(
        make_table(["arm", "path"], ["disk@0-batched", "not on a network interface"]), 30
    )
    assert text_lines[2:] == ["disk@0-batched   not on a", f"{'network':>25}", f"{'interface':>25}"]
    assert lines_of(make_table(["arm", "path"], ["x", "/a/very/long/path"]), 10)[-1].split() == [
        "x",
        "/a/very/long/path",
    ]


def test_words_are_kept_whole() -> None:
    assert wrap("one two-three run-20261130T002356Z", 12) == [
        "one",
        "two-three",
        "run-20261130T002356Z",
    ]
    assert wrap("a b\nc", 80, indent="  ") == ["a b", "c"]


LONG_WORDS = {
    "mpi@0-batched",
    "disk@0-batched",
    "fdatasync",
    "page-cache",
    "durability",
    "mpi-windowed",
}


@pytest.mark.parametrize("width", [80, 60])
def test_reports_of_all_committed_runs_fit(width: int) -> None:
    reports = [report_of(run) for run in committed_runs().runs]
    assert len(reports) > 20
    words_shown: set[str] = set()
    for run_report in reports:
        text_lines = [line.text for line in formats.make_lines(run_report, width)]
        # A path is one word, which is never broken: it can be copied from the terminal.
        assert max(len(line) for line in text_lines if "/" not in line.strip()[:1]) <= width, (
            run_report.title
        )
        words_shown |= words_of(text_lines)
        assert words_of(cells_of(run_report)) <= words_of(text_lines)
    assert words_shown >= LONG_WORDS


def test_reports_of_a_wide_sweep_and_of_a_text_log_fit(tmp_path: Path) -> None:
    points = [
        point_of(0, model="opt-13b", data_type="fp16", kv_layout="ft", sinks="tp2-pp1-b4"),
        point_of(1, kv_layout="nhd", ubatch_size=8, input_len=512, handed_over=3),
        point_of(2, tensor_para_size=2, pipeline_para_size=2, output_len=8),
    ]
    arms = [NONE, AGAIN, arm_of("disk", "0-batched"), arm_of("mpi", "0-batched")]
    folder = write_run(tmp_path / "r", arms, points, rounds=3, logs=True)
    run = read_run(folder)
    for run_report in (make_report(run), make_log_report(folder / "p000-none.log")):
        text_lines = [line.text for line in formats.make_lines(run_report, 80)]
        assert max(len(line) for line in text_lines if str(tmp_path) not in line) <= 80
    headings = {block.columns[0] for block in make_report(run).blocks}
    assert headings == {"point"}
