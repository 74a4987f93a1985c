"""The command line: one file per command, imported when that command is used."""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from typing import Any, NoReturn

import click

from dejavubench import __version__
from dejavubench.cli.errors import end_all_ranks, fail_usage
from dejavubench.cli.repeated_options import refuse_repeated
from dejavubench.cli.streams import guard, status_of
from dejavubench.errors import ExitStatus, OutputError, UsageError
from dejavubench.machine.launcher import read_rank

COMMANDS = {
    "doctor": (
        "dejavubench.cli.doctor:doctor",
        "Check this machine, and the links between ranks, before you measure.",
    ),
    "run": (
        "dejavubench.cli.run:run",
        "Run a model under mpirun, stream its KV cache and measure both.",
    ),
    "plan": (
        "dejavubench.cli.plan:plan",
        "Plan a transfer between two setups: parts of the cache, bytes, least times.",
    ),
    "sink": ("dejavubench.cli.sink:sink", "Receive the cache of --streaming tcp, without MPI."),
    "process": (
        "dejavubench.cli.process:process",
        "Show tables of recorded runs, and of the original's logs.",
    ),
    "compare": (
        "dejavubench.cli.compare:compare",
        "Compare two runs, and judge the change: a gate for continuous integration.",
    ),
    "figures": (
        "dejavubench.cli.figures:figures",
        "Draw the paper's figures from recorded runs.",
    ),
    "report": (
        "dejavubench.cli.report:report",
        "Write one HTML page of runs: answers, figures, tables, settings, machine.",
    ),
    "trace": (
        "dejavubench.cli.trace:trace",
        "Write a timeline of one measured iteration, for the Perfetto UI.",
    ),
    "schema": (
        "dejavubench.cli.schema:schema",
        "Print the JSON Schema of records and tables, with the meaning of every key.",
    ),
}
"""Each command: the function that it is, as module and name, and its line in the help."""


class LazyGroup(click.Group):
    """A group whose commands are imported when used, with usage errors for a job of many ranks."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands in the order of the help, importing none."""
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the arguments name.

        Raises:
            click.UsageError: there is none; the message suggests one that is spelt alike. Or an
                option is repeated.
        """
        try:
            name, command, rest_args = super().resolve_command(ctx, args)
        except click.UsageError as error:
            similar_names = difflib.get_close_matches(args[0], COMMANDS, n=1)
            if not similar_names or "did you mean" in error.message.lower():
                raise
            raise click.UsageError(
                f"{error.message} Did you mean {similar_names[0]}?", ctx
            ) from None
        if name is not None and command is not None:
            refuse_repeated(name, command, rest_args, ctx)
        return name, command, rest_args

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command; None if there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands with the texts kept here, importing none."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run a command and exit with its status.

        The status is 2 after a usage error, 130 after Ctrl-C, 141 if the reader of standard output
        went away, and 1 if it failed in another way.
        """
        guard()
        try:
            try:
                self._main(*args, **kwargs)
            finally:
                sys.stdout.flush()  # a failure can be reported here, but not while Python exits
        except OutputError as error:
            end_all_ranks(status_of(error))

    def _main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run a command; turn each kind of error into its message and exit status."""
        try:
            status = super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as error:
            fail_usage(error.format_message(), label="")
        except click.UsageError as error:
            fail_usage(error.format_message(), error.ctx.command_path if error.ctx else None)
        except UsageError as error:
            fail_usage(str(error))
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except click.Abort:
            print("interrupted", file=sys.stderr, flush=True)
            end_all_ranks(ExitStatus.INTERRUPTED)
        except OutputError:
            raise
        except Exception:  # noqa: BLE001 - the other ranks must not wait for this one
            # One print call: lines of several ranks would mix otherwise.
            rank = read_rank()
            last_line = "" if rank is None else f"dejavubench: rank {rank} failed in phase start\n"
            print(traceback.format_exc() + last_line, end="", file=sys.stderr, flush=True)
            end_all_ranks(ExitStatus.FAILED)
        sys.exit(status if isinstance(status, int) else ExitStatus.OK)


@click.group(
    cls=LazyGroup,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("_", "-"),
        "max_content_width": 110,
    },
)
@click.version_option(__version__, prog_name="dejavubench")
def main() -> None:
    """Measure what streaming the KV cache costs: DéjàVuLib in Python, and its benchmark suite.

    \b
    mpirun -n 2 dejavubench run --model gpt2 --ubatch-size 4 --input-len 256 --streaming mpi
    mpirun -n 2 dejavubench run configs/cpu/fig25.toml --rounds 20
    dejavubench plan --model opt-13b --pipeline-para-size 2 --sink-tensor-para-size 2 --link 25GB/s
    dejavubench process logs
    dejavubench figures logs -o figures
    """
