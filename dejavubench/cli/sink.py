"""``dejavubench sink``: receives KV caches that runs elsewhere stream over TCP."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import TypeVar

import click

from dejavubench import units, values
from dejavubench.errors import UsageError
from dejavubench.transports.tcp_token import read_token

DEFAULT_ADDRESS = "127.0.0.1:7601"
"""Address that the sink takes unless it is told another one: of this host alone."""

LEAST_GIB = 0.001
"""Least memory of a sink, in GiB: below it no cache has room."""

MOST_GIB = 1e6
"""Most memory of a sink, in GiB: more than any host has."""

Parsed = TypeVar("Parsed")


def _log(line: str) -> None:
    """Print one line, even if a peer has sent control characters."""
    printable_line = "".join(character if character.isprintable() else "?" for character in line)
    print(f"dejavubench sink: {printable_line[:500]}", file=sys.stderr, flush=True)


@click.command()
@click.option(
    "--listen",
    metavar="ADDR:PORT",
    default=DEFAULT_ADDRESS,
    show_default=True,
    help="Address that sources connect to; port 0 takes any free port. Default: this host only.",
)
@click.option(
    "--max-gib",
    metavar="N",
    help="Memory for all peers together, in GiB. [default: half of the available memory]",
)
@click.option(
    "--timeout",
    metavar="TIME",
    default="10s",
    show_default=True,
    help="Drop a peer that stops in the middle of a message for this long. Its proof of the token "
    "may take 2 s at most.",
)
def sink(listen: str, max_gib: str | None, timeout: str) -> None:
    """Receive KV caches from 'dejavubench run --streaming tcp --peer ADDR:PORT', until interrupted.

    Both sides need the same token in the environment variable DEJAVUBENCH_TOKEN. The token is
    proven and never sent. The caches are not encrypted: use a network that you trust. Every peer is
    logged on stderr.
    """
    address = _parse_option("--listen", units.parse_address, listen)
    timeout_s = _parse_option("--timeout", units.parse_seconds, timeout)
    most_gib = None if max_gib is None else _parse_option("--max-gib", _parse_gib, max_gib)
    token = read_token()
    from dejavubench.dejavulib.destinations.tcp.handshake import format_address
    from dejavubench.dejavulib.destinations.tcp.sink import TCPSinkServer
    from dejavubench.machine.memory import measure_available_nbytes
    from dejavubench.transports.loops.tcp_services import SERVICES

    limit = measure_available_nbytes() // 2 if most_gib is None else int(most_gib * 2**30)
    try:
        server = TCPSinkServer(
            address=address,
            token=token,
            limit=limit,
            timeout=timeout_s,
            log=_log,
            services=SERVICES,
        )
    except OSError as error:
        raise UsageError(f"--listen {listen}: {error.strerror or error}") from None
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, lambda *_: server.stop())
    _log(f"listening on {format_address(server.address)}, {_format_limit(limit)}")
    server.serve()
    server.close()
    _log("ended")


def _format_limit(nbytes: int) -> str:
    return f"{units.format_binary_nbytes(nbytes)} at most"


def _parse_gib(value: object) -> float:
    gib = values.parse_number(value)
    if not LEAST_GIB <= gib <= MOST_GIB:
        raise ValueError(
            f"must be from {LEAST_GIB:g} to {MOST_GIB:g}, not {values.format_value(value)}"
        )
    return gib


def _parse_option(option: str, read_value: Callable[[object], Parsed], text: str) -> Parsed:
    try:
        return read_value(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
