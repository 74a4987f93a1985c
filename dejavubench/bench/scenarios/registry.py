"""The scenarios by name, and which one a run, or an arm of it, goes through."""

# A new scenario is one file of this package and one line in SCENARIOS. Outside the package it needs
# a name in `Scenario` of config/arms.py, the rule there that says which arms go through it, the
# option that asks for it in config/options/, and perhaps a record in records/iterations.py.
# CONTRIBUTING lists these places. Scenarios do not know how a cache is laid out: a paged layout is
# the matter of the library's geometry and schedule, and changes nothing here.

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dejavubench.bench.point.sink import Sink
from dejavubench.bench.point.source import Source
from dejavubench.bench.scenarios import handover, plain, restart, swap
from dejavubench.bench.scenarios.base import ScenarioKind, ScenarioPart
from dejavubench.config.arms import Arm, Scenario

SCENARIOS: Mapping[Scenario, ScenarioKind] = {
    "plain": ScenarioKind(plain.PlainSource, plain.PlainSink),
    "handover": ScenarioKind(handover.HandoverSource, handover.HandoverSink, sinks_compute=True),
    "swap": ScenarioKind(swap.SwapSource, swap.SwapSink, measured_without_compute=False),
    "restart": ScenarioKind(restart.RestartSource, restart.RestartSink, single_pass=True),
}
"""Every scenario, by the name that arms have for it."""


def sinks_compute(arms: Sequence[Arm]) -> bool:
    """Return whether sinks have a part of the model in some arm."""
    return any(SCENARIOS[arm.scenario].sinks_compute for arm in arms)


def measured_without_compute(arm: Arm) -> bool:
    """Return whether the arm's destination is also measured without compute."""
    return arm.streams and SCENARIOS[arm.scenario].measured_without_compute


def single_pass(arms: Sequence[Arm]) -> bool:
    """Return whether the run goes through its arms once, without rounds."""
    return any(SCENARIOS[arm.scenario].single_pass for arm in arms)


class Scenarios:
    """This rank's parts of the scenarios at one point, each made when an arm first needs it.

    Args:
        part: the source or the sink that this rank is.
    """

    def __init__(self, part: Source | Sink) -> None:
        self._part = part
        self._made: dict[Scenario, ScenarioPart] = {}

    def of(self, arm: Arm) -> ScenarioPart:
        """Return the scenario that the arm goes through."""
        name = arm.scenario
        if name not in self._made:
            parts, part = SCENARIOS[name], self._part
            self._made[name] = parts.source(part) if isinstance(part, Source) else parts.sink(part)
        return self._made[name]

    def all(self, arms: Sequence[Arm]) -> list[ScenarioPart]:
        """Return each scenario that some arm goes through, in the same order on every rank."""
        return list(dict.fromkeys(map(self.of, arms)))

    def close(self) -> None:
        for scenario in self._made.values():
            scenario.close()
