"""One run under ``mpirun``: every point of the experiment, one after the other.

Every rank runs :func:`run` with the same experiment and derives the same order of arms from it. So
nothing is negotiated while a clock runs. Between measurements ranks meet in barriers that sleep.
"""

from __future__ import annotations

import gc

from dejavubench.bench.checks.cache_bits import VerificationError
from dejavubench.bench.failures.abort import abort, abort_all
from dejavubench.bench.failures.interrupt import Interruption
from dejavubench.bench.point.models import Models, give_memory_back
from dejavubench.bench.recording.progress_bar import ProgressBar
from dejavubench.bench.rounds import Rounds
from dejavubench.bench.scenarios.registry import has_computing_sinks
from dejavubench.bench.start_message import count_ceiling_rounds, make_progress_bar, print_start
from dejavubench.bench.startup.context import RunContext
from dejavubench.bench.startup.hooks import MeasureHalfWidth, RunHooks
from dejavubench.bench.startup.last_record import write_last_record
from dejavubench.bench.startup.start import start
from dejavubench.config.plan import Plan
from dejavubench.config.points import Point
from dejavubench.errors import ExitStatus, UsageError
from dejavubench.machine import liveness
from dejavubench.models.gpt import GPT
from dejavubench.parallel.collectives import sleeping_barrier
from dejavubench.watchdog.starting import WatchdogProcess


def run(
    plan: Plan,
    command: list[str],
    hooks: RunHooks,
    watchdog: WatchdogProcess | None = None,
) -> int:
    """Measure all points of a plan.

    Args:
        plan: the same on every rank.
        command: as it was typed, for the record.
        hooks: the functions that rank 0 calls after each round and at the end.
        watchdog: the watchdog process of this host, on the rank that has started it.

    Returns:
        The exit status: 0 if all that was asked ran and verified. A rank that fails ends the job.

    Raises:
        UsageError: on every rank, before anything has started.
    """
    try:
        context = start(plan, command, watchdog, has_computing_sinks(plan.unskipped_arms))
    except UsageError:
        raise
    except BaseException as error:  # noqa: BLE001 - as below
        abort_all(error, "start")
    # Looking through all imports before each iteration would take longer than a small model does.
    gc.freeze()
    workspace, ranks = context.workspace, context.ranks
    progress_bar = make_progress_bar(context.runnable, ranks.rank == 0)
    interruption = Interruption(
        ranks,
        workspace.recorder,
        progress_bar.measured_so_far.describe,
        hooks.make_tables,
        continues=plan.restart_request is None,
    )
    try:
        are_all_verified = _measure_all(context, progress_bar, hooks.measure_half_width)
        _finish(context, are_all_verified, watchdog)
        if ranks.rank == 0 and hooks.on_end is not None:
            with liveness.show_state(liveness.PATIENT):
                hooks.on_end(workspace.folder)
        sleeping_barrier(ranks.world, "end")
    except KeyboardInterrupt as error:
        interruption.end(error)
    except BaseException as error:  # noqa: BLE001 - the other ranks must not wait for this one
        abort(workspace.recorder, error)
    return ExitStatus.OK if are_all_verified else ExitStatus.FAILED


def _measure_all(
    context: RunContext, progress_bar: ProgressBar, measure_half_width: MeasureHalfWidth | None
) -> bool:
    """Return whether every arm of every point verified; the first wrong byte ends the run."""
    runnable = context.runnable
    are_all_verified = True
    with progress_bar:
        print_start(context, progress_bar)
        models = Models(context, progress_bar)
        for point_index, point in enumerate(runnable.points):
            progress_bar.begin_point(point.id)
            context.apply_settings(point)
            model = _load(context, point, models)
            rounds = Rounds(
                context,
                point,
                model,
                progress_bar,
                ceiling_round_count=count_ceiling_rounds(point_index),
            )
            try:
                rounds.measure(measure_half_width)
            except VerificationError as error:
                progress_bar.print_line(f"dejavubench: verification failed: {error}")
                rounds.close()
                return False
            are_all_verified = are_all_verified and not rounds.failed_arm_names
            rounds.close()
            del rounds  # else its caches would live until the next point's are made
            give_memory_back()
    return are_all_verified


def _load(context: RunContext, point: Point, models: Models) -> GPT | None:
    """Load this worker's part of the model, if it has one, and wait for the others. Collective."""
    if context.computes:
        context.workspace.recorder.mark_phase("load", point=point.id)
    else:  # a sink without a model records nothing of loading; it waits for the others
        liveness.begin_phase(f"load, point {point.id}")
    with liveness.show_state(liveness.PATIENT):  # however long it takes, here or on another host
        model = models.load(point) if context.computes else None
        sleeping_barrier(context.ranks.world, "load")
    return model


def _finish(context: RunContext, are_all_verified: bool, watchdog: WatchdogProcess | None) -> None:
    """Write each rank's last record and bring other hosts' records to rank 0's folder."""
    liveness.begin_phase("end")
    write_last_record(context, are_all_verified)
    context.sampler.close()
    context.workspace.gather_files(context.ranks)
    if watchdog is not None:  # every rank has come here, so every one has said that it ended
        watchdog.allow_exits()
