"""Bytes that network interfaces and InfiniBand ports have carried.

``/proc/net/dev`` lists the interfaces of this process's network namespace. The counters of
InfiniBand ports are in ``/sys/class/infiniband`` (the kernel's sysfs-class-infiniband).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dejavubench.machine.readings.not_readable import ROOT, NotReadableError, read_kernel_file

_BYTES_PER_WORD = 4  # InfiniBand counts words of four bytes, one byte per lane
_SATURATED_COUNT = 2**32 - 1  # old adapters stop counting here


@dataclass(frozen=True)
class InterfaceCounts:
    """Bytes and packets since a counter began.

    Attributes:
        out_nbytes, out_packets: sent from this host.
        in_nbytes, in_packets: received by it.
    """

    out_nbytes: int
    out_packets: int
    in_nbytes: int
    in_packets: int

    def since(self, earlier_counts: InterfaceCounts) -> InterfaceCounts:
        """Return the bytes and packets counted after an earlier reading."""
        return InterfaceCounts(
            self.out_nbytes - earlier_counts.out_nbytes,
            self.out_packets - earlier_counts.out_packets,
            self.in_nbytes - earlier_counts.in_nbytes,
            self.in_packets - earlier_counts.in_packets,
        )


def read_interface_traffic(root: Path = ROOT) -> dict[str, InterfaceCounts]:
    """Return the traffic of each network interface, ``lo`` among them, and InfiniBand port.

    A port is named ``<device>/<number>``.

    Raises:
        NotReadableError: an interface or a port has no counters.
    """
    path = root / "proc/net/dev"
    counts: dict[str, InterfaceCounts] = {}
    for line in read_kernel_file(path).splitlines()[2:]:
        name, _, counts_text = line.partition(":")
        fields = counts_text.split()
        if len(fields) < 10 or not all(field.isdecimal() for field in fields):
            raise NotReadableError(f"{path}: {line.strip()!r}")
        received_counts, sent_counts = map(int, fields[:2]), map(int, fields[8:10])
        counts[name.strip()] = InterfaceCounts(*sent_counts, *received_counts)
    return counts | _read_ports(root / "sys/class/infiniband")


def _read_ports(folder: Path) -> dict[str, InterfaceCounts]:
    """Return the traffic of InfiniBand ports; none if the machine has no such devices."""
    return {
        f"{port.parent.parent.name}/{port.name}": InterfaceCounts(
            _BYTES_PER_WORD * _read_count(port, "port_xmit_data"),
            _read_count(port, "port_xmit_packets"),
            _BYTES_PER_WORD * _read_count(port, "port_rcv_data"),
            _read_count(port, "port_rcv_packets"),
        )
        for port in sorted(folder.glob("*/ports/*"))
    }


def _read_count(port: Path, name: str) -> int:
    path = port / "counters" / name
    text = read_kernel_file(path).strip()
    if not text.isdecimal() or int(text) == _SATURATED_COUNT:
        raise NotReadableError(f"{path} is {text}: no count, or one that has reached its end")
    return int(text)
