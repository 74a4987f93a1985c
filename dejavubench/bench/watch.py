"""Which rank ended first: a small process beside the ranks of a host notes it.

A launcher kills every rank as soon as one of them was killed or has crashed, so that none is left to say which one
it was. This file is also what that process runs: it imports nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path

IN_ORDER = b"in order"


class Watch:
    """Watches processes of this host until :meth:`end`.

    Args:
        file: where the ranks that end before are noted, as one :class:`~dejavubench.records.FirstExit`.
        pids: process ids by rank.
    """

    def __init__(self, file: Path, pids: dict[int, int]) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if hasattr(os, "pidfd_open"):  # Linux; elsewhere nothing is noted and the report names no first
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, str(file), *(f"{rank}={pid}" for rank, pid in pids.items())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # the launcher's signals are for the ranks
            )
            assert self._process.stdout is not None
            self._process.stdout.readline()  # it watches from now on

    def end(self) -> None:
        """The ranks have said all there is to say; whatever ends from now on ends in order."""
        if self._process is not None:
            self._process.communicate(IN_ORDER)


def _watch(file: Path, pids: dict[int, int]) -> None:
    poll, ranks = select.poll(), {}
    for rank, pid in pids.items():
        fd = os.pidfd_open(pid)
        ranks[fd] = rank
        poll.register(fd, select.POLLIN)
    poll.register(sys.stdin.fileno(), select.POLLIN)
    print(flush=True)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if sys.stdin.fileno() in ready:
            if os.read(sys.stdin.fileno(), len(IN_ORDER)):
                return
            poll.unregister(sys.stdin.fileno())  # who started this has ended without a word: its own turn comes
        first = sorted(ranks[fd] for fd in ready if fd in ranks)
        if first:
            partial = file.with_suffix(".part")
            partial.write_text(json.dumps({"kind": "first-exit", "ranks": first}) + "\n")
            partial.rename(file)
            return


if __name__ == "__main__":
    _watch(Path(sys.argv[1]), {int(rank): int(pid) for rank, _, pid in (word.partition("=") for word in sys.argv[2:])})
