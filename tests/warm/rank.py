"""A stand-in that ``mpirun`` starts in place of a rank. It asks ``server.py`` to fork the rank.

It hands over its arguments, environment and open files, passes signals on, and ends as the rank
ends. Until then the launcher's file is open here, too, so the launcher learns of the end when the
rank is gone. The stand-in imports little, because it is started for every rank.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from typing import NoReturn

SOCKET = "WARM_SOCKET"
"""Environment variable: address of the server."""

LAUNCHERS_FILE = "PMI_FD"
"""Environment variable: number of the open file by which MPICH's launcher talks to a rank."""


def main(argv: list[str]) -> NoReturn:
    files = [0, 1, 2]
    if LAUNCHERS_FILE in os.environ:
        files.append(int(os.environ[LAUNCHERS_FILE]))
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ.pop(SOCKET))
    request = json.dumps(
        {"argv": argv, "environment": dict(os.environ), "cwd": os.getcwd(), "files": files}
    ).encode()
    socket.send_fds(connection, [len(request).to_bytes(4, "little")], files)
    connection.sendall(request)
    pid = int.from_bytes(connection.recv(4), "little")

    def pass_on(number: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, pass_on)
    status = int.from_bytes(connection.recv(4), "little")
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) != signal.SIGKILL:
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main(sys.argv[1:])
