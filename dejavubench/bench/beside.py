"""Measured beside the rounds: each destination alone, and what the machine can do."""

from __future__ import annotations

import time

from dejavubench import records
from dejavubench.bench.iteration import Iterations, nothing_collected
from dejavubench.bench.point.ends import Ends
from dejavubench.bench.point.sink import Sink
from dejavubench.bench.point.source import Source
from dejavubench.bench.probes.ceilings import Ceilings
from dejavubench.bench.probes.choose import ceilings_of
from dejavubench.bench.recording.progress import Progress
from dejavubench.bench.scenarios.registry import measured_alone
from dejavubench.config.arms import Arm
from dejavubench.dejavulib.levels import DEFAULT_LEVEL
from dejavubench.models.dtypes import dtype_of
from dejavubench.parallel.collectives import sleeping_barrier, sleeping_bcast, sleeping_gather

BESIDE = 5
"""Rounds of the first point that are followed by ceilings and destinations alone."""

BESIDE_LATER = 1
"""Rounds of each later point that are: its numbers have the first point's ceilings as well."""

BESIDE_S = 20.0
"""Seconds of a point after which no further round is: with large caches, filling takes long."""


class Beside:
    """One rank's part in what is measured beside the rounds of one point.

    Args:
        rounds: number of rounds that are followed by it.
    """

    def __init__(
        self,
        ends: Ends,
        part: Source | Sink,
        iterations: Iterations,
        progress: Progress,
        rounds: int,
    ) -> None:
        self._ends = ends
        self._part = part
        self._iterations = iterations
        self._progress = progress
        self._rounds = rounds
        self._took_s = 0.0
        self._ceilings: Ceilings | None = None

    def prepare(self) -> None:
        """Make the probes, once the model has taken what memory it needs."""
        if self._ends.context.experiment.ceilings:
            self._ceilings = _make_ceilings(self._ends, self._progress)

    def after(self, round: int) -> None:
        """Measure after a round, if it is one of the first. Collective."""
        world = self._ends.context.ranks.world
        if round >= self._rounds or not sleeping_bcast(world, self._took_s < BESIDE_S):
            return
        began = time.monotonic()
        for arm in self._destinations():
            self._alone(arm)
        if self._ceilings is not None:
            self._iterations.mark("ceilings")
            for problem in self._ceilings.run():
                self._progress.say(f"dejavubench: no {problem}")
            sleeping_barrier(world, "ceilings")
        self._took_s += time.monotonic() - began

    def record(self) -> None:
        """Write what was measured, and how chunks left the device."""
        write, point = self._ends.context.workspace.recorder.write, self._ends.side.point
        if self._ceilings is not None:
            for ceiling in self._ceilings.records(point.id):
                write(ceiling)
        if isinstance(self._part, Source) and self._part.outgoing.ways:
            write(records.CopyWays(point=point.id, ways=self._part.outgoing.ways))

    def close(self) -> None:
        if self._ceilings is not None:
            self._ceilings.close()

    def _destinations(self) -> list[Arm]:
        """Return the last arm of each destination that has not failed."""
        arms = self._iterations.failures.left(self._ends.context.schedule.arms)
        streaming = filter(measured_alone, arms)
        return list({(arm.mode, arm.durability): arm for arm in streaming}.values())

    def _alone(self, arm: Arm) -> None:
        """Stream the arm's chunks at level 3 with no compute beside them."""
        iterations, part, world = self._iterations, self._part, self._ends.context.ranks.world
        iterations.mark("alone", arm)

        def prepare(pattern: int) -> None:
            if isinstance(part, Source):
                part.prepare(arm, DEFAULT_LEVEL, pattern)
            elif arm.remote:
                part.prepare(arm.mode, DEFAULT_LEVEL, pattern)

        if not iterations.prepared(arm, prepare):
            return
        took: float | None = None
        with nothing_collected():
            sleeping_barrier(world, "start")
            if isinstance(part, Source):
                took = part.outgoing.stream_alone(arm)
            elif arm.remote:
                part.receive(arm.mode, DEFAULT_LEVEL)
        if iterations.has_failed(arm):
            return
        times = sleeping_gather(world, took)
        if times is not None:
            self._record_alone(arm, max(ms for ms in times if ms is not None))

    def _record_alone(self, measured: Arm, ms: float) -> None:
        """Record the time for every level of the destination: it is the bound of them all."""
        point = self._ends.side.point
        nbytes = point.streamed_nbytes * point.pipeline_para_size
        for arm in self._ends.context.schedule.arms:
            if (arm.mode, arm.durability) == (measured.mode, measured.durability):
                self._ends.context.workspace.recorder.write(
                    records.Alone(point=point.id, arm=arm.name, ms=ms, nbytes=nbytes)
                )


def _make_ceilings(ends: Ends, progress: Progress) -> Ceilings:
    """Make this rank's probes: rank 0 and the first sink measure, the others have none."""
    context, side = ends.context, ends.side
    durabilities: dict[str, dict[str, None]] = {}  # a dict keeps the order of the arms
    for arm in context.schedule.on_disk:
        if arm.destination is not None and arm.durability is not None:
            durabilities.setdefault(arm.destination.name, {})[arm.durability] = None
    dtype = dtype_of(side.point.data_type)
    return ceilings_of(
        sessions=context.sessions,
        durabilities=durabilities,
        topology=context.ranks.topology,
        comm=context.comms.verification,
        device=context.devices.own,
        dtype=dtype,
        multiplied=context.devices.compute_dtype(dtype),
        geometry=side.geometry,
        input_len=side.point.input_len,
        slot_nbytes=side.slot_nbytes,
        folder=context.workspace.stream_dir,
        file_name=f"{context.workspace.run_id}-{side.point.id}",
        say=progress.say,
    )
