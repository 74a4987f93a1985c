"""For tests of commands: calls of the command line in this process, and what they import."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

from click.testing import CliRunner, Result

from dejavubench.cli import main
from dejavubench.machine.launcher import RANK_VARIABLES
from helpers.paths import ROOT


def call(*words: object, environment: Mapping[str, str | None] | None = None) -> Result:
    """Return the result of ``dejavubench WORDS…``, called in this process and not as a rank.

    Args:
        environment: further variables; None takes a variable away.
    """
    variables = {**dict.fromkeys(RANK_VARIABLES), **(environment or {})}
    return CliRunner().invoke(main, list(map(str, words)), prog_name="dejavubench", env=variables)


def stdout_of(*words: object) -> str:
    """Return what ``dejavubench WORDS…`` prints; it must succeed."""
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def usage_error_of(*words: object, environment: Mapping[str, str | None] | None = None) -> str:
    """Return the one line of a call that is refused, without its ``Error: ``."""
    return usage_error(call(*words, environment=environment))


def usage_error(result: Result) -> str:
    """Return the one line of a refused call, without its ``Error: ``."""
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("Error: ")
    return result.stderr.removeprefix("Error: ").rstrip("\n")


def heavy_after(heavy: set[str], *arguments: str) -> str:
    """Return the output of a command in its own process, and which of some modules it imported."""
    program = (
        "import sys\nfrom dejavubench.cli import main\n"
        f"try:\n    main({[*arguments]}, prog_name='dejavubench')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        f"print('HEAVY', sorted({heavy} & set(sys.modules)))\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
