"""Busy threads against granted cores."""

from __future__ import annotations

import pytest

from dejavubench.machine.cgroups import Quota
from dejavubench.machine.cores import HostDemand, RankDemand

ONE = frozenset({0})
OTHER_CORE = frozenset({1})
TWO = frozenset({0, 1})
EIGHT = frozenset(range(8))


@pytest.mark.parametrize(
    "demands",
    [
        pytest.param(
            [RankDemand(thread_count=2, helper_count=1, cores=TWO, quota=None)],
            id="a helper thread mostly sleeps",
        ),
        pytest.param(
            [
                RankDemand(thread_count=1, helper_count=1, cores=TWO, quota=None),
                RankDemand(thread_count=1, helper_count=0, cores=TWO, quota=None),
            ],
            id="a core for each rank",
        ),
        pytest.param(
            [
                RankDemand(thread_count=1, helper_count=0, cores=ONE, quota=None),
                RankDemand(thread_count=1, helper_count=0, cores=OTHER_CORE, quota=None),
            ],
            id="bound to two cores",
        ),
        pytest.param(
            [
                RankDemand(thread_count=1, helper_count=0, cores=TWO, quota=Quota(1, "g")),
                RankDemand(thread_count=1, helper_count=0, cores=TWO, quota=Quota(1, "h")),
            ],
            id="a quota for each rank",
        ),
        pytest.param(
            [RankDemand(thread_count=2, helper_count=0, cores=TWO, quota=Quota(16, "g"))],
            id="a quota above the cores",
        ),
    ],
)
def test_enough_cores_get_no_note(demands: list[RankDemand]) -> None:
    assert HostDemand.of_ranks(demands).describe_shortage() is None


@pytest.mark.parametrize(
    ("demands", "words"),
    [
        pytest.param(
            [RankDemand(thread_count=3, helper_count=0, cores=TWO, quota=None)],
            "1 rank has 3 busy threads, for 2 cores",
            id="one rank",
        ),
        pytest.param(
            [
                RankDemand(thread_count=2, helper_count=1, cores=TWO, quota=None),
                RankDemand(thread_count=1, helper_count=0, cores=TWO, quota=None),
            ],
            "2 ranks have 3 busy threads, and 1 helper thread beside, for 2 co",
            id="two ranks and a helper thread",
        ),
        pytest.param(
            [RankDemand(thread_count=1, helper_count=0, cores=ONE, quota=None)] * 2,
            "2 ranks have 2 busy threads, for 1 core:",
            id="bound to one core",
        ),
        pytest.param(
            [
                RankDemand(thread_count=2, helper_count=0, cores=ONE, quota=None),
                RankDemand(thread_count=1, helper_count=0, cores=EIGHT, quota=None),
            ],
            "; 1 of them has more threads than",
            id="one of two ranks",
        ),
        pytest.param(
            [RankDemand(thread_count=2, helper_count=0, cores=TWO, quota=Quota(1.5, "g"))],
            "for 2 cores; the control group allows 1.5 CPUs:",
            id="quota of one rank",
        ),
        pytest.param(
            [RankDemand(thread_count=1, helper_count=0, cores=TWO, quota=Quota(1.5, "g"))] * 2,
            "; the control group allows 1.5 CPUs:",
            id="quota that two ranks share",
        ),
    ],
)
def test_more_busy_threads_than_cores_get_a_note(demands: list[RankDemand], words: str) -> None:
    assert words in str(HostDemand.of_ranks(demands).describe_shortage())
