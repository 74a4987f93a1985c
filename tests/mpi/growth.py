"""A rank of ``dejavubench run`` that notes after each point how much memory of its own it has.

    growth.py FILE run …

FILE gets one number a point: KiB of memory that no file backs (RssAnon).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from unittest import mock

from dejavubench.bench import run
from dejavubench.bench.point.models import give_memory_back
from dejavubench.cli import main

sizes = Path(sys.argv.pop(1))


def give_back_and_note() -> None:
    give_memory_back()
    match = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    with sizes.open("a") as file:
        file.write(f"{match[1]}\n")


mock.patch.object(run, "give_memory_back", give_back_and_note).start()
main()
