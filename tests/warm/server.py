"""Ranks that start warm: this process imports what a rank needs, and forks each one when the launcher starts it.

Importing torch takes a rank seconds, a tiny model's whole job a tenth of that. MPI is loaded here but begins in the
rank, as the launcher's own process would have it. ``server.py ADDRESS`` serves until its standard input closes.
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
"""The server's own files are numbered from here on, out of the way of a rank's."""


def serve(listener: socket.socket) -> None:
    """Fork ranks until standard input closes."""
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(0, selectors.EVENT_READ)
    ranks: dict[
        int, tuple[int, socket.socket]
    ] = {}  # process and who stands for it, by the process's own file
    while True:
        for key, _ in selector.select():
            if key.fileobj == 0:
                return
            if key.fileobj is listener:
                connection = _high_socket(listener.accept()[0])
                try:
                    pid = _fork(
                        connection, selector, [listener, *(each for _, each in ranks.values())]
                    )
                except (
                    EOFError
                ):  # the launcher has killed who stood for a rank before there was one
                    connection.close()
                    continue
                with contextlib.suppress(
                    BrokenPipeError
                ):  # likewise: the connection's end is seen next
                    connection.sendall(pid.to_bytes(4, "little"))
                file = _high(os.pidfd_open(pid))
                ranks[file] = pid, connection
                selector.register(file, selectors.EVENT_READ, file)
                selector.register(connection, selectors.EVENT_READ, file)
            elif key.data in ranks:
                pid, connection = ranks.pop(key.data)
                if key.fileobj is connection:  # the launcher has killed who stood for it
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
    """The process that does what the other end asks for; in that process itself it does not return."""
    nbytes, files, _, _ = socket.recv_fds(connection, 4, 8)
    try:
        request = json.loads(
            _exactly(connection, int.from_bytes(nbytes, "little") or 1)
        )  # 1: it has gone already
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
    for each in (*own, connection):
        each.close()
    received = [_high(file) for file in files]
    for file, number in zip(received, request["files"], strict=True):
        os.dup2(file, number)
        os.close(file)
    _run(request["argv"], request["environment"], request["cwd"])


def _exactly(connection: socket.socket, nbytes: int) -> bytes:
    """Raises EOFError: the other end has gone."""
    got = bytearray()
    while len(got) < nbytes:
        more = connection.recv(nbytes - len(got))
        if not more:
            raise EOFError
        got += more
    return bytes(got)


def _high(file: int) -> int:
    """The same open file under a number that is out of the way."""
    number = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, HIGH)
    os.close(file)
    return number


def _high_socket(low: socket.socket) -> socket.socket:
    return socket.socket(fileno=_high(low.detach()))


def _run(argv: list[str], environment: dict[str, str], cwd: str) -> NoReturn:
    """What ``python ARGV…`` does, in a process that is a rank from now on."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
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
    """As an interpreter ends, but for its taking to pieces of all that was imported, which takes the longest.

    MPI has handlers of C's own ``exit``, by which it takes leave of the launcher.
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
    import dejavubench.analysis.render
    import dejavubench.bench.session
    import dejavubench.cli.run
    import dejavubench.models.backends.cpu.step
    import dejavubench.records  # noqa: F401


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the tests
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen(64)
    _prepare()
    print("ready", flush=True)
    serve(_high_socket(listener))
