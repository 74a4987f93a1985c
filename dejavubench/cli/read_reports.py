"""Runs and text logs that a command line names, as reports, for commands that show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dejavubench.cli.output import BadInput

if TYPE_CHECKING:
    from dejavubench.analysis.reports.report import RunReport
    from dejavubench.analysis.tables.report_part import RunPart
    from dejavubench.records import Run


@dataclass(frozen=True)
class ReadReports:
    """Reports of all that could be read.

    Attributes:
        shown: each report with its run; a text log has none.
        bad: a message for each run or log that cannot be read.
        damage: a message for each damaged file of the others.
    """

    shown: list[tuple[RunReport, Run | None]]
    bad: list[str]
    damage: list[str]


def read_reports(paths: Sequence[Path], parts: Sequence[RunPart]) -> ReadReports:
    """Make the reports of all runs and text logs.

    Raises:
        BadInput: none can be read.
    """
    from dejavubench.analysis.find_runs import find
    from dejavubench.analysis.reports.report import make_log_report, make_report
    from dejavubench.analysis.tables import ending_part
    from dejavubench.records import RecordError
    from dejavubench.records.text_log import TextLogError

    found_runs = find(paths)
    reports_and_runs: list[tuple[RunReport, Run | None]] = []
    damage: list[str] = []
    for run in found_runs.runs:
        try:
            reports_and_runs.append((make_report(run, parts), run))
            damage += ending_part.list_damage(run)
        except RecordError as error:
            found_runs.bad.append(f"{run.path}: {error}")
    for log in found_runs.logs:
        try:
            reports_and_runs.append((make_log_report(log), None))
        except TextLogError as error:
            found_runs.bad.append(str(error))
    if not reports_and_runs:
        raise BadInput("\n".join(found_runs.bad))
    return ReadReports(reports_and_runs, found_runs.bad, damage)


def parts_of(against: str | None) -> tuple[RunPart, ...]:
    """Return the parts of the reports.

    Args:
        against: table of measured machines to compare with; None: there is no comparison.

    Raises:
        BadInput: there is no table of machines at ``against``, and no run.
    """
    from dejavubench.analysis.reports.report_order import REPORT_PARTS, list_parts_against
    from dejavubench.analysis.tables.normal_tables import load_named_table
    from dejavubench.records import RecordError

    if against is None:
        return REPORT_PARTS
    try:
        return list_parts_against(load_named_table(against))
    except RecordError as error:
        raise BadInput(f"--against: {error}") from None
