"""The command line: one file a command, imported when that command is asked for."""

from __future__ import annotations

import importlib
import sys
import traceback
from typing import Any, NoReturn

import click

from dejavubench import __version__
from dejavubench.cli.errors import end_all_ranks, fail_usage
from dejavubench.cli.streams import guard, status_of
from dejavubench.errors import OutputError, UsageError

COMMANDS = {
    "run": (
        "dejavubench.cli.run:run",
        "Measure: run a model under mpirun and stream its KV cache.",
    ),
    "plan": (
        "dejavubench.cli.plan:plan",
        "Between two setups: who sends which part of the cache to whom.",
    ),
    "sink": ("dejavubench.cli.sink:sink", "Receive what --streaming tcp sends here: no MPI."),
    "process": (
        "dejavubench.cli.process:process",
        "Tables of what runs recorded, and of the original's logs.",
    ),
    "figures": (
        "dejavubench.cli.figures:figures",
        "Draw the paper's figures from what runs recorded.",
    ),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when used, and whose usage errors suit a job of many ranks."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run a command and exit: 0, 1 or what the command says; 2 after a usage error; 130 after Ctrl-C.

        With standard output broken the status is 141 (its reader went away) or 1.
        """
        guard()
        try:
            try:
                self._main(*args, **kwargs)
            finally:
                sys.stdout.flush()  # here, where a failure can still be said, and not as Python ends
        except OutputError as error:
            end_all_ranks(status_of(error))

    def _main(self, *args: Any, **kwargs: Any) -> NoReturn:
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
            end_all_ranks(130)
        except OutputError:
            raise
        except Exception:  # noqa: BLE001 - whatever it is, the other ranks must not wait for this one
            print(
                traceback.format_exc(), end="", file=sys.stderr, flush=True
            )  # at once: other ranks print too
            end_all_ranks(1)
        sys.exit(status if isinstance(status, int) else 0)


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
    """What does streaming the KV cache cost? DéjàVuLib in Python, and the suite that measures it.

    \b
    mpirun -n 2 dejavubench run --model gpt2 --ubatch-size 4 --input-len 256 --streaming mpi
    mpirun -n 2 dejavubench run configs/cpu/fig25.toml --rounds 20
    dejavubench plan --model opt-13b --pipeline-para-size 2 --sink-tensor-para-size 2 --link 25GB/s
    dejavubench process logs
    dejavubench figures logs -o figures
    """
