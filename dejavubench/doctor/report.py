"""The findings as a table for people, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dejavubench import __version__
from dejavubench.doctor.facts.job import Job
from dejavubench.doctor.findings import FindingRow, Status, find_worst_status, format_ranks
from dejavubench.units import format_count_of

SCHEMA = 1
"""Version of the JSON's keys. Keys may be added without a new one."""

WIDTH = 80
"""Columns of the table: under mpirun, no rank knows the terminal's width."""

STYLES = {Status.OK: "green", Status.WARN: "yellow", Status.BAD: "bold red"}

MEANINGS = {
    Status.OK: "nothing here spoils a measurement",
    Status.WARN: "runs work, but numbers may be disturbed",
    Status.BAD: "fix what is BAD before you measure",
}


def format_status_counts(rows: Sequence[FindingRow]) -> str:
    """Return the number of findings of each status, and what the highest one means."""
    counts = [
        f"{sum(row.finding.status is status for row in rows)} {status.name}" for status in Status
    ]
    return f"{' · '.join(counts)}: {MEANINGS[find_worst_status(rows)]}."


def show(job: Job, rows: Sequence[FindingRow], console: Console) -> None:
    """Print the table, in at most :data:`WIDTH` columns."""
    console.width = min(console.width, WIDTH)
    date_text = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    ranks = format_count_of(max(1, len(job.ranks)), "rank")
    console.print(Text(f"doctor · dejavubench {__version__} · {ranks} · {date_text}"))
    console.print()
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold", expand=False)
    for heading, least_width in (("status", 6), ("check", 15), ("ranks", 5)):
        table.add_column(heading, min_width=least_width, max_width=15)
    table.add_column("seen, and → what to do", overflow="fold")
    for row in rows:
        finding = row.finding
        text = Text(finding.reading)
        if finding.advice:
            text.append(f"\n→ {finding.advice}", style="bold")
        table.add_row(
            Text(finding.status.name, style=STYLES[finding.status]),
            row.check,
            format_ranks(row.ranks, len(job.ranks)) if job.ranks else "all",
            text,
        )
    console.print(Padding(table, (0, 0, 1, 0)))
    console.print(Text(format_status_counts(rows)))


@dataclass(frozen=True)
class FindingEntry:
    """A finding, with the ranks and hosts that it holds for.

    Attributes:
        check: name of the check.
        status: OK, WARN or BAD.
        ranks: numbers of the ranks; none without MPI.
        hosts: hosts of these ranks.
        seen: the observation, numbers with their units.
        advice: what to do; empty if there is nothing to do.
    """

    check: str
    status: str
    ranks: tuple[int, ...]
    hosts: tuple[str, ...]
    seen: str
    advice: str


@dataclass(frozen=True)
class Examination:
    """Output of doctor --format json.

    Attributes:
        schema: the same as schema_version, under its older name.
        schema_version: version of this schema.
        dejavubench: version of the program.
        date: time of the examination, UTC.
        status: the worst one of all findings.
        findings: one row for each check and each different finding of it.
        facts: everything that the checks judged.
    """

    schema: int
    schema_version: int
    dejavubench: str
    date: str
    status: str
    findings: tuple[FindingEntry, ...]
    facts: Job


def as_json(job: Job, rows: Sequence[FindingRow]) -> str:
    """Return findings and all facts as a JSON text; ``dejavubench schema doctor`` describes it."""
    hosts = {rank.rank: rank.host for rank in job.ranks}
    examination = Examination(
        schema=SCHEMA,
        schema_version=SCHEMA,
        dejavubench=__version__,
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        status=find_worst_status(rows).name,
        findings=tuple(
            FindingEntry(
                check=row.check,
                status=row.finding.status.name,
                ranks=tuple(row.ranks),
                hosts=tuple(dict.fromkeys(hosts[rank] for rank in row.ranks)),
                seen=row.finding.reading,
                advice=row.finding.advice,
            )
            for row in rows
        ),
        facts=job,
    )
    return json.dumps(asdict(examination), indent=1, default=_list_sets)


def _list_sets(value: object) -> object:
    """Return a set as a list: JSON has none."""
    if isinstance(value, frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} in the facts has no JSON form")
