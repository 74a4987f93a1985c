"""Average total time of a text log, as the original's script of this name prints it."""

import sys
from pathlib import Path

try:
    import dejavubench  # noqa: F401
except ImportError:
    sys.exit("dejavubench is not installed for this Python: source .venv/bin/activate, or see the README")

from dejavubench.analysis.textlog import TextLogError, total_average


def main() -> int:
    if len(sys.argv) != 2:
        print(f"usage: {Path(sys.argv[0]).name} LOG", file=sys.stderr)
        return 2
    try:
        print(total_average(Path(sys.argv[1])))
    except TextLogError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
