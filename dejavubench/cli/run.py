"""``dejavubench run``: flags and a TOML file become one experiment, which is measured or, dry, described."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from dejavubench.cli import host
from dejavubench.cli.params import PATH
from dejavubench.config.experiment import RANK_TIMEOUT, Experiment, Group, load
from dejavubench.errors import UsageError
from dejavubench.machine.launcher import launched_rank, launched_ranks
from dejavubench.machine.sharedmemory import say_shortage
from dejavubench.units import count_text

if TYPE_CHECKING:
    from dejavubench.bench.watching.watch import Watch
    from dejavubench.records import Iteration

LEAST_START_S = 60.0
"""The least time for all ranks to start: imports from a busy file system take a while."""

ALIASES = {"rounds": ["--times"]}
"""The original's spellings that differ by more than an underscore."""


# ---- flags, made from the experiment's fields ----


class FieldOption(click.Option):
    """A flag of one of the experiment's fields; what is not given stays out of the overrides."""

    def __init__(self, key: str) -> None:
        info = Experiment.model_fields[key]
        extra: Any = info.json_schema_extra
        self.group: Group = extra["group"]
        flag, default = "--" + key.replace("_", "-"), info.default
        text = info.description or ""
        kind: dict[str, Any]
        if isinstance(default, bool):
            flag += f"/--no-{flag[2:]}"
            text += f" [default: {'on' if default else 'off'}]"
            kind = {"is_flag": True}
        else:
            if default not in (None, ()):
                shown = ",".join(map(str, default)) if isinstance(default, tuple) else f"{default}"
                text += f" [default: {shown.removesuffix('.0')}{' s' if extra['metavar'] == 'TIME' else ''}]"
            kind = {"metavar": extra["metavar"], "type": str}
        if key == "streaming":  # bare, as the original spells it: the experiment names the choices
            kind |= {"is_flag": False, "flag_value": ""}
        super().__init__([flag, *ALIASES.get(key, []), key], default=None, help=text, **kind)


