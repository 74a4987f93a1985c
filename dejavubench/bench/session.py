"""One session under ``mpirun``: every point of the experiment, one after the other.

Every rank runs :func:`run` with the same experiment and derives the same schedule from it, so that nothing
is negotiated while a clock runs. Between measurements ranks meet in barriers that sleep.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from dejavubench.bench.job import Job, abort_all
from dejavubench.bench.point import BESIDE, BESIDE_LATER, Enough, PointSession, load_model
from dejavubench.bench.progress import Progress
from dejavubench.bench.verify import VerificationError
from dejavubench.bench.watching.watch import Watch
from dejavubench.config.experiment import Experiment
from dejavubench.config.points import Point
from dejavubench.dejavulib import pulse
from dejavubench.dejavulib.kvcache import KVLayout
from dejavubench.errors import UsageError
from dejavubench.models.gpt import GPT
from dejavubench.parallel.collectives import polite_barrier


def run(
    experiment: Experiment,
    command: list[str],
    enough: Enough | None = None,
    on_end: Callable[[Path], None] | None = None,
    watch: Watch | None = None,
) -> int:
    """Measure all points of an experiment.

    Args:
        experiment: the same on every rank.
        command: as it was typed, for the record.
        enough: whether a point's iterations so far give the precision that was asked for; None: rounds are counted.
        on_end: called on rank 0 with the run's folder once all records are in it.
        watch: over the ranks of this host, on the one that has started it.

    Returns:
        The process's exit status: 0 if all that was asked ran and verified. A rank that fails ends the whole job.

    Raises:
        UsageError: on every rank, before anything has started.
    """
    try:
        job = Job(experiment, command, watch)
    except UsageError:
        raise
    except BaseException as error:  # noqa: BLE001 - as below
        abort_all(error, "start")
    gc.freeze()  # imports: to look through them before each iteration takes longer than a small model's whole iteration
    try:
        verified = _measure_all(job, enough)
        job.finish(verified)
        if job.rank == 0 and on_end is not None:
            with pulse.during(pulse.PATIENT):
                on_end(job.folder)
            print(f"records: {job.folder}", file=sys.stderr)
        polite_barrier(job.world, "end")
    except BaseException as error:  # noqa: BLE001 - whatever it is, the other ranks must not wait for this one
        job.abort(error)
    return 0 if verified else 1


def _measure_all(job: Job, enough: Enough | None) -> bool:
    """Whether every arm of every point verified; the first whose bytes are wrong ends the session."""
    ok = True
    points = [point for point in job.experiment.points() if point.id not in job.skipped]
    arms = [arm for arm in job.experiment.arms() if not arm.skipped]
    each = len(arms) * (job.experiment.warmup + job.experiment.rounds)
    with Progress(each * len(points), shown=job.rank == 0) as progress:
        models = _Models(job, progress.say)
        if len(arms) == 1 and len(points) > 1:
            progress.say(
                "text lines of several points are not mixed on stdout: each has a .log in the run's folder"
            )
        for id, reason in job.skipped.items():
            progress.say(f"{id} SKIPPED: {reason}")
        for note in job.conditions.notes():
            progress.say(f"note: {note}")
        for point in points:
            if job.computes:
                job.recorder.phase("load", point=point.id)
            else:
                pulse.mark(
                    f"load, point {point.id}"
                )  # of the others: a sink has nothing to record of it
            with pulse.during(pulse.PATIENT):  # however long it takes, here or on another host
                model = models.of(point) if job.computes else None
                polite_barrier(job.world, "load")
            beside = BESIDE if point is points[0] else BESIDE_LATER
            session = PointSession(job, point, model, progress, beside)
            try:
                if job.experiment.resume is not None:
                    session.resume(job.saved)
                else:
                    with job.conditions.measuring():
                        session.measure(enough)
            except VerificationError as error:
                progress.say(f"dejavubench: verification failed: {error}")
                session.close()
                return False
            ok = ok and not session.failures.names
            session.close()
            del session
            _give_memory_back()
    return ok


class _Models:
    """This rank's part of one model at a time."""

    def __init__(self, job: Job, say: Callable[[str], None]) -> None:
        self._job, self._say = job, say
        self._loaded: tuple[object, GPT] | None = None

    def of(self, point: Point) -> GPT:
        """The point's model, which may be the one that is loaded, ready to run."""
        key = (point.spec, point.data_type)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # give its memory back before the next one is made
            _give_memory_back()
            self._loaded = (key, load_model(self._job, point))
        requests = self._job.side(point).split.ubatch_size
        self._loaded[1].compile(
            KVLayout(point.kv_layout), requests, requests * point.input_len, say=self._say
        )
        return self._loaded[1]


def _give_memory_back() -> None:
    """A point's caches and graphs go before the next point's are made."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
