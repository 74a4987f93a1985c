"""For tests of committed records: the runs under ``results/``, each read once for all tests."""

from __future__ import annotations

import atexit
import shutil
import tarfile
import tempfile
from functools import cache
from pathlib import Path

from dejavubench.analysis.find_runs import FoundRuns, find
from dejavubench.analysis.reports.report import RunReport, make_report
from dejavubench.records import Run
from helpers.paths import RESULTS


@cache
def committed_runs() -> FoundRuns:
    """Return all runs. No test may change one."""
    return find([RESULTS])


def runs_of(machine: str) -> list[Run]:
    """Return the runs of one machine, in the order of their folders."""
    return [run for run in committed_runs().runs if run.path.is_relative_to(RESULTS / machine)]


@cache
def report_of_folder(folder: Path) -> RunReport:
    return make_report(next(run for run in committed_runs().runs if run.path == folder))


def report_of(run: Run) -> RunReport:
    """Return the report of a committed run."""
    return report_of_folder(run.path)


@cache
def unpacked_links(name: str = "links") -> Path:
    """Return a folder with link runs of the EPYC, which are committed as an archive."""
    folder = tempfile.mkdtemp(prefix="links-")
    atexit.register(shutil.rmtree, folder)
    with tarfile.open(RESULTS / "epyc-bf16-2core" / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return Path(folder)
