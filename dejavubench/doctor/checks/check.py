"""Kinds of checks, by what they look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from dejavubench.doctor.facts.job import HostFacts, Job, RankFacts
from dejavubench.doctor.findings import Finding, FindingRow


class Check(Protocol):
    """A check, under the name that the table shows."""

    @property
    def name(self) -> str:
        """Heading of the check in the report; unique."""

    def rows(self, job: Job) -> Iterator[FindingRow]:
        """Yield the findings of a job."""
        ...


@dataclass(frozen=True)
class RankCheck:
    """A check that looks at one rank."""

    name: str
    judge: Callable[[RankFacts], Iterable[Finding]]

    def rows(self, job: Job) -> Iterator[FindingRow]:
        """Yield the findings of each rank."""
        for rank in job.ranks:
            yield from (
                FindingRow(self.name, finding, (rank.rank,)) for finding in self.judge(rank)
            )


@dataclass(frozen=True)
class HostCheck:
    """A check that looks at one host. Its findings hold for all ranks there."""

    name: str
    judge: Callable[[HostFacts], Iterable[Finding]]

    def rows(self, job: Job) -> Iterator[FindingRow]:
        """Yield the findings of each host."""
        for host in job.hosts:
            yield from (FindingRow(self.name, finding, host.ranks) for finding in self.judge(host))


@dataclass(frozen=True)
class JobCheck:
    """A check that looks at the whole job and says which ranks each finding holds for."""

    name: str
    judge: Callable[[Job], Iterable[tuple[tuple[int, ...], Finding]]]

    def rows(self, job: Job) -> Iterator[FindingRow]:
        """Yield the findings of the job."""
        yield from (FindingRow(self.name, finding, ranks) for ranks, finding in self.judge(job))
