"""``dejavubench run``: flags and a TOML file become one plan, which is measured or described."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from dejavubench.cli import host_checks
from dejavubench.cli.errors import share_status
from dejavubench.cli.field_option import GroupedCommand, make_field_options
from dejavubench.cli.final_report import FinalReport, make_half_width, make_tables
from dejavubench.cli.params import PATH
from dejavubench.cli.results import ResultFile
from dejavubench.cli.run_arguments import RunArguments
from dejavubench.cli.run_options import add_own_options
from dejavubench.errors import ExitStatus, UsageError
from dejavubench.machine.launcher import read_rank

if TYPE_CHECKING:
    from dejavubench.config.plan import Plan


@click.command(cls=GroupedCommand, params=make_field_options())
@click.argument("config", required=False, type=PATH)
@add_own_options
def run(
    config: Path | None,
    dry_run: bool,
    output: Path | None,
    force: bool,
    gate: bool,
    continued_folder: Path | None,
    point_ids: tuple[str, ...] | None,
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
    if old_restart_request is not None:
        if "resume" in overrides:
            raise UsageError(
                "--restart-request and its old name --resume are both given. Drop --resume"
            )
        # --resume was the flag of --restart-request; plans keep that key.
        overrides["resume"] = old_restart_request
    arguments = RunArguments(
        config=config,
        continued_folder=continued_folder,
        point_ids=point_ids,
        overrides=overrides,
        result_file=None if output is None else ResultFile(output, force),
        gate=gate,
        dry_run=dry_run,
        uses_old_flag=old_restart_request is not None,
    )
    if dry_run:
        _describe(arguments)
    else:
        _measure(arguments)


def _measure(arguments: RunArguments) -> NoReturn:
    """Measure the plan of the arguments, and exit with the status of the job or of the gate."""
    host_checks.raise_file_limit()
    from dejavubench.cli.distribute_plan import agree_on_plan, end_complete_job

    # Rank 0 alone reads the files; its plan, or its error, goes to all.
    plan, watchdog = agree_on_plan(arguments.read_plan, arguments.read_rank_timeout())
    _print_notes(plan)
    from dejavubench.bench.run import run as run_plan
    from dejavubench.bench.startup.hooks import RunHooks

    final_report = FinalReport(arguments.result_file, arguments.gate)
    if plan.continued_run is not None and not plan.starts:
        end_complete_job(plan.continued_run.folder, final_report.show, watchdog)
        sys.exit(share_status(final_report.status))
    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
    hooks = RunHooks(make_half_width(plan), final_report.show, make_tables)
    status = run_plan(plan, command, hooks, watchdog)
    # Rank 0 alone has read the records. A job that failed keeps its own status.
    is_judged = arguments.gate and status == ExitStatus.OK
    sys.exit(share_status(final_report.status) if is_judged else status)


def _print_notes(plan: Plan) -> None:
    """Print the notes about the checkpoint on rank 0, such as ignored tensors."""
    from mpi4py import MPI

    if plan.checkpoint is not None and MPI.COMM_WORLD.rank == 0:
        for note in plan.checkpoint.notes:
            click.echo(f"note: {note}", err=True)


def _describe(arguments: RunArguments) -> None:
    if read_rank():  # under mpirun, rank 0 alone prints
        return
    from dejavubench.cli.dry_run import describe

    describe(arguments.read_plan())
