"""Print a text log's average total time, as the original's script does."""

import sys

try:
    import dejavubench  # noqa: F401
except ImportError:
    sys.exit(
        "dejavubench is not installed for this Python: source .venv/bin/activate, or see the README"
    )

from dejavubench.analysis.numbers.averages import format_total_average, run_script
from dejavubench.cli.streams import run_guarded

if __name__ == "__main__":
    sys.exit(run_guarded(lambda: run_script(sys.argv, format_total_average)))
