"""The scenarios by name, and which one a run, or an arm of it, goes through."""

# CONTRIBUTING lists what a new scenario touches. Scenarios do not know how a cache is laid out:
# that is the matter of the library's geometry and schedule.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dejavubench.bench.scenarios import handover, plain, restart, swap
from dejavubench.bench.scenarios.base import ScenarioKind, ScenarioPart
from dejavubench.config.arms import Arm, Scenario

SCENARIOS: Mapping[Scenario, ScenarioKind] = {
    "plain": ScenarioKind(plain.PlainSource, plain.PlainSink),
    "handover": ScenarioKind(handover.HandoverSource, handover.HandoverSink, sinks_compute=True),
    # Only sources swap: a sink is idle, as in any arm that streams to no other rank.
    "swap": ScenarioKind(swap.SwapSource, plain.PlainSink, measured_without_compute=False),
    "restart": ScenarioKind(restart.RestartSource, restart.RestartSink, is_single_pass=True),
}
"""Every scenario, by the name that arms have for it."""


def has_computing_sinks(arms: Sequence[Arm]) -> bool:
    """Return whether sinks have a part of the model in some arm."""
    return any(SCENARIOS[arm.scenario].sinks_compute for arm in arms)


def is_measured_without_compute(arm: Arm) -> bool:
    """Return whether the arm's destination is also measured without compute."""
    return arm.is_streaming and SCENARIOS[arm.scenario].measured_without_compute


def is_single_pass(arms: Sequence[Arm]) -> bool:
    """Return whether the run goes through its arms once, without rounds."""
    return any(SCENARIOS[arm.scenario].is_single_pass for arm in arms)


class Scenarios:
    """This rank's parts of the scenarios at one point, each made when an arm first needs it.

    Args:
        make_part: makes this rank's part in a scenario of this kind.
    """

    def __init__(self, make_part: Callable[[ScenarioKind], ScenarioPart]) -> None:
        self._make_part = make_part
        self._parts: dict[Scenario, ScenarioPart] = {}

    def find_part(self, arm: Arm) -> ScenarioPart:
        """Return this rank's part in the scenario that the arm goes through."""
        name = arm.scenario
        if name not in self._parts:
            self._parts[name] = self._make_part(SCENARIOS[name])
        return self._parts[name]

    def list_parts(self, arms: Sequence[Arm]) -> list[ScenarioPart]:
        """Return the parts of all scenarios that arms go through, in one order on every rank."""
        return list(dict.fromkeys(map(self.find_part, arms)))

    def close(self) -> None:
        """Close each scenario that some arm went through."""
        for scenario in self._parts.values():
            scenario.close()
