"""``dejavubench run``: flags and a TOML file become one plan, which is measured or described."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dejavubench.cli import host_checks, reporting
from dejavubench.cli.errors import agreed_status
from dejavubench.cli.field_option import GroupedCommand, field_options
from dejavubench.cli.params import PATH
from dejavubench.cli.results import ResultFile
from dejavubench.cli.run_options import own_options
from dejavubench.config.options.machine import RANK_TIMEOUT
from dejavubench.errors import ExitStatus, UsageError
from dejavubench.machine.launcher import launched_rank

if TYPE_CHECKING:
    from dejavubench.config.plan import Plan


@click.command(cls=GroupedCommand, params=field_options())
@click.argument("config", required=False, type=PATH)
@own_options
def run(
    config: Path | None,
    dry_run: bool,
    output: Path | None,
    force: bool,
    gate: bool,
    folder: Path | None,
    only: tuple[str, ...] | None,
    old_restart_request: Path | None,
    **flags: Any,
) -> None:
    """Run a model and stream its KV cache, as CONFIG (a TOML file) and the flags say.

    Options that take a list sweep: a,b,c here, or a list in CONFIG. One mpirun measures every
    combination, up to 10,000. Flags override CONFIG. A single destination at a single level runs
    alone. Several are compared, in every round, with two baselines that stream nothing. Hyphens
    and underscores are one spelling.

    Start it under mpirun with one rank per source (tensor_para_size × pipeline_para_size). If sinks
    receive, add as many ranks, or as many as --sink-tensor-para-size × --sink-pipeline-para-size.
    """
    overrides = {key: value for key, value in flags.items() if value is not None}
    results = None if output is None else ResultFile(output, force)
    # Not read yet: rank 0 alone reads files; agree_on_plan() passes its plan, or its error, to all.
    read_plan = partial(_read_plan, config, folder, only, overrides, results, gate, dry_run=dry_run)
    if old_restart_request is not None:
        if "resume" in overrides:
            raise UsageError(
                "--restart-request and its old name --resume are both given. Drop --resume"
            )
        # --resume was the flag of --restart-request; plans keep that key.
        overrides["resume"] = old_restart_request
        read_plan = partial(_explain_old_name, read_plan)
    if dry_run:
        _describe(read_plan)
        return
    host_checks.raise_file_limit()
    from dejavubench.cli.distribute_plan import agree_on_plan, end_complete

    plan, watchdog = agree_on_plan(read_plan, _rank_timeout(config, overrides))
    _say_notes(plan)
    from dejavubench.bench.run import run as run_plan
    from dejavubench.bench.startup.hooks import RunHooks

    final_report = reporting.FinalReport(results, gate)
    if plan.continued_run is not None and not plan.starts:
        end_complete(plan.continued_run.folder, final_report.show, watchdog)
        sys.exit(agreed_status(final_report.status))
    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
    hooks = RunHooks(reporting.make_half_width(plan), final_report.show, reporting.make_tables)
    status = run_plan(plan, command, hooks, watchdog)
    # Rank 0 alone has read the records. A job that failed keeps its own status.
    sys.exit(agreed_status(final_report.status) if gate and status == ExitStatus.OK else status)


def _read_plan(
    config: Path | None,
    folder: Path | None,
    only: tuple[str, ...] | None,
    overrides: dict[str, Any],
    results: ResultFile | None,
    gate: bool,
    dry_run: bool,
) -> Plan:
    """Return the plan of CONFIG, or of the run in ``folder``; refuse what cannot go together."""
    from dejavubench.config.resolve import load, load_continued_run

    if results is not None:
        results.check()
    if folder is None:
        plan = load(config, overrides, os.environ, dry_run, only)
    elif config is None:
        from dejavubench.analysis.continuable import check_can_continue

        plan = load_continued_run(folder, only, overrides, dry_run, check_can_continue)
    else:
        raise UsageError(
            f"{config} cannot be combined with --continue, which takes its settings from the run "
            f"in {folder}. Drop one of them"
        )
    if gate:
        _require_targets(plan)
    return plan


def _explain_old_name(read_plan: Callable[[], Plan]) -> Plan:
    """Read the plan of a user who typed the old name of --restart-request."""
    try:
        return read_plan()
    except UsageError as error:
        raise UsageError(
            f"{error}. --resume is the old name of --restart-request. To go on with a sweep, use "
            "--continue DIR"
        ) from None


def _require_targets(plan: Plan) -> None:
    """Refuse a gate that could never pass.

    Raises:
        UsageError: there is no target, or no arm whose overhead could be held against it.
    """
    if plan.experiment.target_overhead is None:
        raise UsageError("--gate needs a target. Add --target-overhead, such as 2%")
    streaming = [arm for arm in plan.running if arm.is_streaming]
    if not streaming or len(streaming) == len(plan.running):
        raise UsageError(
            "--gate needs overheads: an arm that streams and baselines beside it. Add "
            + ("--compare" if streaming else "--streaming, such as host")
        )


def _rank_timeout(config: Path | None, overrides: dict[str, Any]) -> float:
    """Return the timeout that this rank can read for itself; rank 0 reports what is wrong."""
    from dejavubench.config.loading import read_experiment

    try:
        return read_experiment(config, overrides, os.environ).experiment.rank_timeout
    except UsageError:
        return RANK_TIMEOUT


def _say_notes(plan: Plan) -> None:
    """Print the notes about the checkpoint on rank 0, such as ignored tensors."""
    from mpi4py import MPI

    if plan.checkpoint is not None and MPI.COMM_WORLD.rank == 0:
        for note in plan.checkpoint.notes:
            click.echo(f"note: {note}", err=True)


def _describe(read_plan: Callable[[], Plan]) -> None:
    if launched_rank():  # under mpirun, rank 0 alone prints
        return
    from dejavubench.cli.dry_run import describe

    describe(read_plan())
