"""Do the threads of all ranks of a host fit its cores?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dejavubench.machine.cgroups import Quota
from dejavubench.units import format_count_of


@dataclass(frozen=True)
class RankDemand:
    """Demand of one rank for CPU time.

    Attributes:
        thread_count: busy threads: those that compute, or poll for messages.
        helper_count: threads that stream beside the model. They mostly sleep.
        cores: cores that the rank was allowed before the program confined it to fewer.
        quota: CPU time that the control group allows; None without a limit.
    """

    thread_count: int
    helper_count: int
    cores: frozenset[int]
    quota: Quota | None


@dataclass(frozen=True)
class HostDemand:
    """The threads of all ranks of one host, beside the cores and CPU time that they may use.

    Attributes:
        ranks: number of ranks on the host.
        threads, helpers: sums over the ranks; see :class:`RankDemand`.
        cores: number of cores that any of the ranks may run on.
        quota: CPUs that their control groups allow together; None without a limit.
        crowded: number of ranks with more threads than cores of their own.
    """

    ranks: int
    threads: int
    helpers: int
    cores: int
    quota: float | None
    crowded: int

    @classmethod
    def of_ranks(cls, demands: Sequence[RankDemand]) -> HostDemand:
        """Add up all ranks of one host."""
        return cls(
            ranks=len(demands),
            threads=sum(demand.thread_count for demand in demands),
            helpers=sum(demand.helper_count for demand in demands),
            cores=len(frozenset[int]().union(*(demand.cores for demand in demands))),
            quota=_add_up_quotas([demand.quota for demand in demands]),
            crowded=sum(demand.thread_count > len(demand.cores) for demand in demands),
        )

    def describe_shortage(self) -> str | None:
        """Return a sentence if there are more busy threads than cores. Helpers do not count."""
        is_bounded = self.quota is not None and self.quota < self.cores
        granted_cpus = self.quota if self.quota is not None and is_bounded else self.cores
        if self.threads <= granted_cpus and not self.crowded:
            return None
        ranks_text = "1 rank has" if self.ranks == 1 else f"{self.ranks} ranks have"
        threads_text = format_count_of(self.threads, "busy thread")
        helpers_text = (
            f", and {format_count_of(self.helpers, 'helper thread')} beside" if self.helpers else ""
        )
        cores_text = format_count_of(self.cores, "core")
        quota_text = f"; the control group allows {self.quota:.3g} CPUs" if is_bounded else ""
        if self.threads <= granted_cpus:
            share = (
                f"{self.crowded} of them has"
                if self.crowded == 1
                else f"{self.crowded} of them have"
            )
            quota_text += f"; {share} more threads than cores of their own"
        return (
            f"{ranks_text} {threads_text}{helpers_text}, for {cores_text}{quota_text}: "
            "threads have to wait, which slows what is measured"
        )


def _add_up_quotas(quotas: Sequence[Quota | None]) -> float | None:
    """Return the time that several ranks have together. A shared group counts once."""
    cpus_of_group = {quota.group: quota.cpus for quota in quotas if quota is not None}
    # A rank without a quota may take any core, so the ranks have no limit together.
    return sum(cpus_of_group.values()) if cpus_of_group and None not in quotas else None
