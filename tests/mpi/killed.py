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

from injection import RANK, CurrentPhase, replace_call

from dejavubench.cli import main
from dejavubench.dejavulib.destinations.disk.block_file import BlockFile
from dejavubench.dejavulib.packing import PAGE
from dejavubench.models.gpt import GPT

POINTS: dict[str, tuple[Any, str]] = {
    "step": (GPT, "forward"),
    "sync": (BlockFile, "sync"),
    "write": (BlockFile, "_pwrite"),
}


def kill_at(point: str, number: int, fraction: float) -> None:
    left = number

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            nonlocal left
            if CurrentPhase.phase in ("tokens", "drain"):
                left -= 1
                if left < 0:
                    if point == "write":
                        file, offset, data = args
                        # O_DIRECT writes whole pages only.
                        unit = 1 if file._durability != "direct" else PAGE
                        part = int(fraction * len(data)) // unit * unit
                        original(file, offset, data[:part])
                    os.kill(os.getpid(), signal.SIGKILL)
            return original(*args)

        return counted

    replace_call(*POINTS[point], make)


if __name__ == "__main__":
    rank, point, number, *fraction = sys.argv.pop(1).split(":")
    CurrentPhase.follow()
    if int(rank) == RANK:
        kill_at(point, int(number), float(fraction[0]) if fraction else 0.0)
    main()
