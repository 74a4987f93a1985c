"""Calls of the command line in this process, and what they import."""

from __future__ import annotations

import subprocess
import sys

from click.testing import Result

from helpers.paths import ROOT


def usage_error(result: Result) -> str:
    """Its one line."""
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
