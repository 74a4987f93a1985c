"""The precision of a run while it goes on, and its tables at the end, for the benchmark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dejavubench.cli.results import ResultFile
from dejavubench.errors import ExitStatus

if TYPE_CHECKING:
    from dejavubench.analysis.tables.process_columns import Row
    from dejavubench.config.plan import Plan
    from dejavubench.records import Iteration


def make_half_width(plan: Plan) -> Callable[[list[Iteration], set[str]], float | None] | None:
    """Return a function that says how exactly overheads are known; None counts rounds alone."""
    if plan.experiment.precision is None:
        return None
    from dejavubench.analysis.numbers.stats import collect_totals_by_arm, compute_half_width
    from dejavubench.bench.recording.infos import describe_arm

    arms = [describe_arm(arm) for arm in plan.unskipped_arms]

    def measure_half_width(iterations: list[Iteration], failed_arms: set[str]) -> float | None:
        remaining_arms = [arm for arm in arms if arm.name not in failed_arms]
        widths = [
            compute_half_width(series, remaining_arms)
            for series in collect_totals_by_arm(iterations).values()
        ]
        return widths[0] if len(widths) == 1 else None  # these are the iterations of one point

    return measure_half_width


def make_tables(folder: Path) -> str:
    """Return the tables of what a run has measured so far, within the width of stderr."""
    from dejavubench.analysis.reports.formats import make_lines
    from dejavubench.analysis.reports.report import make_report
    from dejavubench.cli.console import make_console
    from dejavubench.records import read_run

    table_lines = make_lines(
        make_report(read_run(folder)).without_long_tables(), make_console(stderr=True).width
    )
    return "\n".join(line.text for line in table_lines)


class FinalReport:
    """The report at the end of a run: tables on stderr, a file if one was asked for, the gate.

    Attributes:
        status: exit status that the gate asks for, once the report was shown on this rank.
    """

    def __init__(self, result_file: ResultFile | None, gate: bool) -> None:
        self._results = result_file
        self._gate = gate
        self.status = ExitStatus.OK

    def show(self, folder: Path) -> None:
        """Print a run's tables on stderr, and write them to the file that was asked for."""
        rows = _show_results(self._results, folder)
        if self._gate:
            from dejavubench.analysis.comparison.gate import EXIT_STATUSES, judge_targets

            verdict, text = judge_targets(rows)
            click.echo(f"gate: {text}", err=True)
            self.status = EXIT_STATUSES[verdict]


def _show_results(result_file: ResultFile | None, folder: Path) -> list[Row]:
    """Print and write the report of a run that has ended; return its rows, for the gate."""
    from dejavubench.analysis.reports.formats import show
    from dejavubench.analysis.reports.report import make_report
    from dejavubench.cli.console import make_console
    from dejavubench.records import read_run

    full_report = make_report(read_run(folder))
    # A file is kept, so it holds all tables; a screen shows what a user needs now.
    show([full_report.without_long_tables()], make_console(stderr=True))
    click.echo(f"records: {folder}", err=True)
    if result_file is not None:
        result_file.write(full_report)
        click.echo(f"results: {result_file.path}", err=True)
    return full_report.rows
