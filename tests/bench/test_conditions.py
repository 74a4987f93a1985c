"""CPU quota, throttling and crowded hosts: what a run notes at its start and records at its end."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import pytest

from dejavubench.analysis.reports.report import make_report
from dejavubench.bench.environment import conditions as conditions_module
from dejavubench.bench.environment.conditions import Conditions
from dejavubench.machine.cgroups import Quota, Throttling, read_cpu_quota, read_cpu_throttling
from dejavubench.machine.cores import RankDemand
from dejavubench.machine.file_system import locate_folder
from dejavubench.machine.memory import KEPT_PRIMITIVE_COUNT, PRIMITIVE_CACHE_VARIABLES
from dejavubench.records import End, RankInfo
from helpers.jobs import QUICK, args, run


class FakeCommunicator:
    """A communicator of two ranks, the other of which asks for as much on another host."""

    rank = 0

    def allgather(self, mine: list[RankDemand]) -> list[list[RankDemand]]:
        return [mine, [replace(demand, helper_count=0) for demand in mine]]


def make_conditions(
    monkeypatch: pytest.MonkeyPatch, threads: list[int], counters: list[Throttling | None]
) -> Conditions:
    monkeypatch.setattr(conditions_module, "read_cpu_quota", lambda: Quota(1.5, "g"))
    monkeypatch.setattr(conditions_module, "read_cpu_throttling", iter(counters).__next__)
    return Conditions(cast(Any, FakeCommunicator()), ["a", "b"], threads, 1, {0, 1}, None)


def test_the_throttling_of_all_measured_points_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    counters: list[Throttling | None] = [
        Throttling(n, t) for n, t in [(5, 1.0), (7, 1.5), (9, 2.0), (10, 2.25)]
    ]
    conditions = make_conditions(monkeypatch, [1], counters)
    assert conditions.outcome() == {}
    for _ in range(2):
        with conditions.measuring():
            pass
    (throttling,) = conditions.outcome().values()
    assert throttling["before"] == {"periods": 5, "seconds": 1.0}
    assert throttling["after"] == {"periods": 10, "seconds": 2.25}
    # The throttling between the two points does not count.
    assert throttling["measured"] == {"periods": 3, "seconds": 0.75}


def test_without_counters_nothing_is_said_of_throttling(monkeypatch: pytest.MonkeyPatch) -> None:
    conditions = make_conditions(monkeypatch, [1], [None, None])
    with conditions.measuring():
        pass
    assert conditions.outcome() == {}


def test_crowded_hosts_are_named_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    conditions = make_conditions(monkeypatch, [2], [])
    notes = conditions.notes()
    assert [note.partition(":")[0] for note in notes] == ["a", "b"]
    assert all(
        "1 rank has 2 busy threads" in note and "the control group allows 1.5 CPUs" in note
        for note in notes
    )
    assert conditions.facts()["cpu_quota"] == 1.5
    assert make_conditions(monkeypatch, [1], []).notes() == []


def test_a_sweep_of_threads_names_the_crowded_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    conditions = make_conditions(monkeypatch, [1, 3], [])
    assert [note.split(" busy")[0] for note in conditions.notes()] == [
        "with --threads 3: a: 1 rank has 3",
        "with --threads 3: b: 1 rank has 3",
    ]
    assert [demand.threads for demand in conditions.demands] == [1, 3]
    # A reader that looks at no point takes the most.
    assert conditions.facts()["cpu_demand"]["threads"] == 3


@pytest.mark.mpi
def test_a_run_records_and_shows_where_it_ran(tmp_path: Path) -> None:
    modes = (*args("--streaming disk --rounds 1 --warmup 0"), "--stream-dir", tmp_path / "streamed")
    job = run(tmp_path, 1, "run", *QUICK, *modes)
    (info,) = [info for _, info in job.run.records_of(RankInfo)]
    place = locate_folder(tmp_path / "streamed")
    assert info.environment["stream_dir"] == (place and asdict(place))
    assert info.environment["cpu_demand"]["ranks"] == 1
    quota = read_cpu_quota()
    assert info.environment["cpu_quota"] == (quota and quota.cpus)
    assert {info.environment["variables"][name] for name in PRIMITIVE_CACHE_VARIABLES} == {
        str(KEPT_PRIMITIVE_COUNT)
    }
    (end,) = [end for _, end in job.run.records_of(End)]
    assert bool(end.environment) == (read_cpu_throttling() is not None)
    assert f"stream directory: {place}" in make_report(job.run).note_texts
