"""Rates of this machine and its links, measured between the rounds that they bound.

They are measured in the same session and with the same threads as the arms. Each probe is short and
runs after each of the first rounds; the best of all samples is the ceiling. Names that end in
``-destination`` are no ceilings: they are the library's flush and fetch alone, run in turn with the
raw loop that they are held against. The raw loops of a destination come from its transport.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack

from dejavubench.machine import liveness
from dejavubench.records import HELD_AGAINST, Ceiling
from dejavubench.transports.probe import Probe

PAIR_RUN_COUNT = 4
"""Times that a destination and its raw loop are run in turn after a round."""


class Ceilings:
    """The probes that make sense on one rank at one point.

    Args:
        probes: all probes in the order in which they run. Of several with one name and durability
            only the first one runs.
        held_against: maps each probe of the library's own code to its raw loop.
        open_probes: a stack that is closed with the probes.
    """

    def __init__(
        self,
        probes: Iterable[Probe],
        held_against: Mapping[str, str] = HELD_AGAINST,
        open_probes: ExitStack | None = None,
    ) -> None:
        self._probes: dict[tuple[str, str | None], Probe] = {}
        for probe in probes:
            self._probes.setdefault((probe.name, probe.durability), probe)
        self._held_against = held_against
        self._open_probes = open_probes or ExitStack()

    def run(self) -> list[str]:
        """Run each probe once; destinations and their raw loops :data:`PAIR_RUN_COUNT` times.

        Returns:
            The probes that could not be run for the first time, and why.
        """
        pairs = [
            (probe, self._probes[self._held_against[name], durability])
            for (name, durability), probe in self._probes.items()
            if name in self._held_against
        ]
        # By identity: a probe changes as it measures, so it has no hash.
        in_pairs = [id(probe) for probe_pair in pairs for probe in probe_pair]
        single_probes = [probe for probe in self._probes.values() if id(probe) not in in_pairs]
        problems = [_measure(probe) for probe in single_probes]
        for repetition in range(PAIR_RUN_COUNT):
            for probe_pair in pairs:
                counts = [len(probe.samples) for probe in probe_pair]
                # One or the other first: what the first one leaves in caches helps both equally.
                problems += [
                    _measure(probe) for probe in probe_pair[:: 1 if repetition % 2 else -1]
                ]
                if any(
                    len(probe.samples) == count
                    for probe, count in zip(probe_pair, counts, strict=True)
                ):
                    # Sample i of a destination is held against sample i of its raw loop. So a
                    # half-measured pair is dropped, or all later ones would be off by one.
                    for probe, count in zip(probe_pair, counts, strict=True):
                        del probe.samples[count:]
        return [problem for problem in problems if problem is not None]

    def records(self, point_id: str) -> Iterator[Ceiling]:
        """Yield one record per probe: the best sample, and the best shape of each time."""
        for probe in self._probes.values():
            choose_best = min if probe.unit == "us" else max  # of a time, and of a rate
            times = [choose_best(samples) for samples in probe.samples if samples]
            if times:
                value, shape = choose_best(times)
                yield Ceiling(
                    name=probe.name,
                    unit=probe.unit,
                    value=value,
                    samples=[value for value, _ in times],
                    shape=shape,
                    point=point_id,
                    durability=probe.durability,
                )

    def close(self) -> None:
        """Close all that the probes opened, newest first."""
        self._open_probes.close()


def _measure(probe: Probe) -> str | None:
    """Measure; return what keeps the disk from being measured, the first time."""
    problem = probe()
    liveness.count_progress()
    return problem
