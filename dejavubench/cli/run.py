"""``dejavubench run``: flags and a TOML file become one plan, which is measured or described."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dejavubench.cli import host, reporting
from dejavubench.cli.errors import agreed_status
from dejavubench.cli.fieldoption import GroupedCommand, field_options
from dejavubench.cli.output import BY_SUFFIX
from dejavubench.cli.params import PATH
from dejavubench.cli.results import ResultFile
from dejavubench.config.options.machine import RANK_TIMEOUT
from dejavubench.errors import ExitStatus, UsageError
from dejavubench.machine.launcher import launched_rank

if TYPE_CHECKING:
    from dejavubench.config.plan import Plan


@click.command(cls=GroupedCommand, params=field_options())
@click.argument("config", required=False, type=PATH)
@click.option("--dry-run", is_flag=True, help="Describe every point and start nothing.")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=PATH,
    help="Write the results to FILE, too, when the run ends. The suffix chooses the format: "
    f"{', '.join(BY_SUFFIX)}.",
)
@click.option("--force", is_flag=True, help="Overwrite FILE if it exists.")
@click.option(
    "--gate",
    is_flag=True,
    help="Exit with 4 if an arm missed --target-overhead, with 3 if one is unresolved.",
)
def run(
    config: Path | None,
    dry_run: bool,
    output: Path | None,
    force: bool,
    gate: bool,
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
    read = partial(_load, config, overrides, results, gate, planned=dry_run)
    if dry_run:
        _describe(read)
        return
    host.raise_file_limit()
    from dejavubench.cli.starting import agreed

    plan, watchdog = agreed(read, _rank_timeout(config, overrides))
    _say_notes(plan)
    from dejavubench.bench.run import run as run_plan

    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
    final = reporting.FinalReport(results, gate)
    half_width = reporting.half_width_of(plan)
    status = run_plan(plan, command, half_width, final.show, reporting.tables_of, watchdog=watchdog)
    # Rank 0 alone has read the records. A job that failed keeps its own status.
    sys.exit(agreed_status(final.status) if gate and status == ExitStatus.OK else status)


def _load(
    config: Path | None,
    overrides: dict[str, Any],
    results: ResultFile | None,
    gate: bool,
    planned: bool,
) -> Plan:
    from dejavubench.config.resolve import load

    if results is not None:
        results.check()
    plan = load(config, overrides, os.environ, planned)
    if gate:
        _require_targets(plan)
    return plan


def _require_targets(plan: Plan) -> None:
    """Refuse a gate that could never pass.

    Raises:
        UsageError: there is no target, or no arm whose overhead could be held against it.
    """
    if plan.experiment.target_overhead is None:
        raise UsageError("--gate needs a target. Add --target-overhead, such as 2%")
    streaming = [arm for arm in plan.running if arm.streams]
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


def _describe(read: Callable[[], Plan]) -> None:
    if launched_rank():  # under mpirun, rank 0 alone prints
        return
    from dejavubench.cli.dry_run import describe

    describe(read())
