"""Measured after a round: each destination without compute, and what the machine can do."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from dejavubench import records
from dejavubench.bench.extent_iteration import ExtentSampling, sample_extents
from dejavubench.bench.iteration import Iterations, pause_collector
from dejavubench.bench.point.point_worker import PointWorker
from dejavubench.bench.point.rank import RankAtPoint
from dejavubench.bench.probes.ceilings import Ceilings
from dejavubench.bench.probes.choose import make_ceilings
from dejavubench.bench.probes.probe_subjects import ProbedModel, ProbedRank
from dejavubench.bench.recording.progress_bar import ProgressBar
from dejavubench.bench.scenarios.registry import is_measured_without_compute
from dejavubench.config.arms import Arm
from dejavubench.dejavulib.levels import DEFAULT_LEVEL
from dejavubench.parallel.collectives import sleeping_barrier, sleeping_bcast, sleeping_gather
from dejavubench.transports.contexts import FileContext

CEILING_ROUND_COUNT = 5
"""Rounds of the first point that are followed by ceilings and destinations without compute."""

LATER_CEILING_ROUND_COUNT = 1
"""The same for later points; they can also use the first point's ceilings."""

MOST_ISOLATED_SOURCES = 4
"""Most sources of a run that are also measured one by one: each takes a pass of all sources."""

CEILINGS_S = 20.0
"""Stop measuring ceilings at a point after this many seconds: filling large caches is slow."""


class CeilingRounds:
    """One rank's part in what is measured after some rounds of one point.

    Args:
        sampling: this side of the iterations that time single extents.
        round_count: number of rounds that are followed by such measurements.
    """

    def __init__(
        self,
        rank_at_point: RankAtPoint,
        worker: PointWorker,
        sampling: ExtentSampling,
        iterations: Iterations,
        progress_bar: ProgressBar,
        round_count: int,
    ) -> None:
        self._rank_at_point = rank_at_point
        self._experiment = rank_at_point.experiment
        self._world = rank_at_point.context.world
        self._arms = rank_at_point.context.arms
        self._point = rank_at_point.point
        self._worker = worker
        self._sampling = sampling
        self._iterations = iterations
        self._progress_bar = progress_bar
        self._round_count = round_count
        self._spent_s = 0.0
        self._ceilings: Ceilings | None = None

    def prepare(self) -> None:
        """Make the probes, once the model has taken what memory it needs. Collective."""
        if all(arm.is_streaming for arm in self._arms):
            # No arm will show what the machine carries without streaming.
            self._iterations.record_idle()
        if self._experiment.ceilings:
            self._ceilings = _make_ceilings(self._rank_at_point, self._progress_bar)

    def measure_after(self, round_number: int) -> None:
        """Measure after a round, if it is one of the first. Collective."""
        # Rank 0's clock decides for all: everything below is collective.
        if round_number >= self._round_count or not sleeping_bcast(
            self._world, self._spent_s < CEILINGS_S
        ):
            return
        began_s = time.monotonic()
        for arm in self._last_arms():
            self._measure_without_compute(arm)
        if self._ceilings is not None:
            self._iterations.mark("ceilings")
            for problem in self._ceilings.run():
                self._progress_bar.print_line(f"dejavubench: no {problem}")
            sleeping_barrier(self._world, "ceilings")
        self._spent_s += time.monotonic() - began_s

    def record(self) -> None:
        """Write what was measured, and how chunks left the device. Collective.

        What is measured only once comes now.
        """
        if self._experiment.sample_extents:
            sample_extents(self._sampling, self._iterations, self._arms_left())
        write = self._rank_at_point.write
        point = self._point
        if self._ceilings is not None:
            for ceiling in self._ceilings.records(point.id):
                write(ceiling)
        if self._worker.copy_ways:
            write(records.CopyWays(point=point.id, ways=self._worker.copy_ways))

    def close(self) -> None:
        """Release the probes' memory, files and connections, if any were made."""
        if self._ceilings is not None:
            self._ceilings.close()

    def _last_arms(self) -> list[Arm]:
        """Return the last arm of each destination that has not failed."""
        streaming = filter(is_measured_without_compute, self._arms_left())
        # A dict keeps the last value of a key: the last arm of each destination.
        return list({arm.destination_key: arm for arm in streaming}.values())

    def _arms_left(self) -> list[Arm]:
        return self._iterations.failures.list_working_arms(self._arms)

    def _measure_without_compute(self, arm: Arm) -> None:
        """Stream the arm's chunks at level 3 with no compute beside them."""
        has_ended, together_ms = self._stream(arm, self._worker.stream_alone)
        if not has_ended:
            return
        # Sinks have no time of their own: a source's ends with the last acknowledgement.
        times_ms = sleeping_gather(self._world, together_ms)
        if times_ms is not None:
            self._record_without_compute(arm, max(ms for ms in times_ms if ms is not None))
        source_count = self._rank_at_point.worker_view.topology.source_count
        if arm.is_remote and 1 < source_count <= MOST_ISOLATED_SOURCES:
            self._measure_isolated_sources(arm, together_ms)

    def _measure_isolated_sources(self, arm: Arm, together_ms: float | None) -> None:
        """Stream once for each source, which is the first, and record its time.

        Args:
            together_ms: the time of this source while all stream; None on a sink.
        """
        topology = self._rank_at_point.worker_view.topology
        isolated_ms = None
        for first_worker_index in range(topology.source_count):
            has_ended, stream_ms = self._stream(
                arm, partial(self._stream_behind, first_worker_index)
            )
            if not has_ended:
                return
            if topology.worker_index == first_worker_index:
                isolated_ms = stream_ms
        if isolated_ms is not None and together_ms is not None:
            self._record_source(arm, isolated_ms, together_ms)

    def _stream(
        self, arm: Arm, stream: Callable[[Arm, str], float | None]
    ) -> tuple[bool, float | None]:
        """Prepare an arm and stream it at level 3. Collective.

        Returns:
            Whether the arm has not failed, and what ``stream`` returned: a source's milliseconds.
        """
        iterations = self._iterations
        iterations.mark("alone", arm)
        if not iterations.try_prepare(
            arm, lambda pattern: self._worker.prepare(arm, DEFAULT_LEVEL, pattern)
        ):
            return False, None
        with pause_collector():
            sleeping_barrier(self._world, "start")
            stream_ms = stream(arm, DEFAULT_LEVEL)
        return not iterations.agree_on_failure(arm), stream_ms

    def _stream_behind(self, first_worker_index: int, arm: Arm, level_name: str) -> float | None:
        """Stream as :meth:`PointWorker.stream_alone`; other sources wait for the first one's end.

        A first source has the start of a stream of all: its sink has just begun to look for chunks.
        """
        worker_view = self._rank_at_point.worker_view
        if not worker_view.is_source:
            return self._worker.stream_alone(arm, level_name)
        is_first = worker_view.topology.worker_index == first_worker_index
        # Among sources alone: sinks are busy receiving.
        side = self._rank_at_point.context.comms.side
        if not is_first:
            sleeping_barrier(side, "the first source")
        stream_ms = self._worker.stream_alone(arm, level_name)
        if is_first:
            sleeping_barrier(side, "the other sources")
        return stream_ms

    def _record_source(self, arm: Arm, isolated_ms: float, together_ms: float) -> None:
        """Record this source's two times, for every level of the destination."""
        nbytes = sum(
            stream.schedule.nbytes
            for microbatch_streams in self._rank_at_point.worker_view.remote_streams()
            for stream in microbatch_streams
        )
        for level_arm in self._arms:
            if level_arm.destination_key == arm.destination_key:
                self._rank_at_point.write(
                    records.SourceAlone(
                        point=self._point.id,
                        arm=level_arm.name,
                        isolated_ms=isolated_ms,
                        together_ms=together_ms,
                        nbytes=nbytes,
                    )
                )

    def _record_without_compute(self, measured_arm: Arm, ms: float) -> None:
        """Record the time for every level of the destination: it is the bound of them all."""
        point = self._point
        nbytes = point.streamed_nbytes * point.pipeline_para_size
        for arm in self._arms:
            if arm.destination_key == measured_arm.destination_key:
                self._rank_at_point.write(
                    records.StreamAlone(point=point.id, arm=arm.name, ms=ms, nbytes=nbytes)
                )


