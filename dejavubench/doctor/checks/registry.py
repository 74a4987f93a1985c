"""Every check, in the order of the table."""

from __future__ import annotations

from dejavubench.doctor.checks import (
    cores,
    cpu,
    folders,
    gpu,
    libraries,
    limits,
    links,
    memory,
    mpi,
    network,
)
from dejavubench.doctor.checks.check import Check
from dejavubench.doctor.facts.job import Job
from dejavubench.doctor.findings import FindingRow, bad, merge_rows

CHECKS: tuple[Check, ...] = (
    *mpi.CHECKS,
    *cores.CHECKS,
    *cpu.CHECKS,
    *memory.CHECKS,
    *limits.CHECKS,
    *folders.CHECKS,
    *gpu.CHECKS,
    *libraries.CHECKS,
    *network.CHECKS,
    *links.CHECKS,
)


def find_rows(job: Job) -> list[FindingRow]:
    """Return the findings of every check; equal findings of several ranks are one row."""
    rows = merge_rows(row for check in CHECKS for row in check.rows(job))
    if job.problem is not None:
        advice = "See what these ranks and their hosts do. Other checks could not end."
        rows.insert(0, FindingRow("examination", bad(job.problem, advice), job.everyone))
    return rows
