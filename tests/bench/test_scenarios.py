"""The registry of scenarios: which one an arm goes through, and one part of it per point."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast, get_args

import pytest
import torch

from dejavubench.bench.point.sink import Sink
from dejavubench.bench.scenarios import registry
from dejavubench.bench.scenarios.handover import HandoverSink
from dejavubench.bench.scenarios.plain import PlainSink
from dejavubench.bench.scenarios.registry import SCENARIOS, Scenarios
from dejavubench.config.arms import Arm, Scenario
from dejavubench.dejavulib.receiver import receiving_slots
from dejavubench.dejavulib.schedule import DEVICE_SLOT_COUNT, HOST_SLOT_COUNT

BASELINE = Arm("none", "none", role="baseline")
STREAMING = Arm("mpi@3", "mpi", "3")
SWAPPING = Arm("swap-host", "swap-host", "3", scenario="swap", store="host")


def make_sink() -> Sink:
    """Return the part of a rank of which a scenario keeps two fields, and uses none here."""
    return cast(Sink, SimpleNamespace(rank_at_point=None, worker_view=None))


def scenarios_of(sink: Sink) -> Scenarios:
    return Scenarios(lambda kind: kind.make_sink(sink))


def test_every_scenario_that_arms_can_name_is_registered() -> None:
    assert set(SCENARIOS) == set(get_args(Scenario))


def test_arms_of_one_scenario_share_its_part_at_a_point() -> None:
    scenarios = scenarios_of(make_sink())
    assert scenarios.find_part(BASELINE) is scenarios.find_part(STREAMING)
    assert type(scenarios.find_part(STREAMING)) is PlainSink
    assert type(scenarios.find_part(SWAPPING)) is PlainSink
    assert scenarios.list_parts([BASELINE, SWAPPING, STREAMING]) == [
        scenarios.find_part(BASELINE),
        scenarios.find_part(SWAPPING),
    ]


def test_a_hand_over_gives_sinks_a_model() -> None:
    handed_over = Arm("mpi@3", "mpi", "3", scenario="handover")
    assert type(scenarios_of(make_sink()).find_part(handed_over)) is HandoverSink
    assert registry.has_computing_sinks([handed_over])
    assert not registry.has_computing_sinks([BASELINE, STREAMING, SWAPPING])


@pytest.mark.parametrize("scenario", get_args(Scenario))
def test_only_a_restart_happens_once(scenario: Scenario) -> None:
    arm = Arm("disk@3", "disk", "3", "fdatasync", scenario=scenario)
    assert registry.is_single_pass([arm]) == (scenario == "restart")


def test_planned_staging_has_as_many_slots_as_receivers_take() -> None:
    assert receiving_slots(torch.device("cpu")) == HOST_SLOT_COUNT
    assert receiving_slots(torch.device("cuda")) == DEVICE_SLOT_COUNT