def _make_ceilings(rank_at_point: RankAtPoint, progress_bar: ProgressBar) -> Ceilings:
    """Make this rank's probes: rank 0 and the first sink measure, the others have none."""
    worker_view = rank_at_point.worker_view
    if worker_view.topology.worker_index != 0:
        return Ceilings(())
    model = ProbedModel(
        dtype=rank_at_point.dtype,
        multiplied=rank_at_point.context.devices.compute_dtype(rank_at_point.dtype),
        geometry=worker_view.geometry,
        input_len=rank_at_point.point.input_len,
        slot_nbytes=worker_view.slot_nbytes,
    )
    rank = ProbedRank(
        worker_view.topology, rank_at_point.context.comms.verification, rank_at_point.device
    )
    return make_ceilings(
        rank,
        model,
        rank_at_point.context.connectors,
        _list_probe_files(rank_at_point),
        progress_bar.print_line,
    )


def _list_probe_files(rank_at_point: RankAtPoint) -> dict[str, list[FileContext]]:
    """Return the files of each durability of the arms, by destination, in the arms' order."""
    files: dict[str, dict[str, FileContext]] = {}
    for arm in rank_at_point.context.arms:
        if arm.transport is not None and arm.durability is not None:
            by_durability = files.setdefault(arm.transport.name, {})
            by_durability[arm.durability] = rank_at_point.probe_files(arm.durability)
    return {name: list(by_durability.values()) for name, by_durability in files.items()}
