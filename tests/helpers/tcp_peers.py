"""For tests of ``tcp``: real ``dejavubench sink`` processes, and peers of every kind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.destinations.tcp.handshake import Address
from dejavubench.machine.launcher import RANK_VARIABLES
from dejavubench.transports.loops.tcp_services import MeasuredTCPDestination
from dejavubench.transports.tcp_token import TOKEN_VARIABLE
from helpers.jobs import CLI, GONE_WITHIN, PATIENCE
from helpers.paths import ROOT
from helpers.waits import until

TOKEN = "a token for tests, no secret"
DEADLINE = "1s"
"""The wait of these tests' sinks for a peer: short, but no test measures it."""


class SinkProcess:
    """A ``dejavubench sink`` on a free port of this host, as a context manager."""

    def __init__(
        self, cwd: Path, *args: object, token: str = TOKEN, listen: str = "127.0.0.1:0"
    ) -> None:
        cwd.mkdir(parents=True, exist_ok=True)
        self._err = cwd / "sink-stderr"
        inherited = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
        with self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    *CLI,
                    "sink",
                    "--listen",
                    listen,
                    "--timeout",
                    DEADLINE,
                    *map(str, args),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=err,
                cwd=cwd,
                env={**inherited, "PYTHONPATH": str(ROOT), TOKEN_VARIABLE: token},
            )

    def __enter__(self) -> SinkProcess:
        match = self.wait_for_line(r"listening on ([\d.]+):(\d+)")
        self.address: Address = (match[1], int(match[2]))
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def peer(self) -> str:
        return f"{self.address[0]}:{self.address[1]}"

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    def wait_for_line(self, pattern: str) -> re.Match[str]:
        """Wait for a line on its stderr."""

        def has_line() -> bool:
            if re.search(pattern, self.stderr):
                return True
            if self.process.poll() is not None:
                pytest.fail(f"the sink did not say {pattern!r}:\n{self.stderr}")
            return False

        until(has_line, f"{pattern!r} on the sink's stderr", PATIENCE)
        match = re.search(pattern, self.stderr)
        assert match is not None
        return match

    def end(self, number: signal.Signals) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(GONE_WITHIN)

    def connect(
        self, *streams: Stream, timeout: float = 20.0, token: str = TOKEN, checksums: bool = True
    ) -> MeasuredTCPDestination:
        return MeasuredTCPDestination(
            self.address, token.encode(), list(streams), torch.int16, timeout, checksums
        )


@contextmanager
def shared_sink(folder: Path) -> Iterator[SinkProcess]:
    """Start a sink for many tests: what one of them does to it must not trouble the next."""
    with SinkProcess(folder, "--max-gib", "0.1") as process:
        yield process
        assert process.end(signal.SIGINT) == 0
        assert "Traceback" not in process.stderr


@contextmanager
def bare_connection(address: Address) -> Iterator[socket.socket]:
    """Connect to a sink without the protocol's handshake."""
    with socket.create_connection(address, PATIENCE) as connected:
        yield connected


def name_of(connected: socket.socket) -> str:
    host, port = connected.getsockname()[:2]
    return re.escape(f"{host}:{port}")


def has_closed(connected: socket.socket) -> bool:
    """Wait until the other side closes; whatever it still says is thrown away."""
    connected.settimeout(PATIENCE)
    try:
        while connected.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True
