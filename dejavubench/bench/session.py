"""One run under ``mpirun``: every point of the experiment, one after the other.

Every rank runs :func:`run` with the same experiment and derives the same order of arms from it. So
nothing is negotiated while a clock runs. Between measurements ranks meet in barriers that sleep.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path

from dejavubench import records
from dejavubench.bench.ceilingrounds import LATER_ROUNDS_WITH_CEILINGS, ROUNDS_WITH_CEILINGS
from dejavubench.bench.checks.bits import VerificationError
from dejavubench.bench.failures.report import abort, abort_all
from dejavubench.bench.point.models import Models, give_memory_back
from dejavubench.bench.recording.progressbar import ProgressBar
from dejavubench.bench.rounds import Enough, Rounds
from dejavubench.bench.scenarios.registry import sinks_compute
from dejavubench.bench.startup.context import RunContext
from dejavubench.bench.startup.start import start
from dejavubench.bench.watchdog.starting import WatchdogProcess
from dejavubench.config.plan import Plan
from dejavubench.config.points import Point
from dejavubench.errors import UsageError
from dejavubench.machine import liveness
from dejavubench.models.gpt import GPT
from dejavubench.parallel.collectives import sleeping_barrier


def run(
    plan: Plan,
    command: list[str],
    enough: Enough | None = None,
    on_end: Callable[[Path], None] | None = None,
    watchdog: WatchdogProcess | None = None,
) -> int:
    """Measure all points of a plan.

    Args:
        plan: the same on every rank.
        command: as it was typed, for the record.
        enough: returns whether a point's iterations are precise enough; None counts rounds alone.
        on_end: called on rank 0 with the run's folder once all records are in it.
        watchdog: the watchdog process of this host, on the rank that has started it.

    Returns:
        The exit status: 0 if all that was asked ran and verified. A rank that fails ends the job.

    Raises:
        UsageError: on every rank, before anything has started.
    """
    try:
        context = start(plan, command, watchdog, sinks_compute(plan.running))
    except UsageError:
        raise
    except BaseException as error:  # noqa: BLE001 - as below
        abort_all(error, "start")
    # Looking through all imports before each iteration would take longer than a small model does.
    gc.freeze()
    try:
        verified = _measure_all(context, enough)
        _finish(context, verified, watchdog)
        if context.ranks.rank == 0 and on_end is not None:
            with liveness.during(liveness.PATIENT):
                on_end(context.workspace.folder)
            print(f"records: {context.workspace.folder}", file=sys.stderr)
        sleeping_barrier(context.ranks.world, "end")
    except BaseException as error:  # noqa: BLE001 - the other ranks must not wait for this one
        abort(context.workspace.recorder, error)
    return 0 if verified else 1


def _measure_all(context: RunContext, enough: Enough | None) -> bool:
    """Return whether every arm of every point verified; the first wrong byte ends the run."""
    experiment, runnable = context.experiment, context.runnable
    iterations = len(runnable.arms) * (experiment.warmup + experiment.rounds)
    verified = True
    with ProgressBar(iterations * len(runnable.points), context.ranks.rank == 0) as progress_bar:
        _say_notes(context, progress_bar)
        models = Models(context, progress_bar.say)
        for number, point in enumerate(runnable.points):
            model = _load(context, point, models)
            with_ceilings = LATER_ROUNDS_WITH_CEILINGS if number else ROUNDS_WITH_CEILINGS
            rounds = Rounds(context, point, model, progress_bar, rounds_with_ceilings=with_ceilings)
            try:
                rounds.measure(enough)
            except VerificationError as error:
                progress_bar.say(f"dejavubench: verification failed: {error}")
                rounds.close()
                return False
            verified = verified and not rounds.failed
            rounds.close()
            del rounds
            give_memory_back()
    return verified


def _say_notes(context: RunContext, progress_bar: ProgressBar) -> None:
    runnable = context.runnable
    if len(runnable.arms) == 1 and len(runnable.points) > 1:
        progress_bar.say(
            "text lines of several points are not mixed on stdout: "
            "each has a .log in the run's folder"
        )
    for point_id, reason in runnable.skipped.items():
        progress_bar.say(f"{point_id} SKIPPED: {reason}")
    for note in context.conditions.notes():
        progress_bar.say(f"note: {note}")


def _load(context: RunContext, point: Point, models: Models) -> GPT | None:
    """Load this worker's part of the model, if it has one, and wait for the others. Collective."""
    if context.computes:
        context.workspace.recorder.phase("load", point=point.id)
    else:  # a sink without a model records nothing of loading; it waits for the others
        liveness.begin_phase(f"load, point {point.id}")
    with liveness.during(liveness.PATIENT):  # however long it takes, here or on another host
        model = models.of(point) if context.computes else None
        sleeping_barrier(context.ranks.world, "load")
    return model


def _finish(context: RunContext, verified: bool, watchdog: WatchdogProcess | None) -> None:
    """Write each rank's last record and bring other hosts' records to rank 0's folder."""
    liveness.begin_phase("end")
    ranks, recorder = context.ranks, context.workspace.recorder
    outcome = context.conditions.outcome()
    recorder.write(records.End(status="ok" if verified else "failed", environment=outcome))
    recorder.close()
    context.sampler.close()
    context.workspace.bring_together(ranks)
    if watchdog is not None:  # every rank has come here, so every one has said that it ended
        watchdog.let_end()