class GroupedCommand(click.Command):
    """A command whose help shows its options group by group."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {
            group: [] for group in (*get_args(Group), "This command")
        }
        for param in self.get_params(ctx):
            row = param.get_help_record(ctx)
            if row:
                sections[getattr(param, "group", "This command")].append(row)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows, col_max=36)


@click.command(cls=GroupedCommand, params=[FieldOption(key) for key in Experiment.model_fields])
@click.argument("config", required=False, type=PATH)
@click.option("--dry-run", is_flag=True, help="Describe every point, start nothing. Needs no MPI.")
def run(config: Path | None, dry_run: bool, **flags: Any) -> None:
    """Run a model and stream its KV cache, as CONFIG (a TOML file) and the flags say.

    Lists, written a,b,c here and as lists in CONFIG, sweep: one mpirun measures every combination, up to 10,000.
    Flags win over CONFIG. One destination at one level runs alone; several are compared, in every round, with two
    baselines that stream nothing. Hyphens and underscores are one spelling.

    Start it under mpirun with as many ranks as sources (tensor_para_size × pipeline_para_size); where sinks
    receive, with as many more, or as many as --sink-tensor-para-size × --sink-pipeline-para-size say.
    """
    overrides = {key: value for key, value in flags.items() if value is not None}

    def read() -> Experiment:
        return load(config, overrides, os.environ, plan=dry_run)

    if dry_run:
        _describe(read())
        return
    host.raise_file_limit()
    experiment, watch = agreed(read)
    _say_notes(experiment)
    from dejavubench.bench.session import run as run_session

    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
    sys.exit(
        run_session(experiment, command, _enough(experiment), on_end=_print_summary, watch=watch)
    )


# ---- running ----


def agreed(read: Callable[[], Experiment]) -> tuple[Experiment, Watch | None]:
    """Rank 0's experiment on every rank: other hosts' files and environment do not count.

    From now on the ranks are watched, by whoever is given the watch.

    Raises:
        UsageError: rank 0 could not read it, or it does not run under this many ranks; on every rank.
    """
    from dejavubench.bench.watching import heart
    from dejavubench.bench.watching.watch import watch_ranks

    outcome: Experiment | UsageError
    try:
        outcome = read()
    except UsageError as error:
        if launched_rank() is None:
            raise
        outcome = error
    say_shortage(os.environ, lambda note: print(f"note: {note}", file=sys.stderr, flush=True))
    timeout = _start_timeout(
        outcome.rank_timeout if isinstance(outcome, Experiment) else RANK_TIMEOUT
    )
    beating = heart.start(f"rank {launched_rank() or 0}")
    try:
        with (
            heart.no_thread_runs(timeout),
            warnings.catch_warnings(),
        ):  # MPI begins here, and waits for the other ranks
            warnings.filterwarnings(
                "ignore", "suspicious MPI execution", RuntimeWarning
            )  # _check_launcher says it
            from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        what = str(error).splitlines()[0] if str(error) else "mpi4py cannot be imported"
        raise UsageError(
            f"no MPI library: {what}; pip install 'dejavubench[mpich]', or load a system MPI"
        ) from None
    if timeout:
        beating.give_up_at(
            time.monotonic() + timeout, f"has waited {timeout:g} s for the others to start"
        )
    _check_launcher(MPI.COMM_WORLD.size, MPI.get_vendor())
    outcome = MPI.COMM_WORLD.bcast(outcome)
    if isinstance(outcome, UsageError):
        raise outcome
    outcome.check_ranks(MPI.COMM_WORLD.size)  # before torch is imported, which takes a while
    facts = MPI.COMM_WORLD.allgather((len(os.sched_getaffinity(0)), host.problem()))
    outcome.check_threads(min(cores for cores, _ in facts))
    for rank, (_, problem) in enumerate(facts):
        if problem is not None:
            raise UsageError(f"rank {rank}: {problem}")
    watch = watch_ranks(MPI.COMM_WORLD, beating, outcome.rank_timeout)
    beating.give_up_at(None)
    return outcome, watch


def _start_timeout(rank_timeout: float) -> float:
    """Seconds that all ranks have to start, each with its imports; 0: they may take for ever."""
    from dejavubench.bench.watching.heart import NO_PROGRESS

    return max(LEAST_START_S, NO_PROGRESS * rank_timeout) if rank_timeout else 0.0


def _check_launcher(known: int, vendor: tuple[str, tuple[int, ...]]) -> None:
    """Raise UsageError where another MPI's launcher has started the ranks: each of them is alone then."""
    started, (name, version) = launched_ranks(), vendor
    if started is not None and started > known:
        library = f"{name} {'.'.join(map(str, version))}"
        raise UsageError(
            f"the launcher started {count_text(started, 'rank')}, this MPI knows {known}: the launcher is of another "
            f"MPI than {library}, which mpi4py uses here. Start the ranks with {name}'s own mpirun."
        )


def _say_notes(experiment: Experiment) -> None:
    """Say on rank 0 how the model's folder was read, where that is not plain."""
    from mpi4py import MPI

    if experiment.checkpoint is not None and MPI.COMM_WORLD.rank == 0:
        for note in experiment.checkpoint.notes:
            click.echo(f"note: {note}", err=True)


def _enough(experiment: Experiment) -> Callable[[list[Iteration], set[str]], bool] | None:
    """Whether a point's rounds so far give the precision that was asked for; None: rounds are counted."""
    half_width = experiment.precision
    if half_width is None:
        return None
    from dejavubench.analysis.stats import precise_enough

    arms = [arm.info() for arm in experiment.arms() if not arm.skipped]

    def enough(iterations: list[Iteration], failed: set[str]) -> bool:
        return precise_enough(
            iterations, [arm for arm in arms if arm.name not in failed], half_width
        )

    return enough


def _print_summary(folder: Path) -> None:
    from dejavubench.analysis.formats import summary
    from dejavubench.cli.console import console
    from dejavubench.records import read_run

    console(stderr=True).print(summary(read_run(folder)))


def _describe(experiment: Experiment) -> None:
    if launched_rank():  # rank 0 says it for all
        return
    from dejavubench.cli.dry_run import describe

    describe(experiment)
