"""The command line of dejavubench, killed in its token phase; test_restart.py runs it under mpirun.

``killed.py RANK:POINT:N[:FRACTION] run …``: in the phases ``tokens`` and ``drain`` the rank kills
itself with SIGKILL after it has passed POINT N times. POINT is a ``step`` of the model, a ``sync``
of the stream's file, or a ``write`` to it. Of that write only FRACTION is written (with ``direct``,
whole pages of it).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from injection import RANK, CurrentPhase, inject

from dejavubench.cli import main
from dejavubench.dejavulib.destinations.disk.block_file import BlockFile
from dejavubench.dejavulib.packing import PAGE_NBYTES
from dejavubench.models.gpt import GPT

POINTS: dict[str, tuple[Any, str]] = {
    "step": (GPT, "forward"),
    "sync": (BlockFile, "sync"),
    "write": (BlockFile, "_pwrite"),
}


def kill_at(point: str, number: int, fraction: float) -> None:
    """Kill this rank in its token phase, after it has passed ``point`` ``number`` times."""
    passes_left = number

    def count_down(call: Callable[..., Any], *args: Any) -> Any:
        nonlocal passes_left
        if CurrentPhase.phase in ("tokens", "drain"):
            passes_left -= 1
            if passes_left < 0:
                if point == "write":
                    write_part(call, fraction, *args)
                os.kill(os.getpid(), signal.SIGKILL)
        return call(*args)

    inject(*POINTS[point], around=count_down)


def write_part(
    write: Callable[..., Any], fraction: float, file: BlockFile, offset: int, data: memoryview
) -> None:
    """Write a part of the data; with O_DIRECT, whole pages of it."""
    unit = 1 if file._durability != "direct" else PAGE_NBYTES
    part = int(fraction * len(data)) // unit * unit
    write(file, offset, data[:part])


if __name__ == "__main__":
    rank, point, number, *fraction = sys.argv.pop(1).split(":")
    CurrentPhase.follow()
    if int(rank) == RANK:
        kill_at(point, int(number), float(fraction[0]) if fraction else 0.0)
    main()
