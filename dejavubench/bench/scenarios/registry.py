"""The scenarios by name, and which one a run, or an arm of it, goes through."""

# A new scenario is one file of this package and one line in SCENARIOS: `load`, in which a cache is
# read back into the model, will be such a file. Scenarios do not know how a cache is laid out. A
# paged layout is the matter of the library's geometry and schedule, and changes nothing here.

from __future__ import annotations

from typing import Literal

from dejavubench.bench.point.sink import Sink
from dejavubench.bench.point.source import Source
from dejavubench.bench.scenarios import handover, plain, restart, swap
from dejavubench.bench.scenarios.base import Scenario, ScenarioKind
from dejavubench.config.arms import Arm
from dejavubench.config.experiment import Experiment

Name = Literal["plain", "hand-over", "swap", "restart"]

SCENARIOS: dict[Name, ScenarioKind] = {
    "plain": ScenarioKind(plain.PlainSource, plain.PlainSink),
    "hand-over": ScenarioKind(handover.HandOverSource, handover.HandOverSink, sinks_compute=True),
    "swap": ScenarioKind(swap.SwapSource, swap.SwapSink),
    "restart": ScenarioKind(restart.RestartSource, restart.RestartSink, once=True),
}


def of_run(experiment: Experiment) -> ScenarioKind:
    """Return the scenario of a run's arms, but for arms that have one of their own."""
    return SCENARIOS[_of_run(experiment)]


def _of_run(experiment: Experiment) -> Name:
    if experiment.resume is not None:
        return "restart"
    return "hand-over" if experiment.handoff else "plain"


class Scenarios:
    """This rank's parts of the scenarios at one point, each made when an arm first needs it.

    Args:
        part: the source or the sink that this rank is.
    """

    def __init__(self, experiment: Experiment, part: Source | Sink) -> None:
        self._run, self._part = _of_run(experiment), part
        self._made: dict[Name, Scenario] = {}

    def of(self, arm: Arm) -> Scenario:
        """Return the scenario that the arm goes through."""
        name: Name = "swap" if arm.swaps else self._run
        if name not in self._made:
            kind, part = SCENARIOS[name], self._part
            self._made[name] = kind.source(part) if isinstance(part, Source) else kind.sink(part)
        return self._made[name]

    def all(self, arms: tuple[Arm, ...]) -> list[Scenario]:
        """Return each scenario that some arm goes through, in the same order on every rank."""
        return list(dict.fromkeys(map(self.of, arms)))

    def close(self) -> None:
        for scenario in self._made.values():
            scenario.close()
