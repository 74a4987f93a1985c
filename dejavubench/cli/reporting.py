"""The precision of a run while it goes on, and its tables at the end, for the benchmark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dejavubench.cli.results import ResultFile

if TYPE_CHECKING:
    from dejavubench.config.plan import Plan
    from dejavubench.records import Iteration


def half_width_of(plan: Plan) -> Callable[[list[Iteration], set[str]], float | None] | None:
    """Return a function that says how exactly overheads are known; None counts rounds alone."""
    if plan.experiment.precision is None:
        return None
    from dejavubench.analysis.stats import half_width_of, totals_by_arm
    from dejavubench.bench.recording.infos import arm_info

    arms = [arm_info(arm) for arm in plan.running]

    def half_width(iterations: list[Iteration], failed: set[str]) -> float | None:
        left = [arm for arm in arms if arm.name not in failed]
        widths = [half_width_of(series, left) for series in totals_by_arm(iterations).values()]
        return widths[0] if len(widths) == 1 else None  # these are the iterations of one point

    return half_width


def tables_of(folder: Path) -> str:
    """Return the tables of what a run has measured so far, within the width of stderr."""
    from dejavubench.analysis.tables.formats import lines
    from dejavubench.analysis.tables.report import report
    from dejavubench.cli.console import console
    from dejavubench.records import read_run

    shown = lines(report(read_run(folder)), console(stderr=True).width)
    return "\n".join(line.text for line in shown)


def show_results(results: ResultFile | None, folder: Path) -> None:
    """Print a run's tables on stderr, and write them to the file that was asked for."""
    from dejavubench.analysis.tables.formats import show
    from dejavubench.analysis.tables.report import report
    from dejavubench.cli.console import console
    from dejavubench.records import read_run

    made_report = report(read_run(folder))
    show([made_report], console(stderr=True))
    click.echo(f"records: {folder}", err=True)
    if results is not None:
        results.write(made_report)
        click.echo(f"results: {results.path}", err=True)
