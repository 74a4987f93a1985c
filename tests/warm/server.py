"""A server that imports what ranks need, and forks each rank when the launcher starts it.

Importing torch takes seconds, a tiny model's whole job a tenth of that. MPI is loaded here, but
begins in the rank. ``server.py ADDRESS`` serves until its standard input closes.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import traceback
from typing import NoReturn

HIGH = 200
"""The server's own files have numbers from here on, so that a rank's numbers are free."""


def serve(listener: socket.socket) -> None:
    """Fork ranks until standard input closes."""
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(0, selectors.EVENT_READ)
    # Process id and connection of its stand-in, by the pidfd of the process.
    ranks: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for key, _ in selector.select():
            if key.fileobj == 0:
                return
            if key.fileobj is listener:
                connection = _move_socket_up(listener.accept()[0])
                try:
                    pid = _fork(
                        connection, selector, [listener, *(rank for _, rank in ranks.values())]
                    )
                except EOFError:  # the launcher has killed the stand-in before there was a rank
                    connection.close()
                    continue
                # The same may happen now; the end of the connection is then seen next.
                with contextlib.suppress(BrokenPipeError):
                    connection.sendall(pid.to_bytes(4, "little"))
                file = _move_up(os.pidfd_open(pid))
                ranks[file] = pid, connection
                selector.register(file, selectors.EVENT_READ, file)
                selector.register(connection, selectors.EVENT_READ, file)
            elif key.data in ranks:
                pid, connection = ranks.pop(key.data)
                if key.fileobj is connection:  # the launcher has killed the stand-in
                    os.kill(pid, signal.SIGKILL)
                status = os.waitpid(pid, 0)[1]
                with contextlib.suppress(BrokenPipeError):
                    connection.sendall(status.to_bytes(4, "little"))
                selector.unregister(key.data)
                selector.unregister(connection)
                os.close(key.data)
                connection.close()


def _fork(
    connection: socket.socket, selector: selectors.BaseSelector, own: list[socket.socket]
) -> int:
    """Fork a process for the request and return its id. In that process this never returns."""
    nbytes, files, _, _ = socket.recv_fds(connection, 4, 8)
    try:
        # Without a length the other end has gone already, and reading 1 byte raises EOFError.
        request = json.loads(_receive_exactly(connection, int.from_bytes(nbytes, "little") or 1))
    except EOFError:
        for file in files:
            os.close(file)
        raise
    pid = os.fork()
    if pid:
        for file in files:
            os.close(file)
        return pid
    selector.close()
    for channel in (*own, connection):
        channel.close()
    received = [_move_up(file) for file in files]
    for file, number in zip(received, request["files"], strict=True):
        os.dup2(file, number)
        os.close(file)
    _run(request["argv"], request["environment"], request["cwd"])


def _receive_exactly(connection: socket.socket, nbytes: int) -> bytes:
    """Return ``nbytes`` bytes.

    Raises:
        EOFError: the other end has gone.
    """
    received = bytearray()
    while len(received) < nbytes:
        more = connection.recv(nbytes - len(received))
        if not more:
            raise EOFError
        received += more
    return bytes(received)


def _move_up(file: int) -> int:
    """Return the same open file under a high number."""
    number = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, HIGH)
    os.close(file)
    return number


def _move_socket_up(low: socket.socket) -> socket.socket:
    return socket.socket(fileno=_move_up(low.detach()))


def _run(argv: list[str], environment: dict[str, str], cwd: str) -> NoReturn:
    """Do what ``python ARGV…`` does. This process is a rank from now on."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    # The interpreter reads PYTHONPATH only at its start: a rank's own may name folders of plugins.
    folders = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [folder for folder in folders if folder and folder not in sys.path]
    os.chdir(cwd)
    status = 0
    try:
        from mpi4py import MPI

        MPI.Init_thread(MPI.THREAD_MULTIPLE)

        @atexit.register
        def finalize() -> None:
            if not MPI.Is_finalized():
                MPI.Finalize()

        if argv[0] == "-m":
            sys.argv = argv[1:]
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = argv
            sys.path.insert(0, os.path.dirname(argv[0]))
            runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as ending:
        status = ending.code if isinstance(ending.code, int) else 1 if ending.code else 0
    except BaseException:  # noqa: BLE001 - as the interpreter does with what nobody catches
        traceback.print_exc()
        status = 1
    _exit(status)


def _exit(status: int) -> NoReturn:
    """End as an interpreter does, without taking all modules to pieces, which takes the longest.

    MPI's handlers of C's ``exit`` tell the launcher.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).exit(status)
    raise SystemExit(status)  # not reached; for the type checker


def _prepare() -> None:
    """Import what ranks need, without beginning MPI."""
    import mpi4py

    mpi4py.rc.initialize = False
    from numba.core.registry import cpu_target

    import dejavubench.analysis.reports.formats
    import dejavubench.analysis.reports.report
    import dejavubench.bench.run
    import dejavubench.cli.console
    import dejavubench.cli.distribute_plan
    import dejavubench.cli.run
    import dejavubench.config.resolve
    import dejavubench.dejavulib.destinations.disk
    import dejavubench.dejavulib.destinations.host
    import dejavubench.dejavulib.destinations.mpi
    import dejavubench.models.backends.cpu.backend
    import dejavubench.records
    import dejavubench.watchdog.mpi_start  # noqa: F401
    from dejavubench.bench import iteration
    from dejavubench.transports.registry import list_builtin_transports

    list_builtin_transports()
    # The first kernel that a process loads makes numba import its tables of types and functions.
    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()
    # A job whose arms all stream sleeps for this window. Cold ones keep the half second.
    iteration.IDLE_S = 0.05


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the tests
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen(64)
    _prepare()
    print("ready", flush=True)
    serve(_move_socket_up(listener))
