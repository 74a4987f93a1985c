"""Network interfaces, InfiniBand ports and TCP ports of a host."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
"""The root of the file system, which tests replace."""

SIOCGIFADDR = 0x8915
"""Request for an interface's IPv4 address: netdevice(7)."""

CONNECT_S = 2.0
"""Seconds after which a port is said not to be reachable."""


@dataclass(frozen=True)
class Interface:
    """A network interface that is up.

    Attributes:
        name: the kernel's name.
        address: its IPv4 address; empty without one.
        mbit_s: its speed; None if the driver does not say, as with virtual interfaces.
        mtu: bytes of its largest packet.
    """

    name: str
    address: str
    mbit_s: int | None
    mtu: int


@dataclass(frozen=True)
class InfiniBandPort:
    """A port of an InfiniBand or RoCE adapter.

    Attributes:
        name: of the adapter, with the number of the port.
        state, rate: the kernel's words.
    """

    name: str
    state: str
    rate: str


@dataclass(frozen=True)
class NetworkFacts:
    """Interfaces and ports of a host. The loopback interface is left out.

    Attributes:
        interfaces: network interfaces that are up.
        infiniband: ports of InfiniBand and RoCE adapters.
    """

    interfaces: tuple[Interface, ...]
    infiniband: tuple[InfiniBandPort, ...]


def read_network_facts(root: Path = ROOT) -> NetworkFacts:
    """Read the interfaces and InfiniBand ports from ``/sys/class``."""
    folders = sorted((root / "sys/class/net").glob("*/operstate"))
    interfaces = tuple(
        _read_interface(file.parent)
        for file in folders
        # Tunnels and some virtual interfaces report "unknown" while they work.
        if file.parent.name != "lo" and file.read_text().strip() in ("up", "unknown")
    )
    ports = sorted((root / "sys/class/infiniband").glob("*/ports/*"))
    return NetworkFacts(interfaces, tuple(_read_port(port) for port in ports))


def _read_interface(folder: Path) -> Interface:
    try:
        mbit_s = int((folder / "speed").read_text())
    except (OSError, ValueError):  # many virtual interfaces refuse to be read
        mbit_s = -1
    return Interface(
        folder.name,
        _ask_address(folder.name),
        mbit_s if mbit_s > 0 else None,
        int((folder / "mtu").read_text()),
    )


def _ask_address(name: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram_socket:
        request = struct.pack("256s", name.encode()[:15])
        try:
            answer = fcntl.ioctl(datagram_socket.fileno(), SIOCGIFADDR, request)
        except OSError:
            return ""
    # A struct ifreq: 16 bytes of name, then a sockaddr_in: family and port, 2 bytes each.
    return socket.inet_ntoa(answer[20:24])


def _read_port(folder: Path) -> InfiniBandPort:
    def read_attribute(name: str) -> str:
        try:
            return (folder / name).read_text().strip()
        except OSError:
            return "not readable"

    return InfiniBandPort(
        f"{folder.parents[1].name} port {folder.name}",
        read_attribute("state").partition(": ")[2] or read_attribute("state"),  # "4: ACTIVE"
        read_attribute("rate"),
    )


# ---- TCP ports ----


@dataclass(frozen=True)
class Listening:
    """A port that this host listens on for a moment.

    Attributes:
        wanted: the port that was to be used.
        port: the port in use for the probe; another one if the wanted one is taken.
        problem: why no port could be opened.
    """

    wanted: int
    port: int
    problem: str | None = None

    @property
    def is_taken(self) -> bool:
        """Whether another program has the wanted port."""
        return self.problem is None and self.port != self.wanted


@contextmanager
def listen_on(requested_port: int) -> Iterator[Listening]:
    """Listen on a port of all interfaces, or on any other one if another program has it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        listener = _listen(server, requested_port, requested_port)
        if listener.problem is None and listener.port == -1:
            listener = _listen(server, 0, requested_port)  # 0: the kernel chooses a free port
        yield listener


def _listen(server: socket.socket, port: int, requested_port: int) -> Listening:
    # Connections of an earlier probe may linger; a listener of another program still counts.
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind(("", port))
        server.listen(64)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and port:
            return Listening(requested_port, -1)
        return Listening(requested_port, -1, error.strerror or str(error))
    return Listening(requested_port, server.getsockname()[1])


def find_connection_problem(
    addresses: Sequence[str], port: int, timeout_s: float = CONNECT_S
) -> str | None:
    """Return why none of the addresses takes a connection to the port; None if one does."""
    problem = "the host has no IPv4 address"
    for address in addresses:
        try:
            with contextlib.closing(socket.create_connection((address, port), timeout_s)):
                return None
        except OSError as error:
            problem = f"{address}: {error.strerror or 'no answer'}"
    return problem
