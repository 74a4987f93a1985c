"""The scenarios by name, and which one a run, or an arm of it, goes through."""

# A new scenario is one file of this package and one line in SCENARIOS. A cache that is loaded back
# into the model (`load`) will be such a file. Scenarios do not know how a cache is laid out: a paged
# layout is the library's matter (its geometry and schedule), and nothing here will change for it.

from __future__ import annotations

from typing import Literal

from dejavubench.bench.point.sink import Sink
from dejavubench.bench.point.source import Source
from dejavubench.bench.scenarios import handover, plain, restart, swap
from dejavubench.bench.scenarios.base import Kind, Scenario
from dejavubench.config.experiment import Experiment
from dejavubench.config.points import Arm

Name = Literal["plain", "hand-over", "swap", "restart"]

SCENARIOS: dict[Name, Kind] = {
    "plain": Kind(plain.PlainSource, plain.PlainSink),
    "hand-over": Kind(handover.HandOverSource, handover.HandOverSink, sinks_compute=True),
    "swap": Kind(swap.SwapSource, swap.SwapSink),
    "restart": Kind(restart.RestartSource, restart.RestartSink, once=True),
}


def of_run(experiment: Experiment) -> Kind:
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
