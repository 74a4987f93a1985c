"""``tcp``: a plain socket to ``dejavubench sink``, a program that is no part of the MPI job."""

from __future__ import annotations

from collections.abc import Sequence

from dejavubench.dejavulib.destinations.registry import TCP
from dejavubench.transports.base import Missing, Options, ProbeNames, Style, Transport


class TCPTransport(Transport):
    entry = TCP
    order = 60
    help = "a remote CPU, no MPI"
    style = Style("#F0E442", "--")
    options = ("peer", "tcp_checksums")
    copy_s = 3e-5
    probe_names = ProbeNames(
        ceiling="tcp-raw",
        ceiling_on_gpu="tcp-raw",
        link_rate="tcp-raw",
        message="tcp-message",
        held_against={"tcp-destination": "tcp-raw"},
    )

    def missing(self, options: Options) -> Missing | None:
        if options.value("peer"):
            return None
        return Missing(
            "no --peer",
            "streaming tcp needs --peer ADDR:PORT, where 'dejavubench sink' listens",
        )

    def conflict(self, options: Options, chosen: Sequence[Transport]) -> str | None:
        peers = len(options.value("peer"))
        if peers in (0, 1, options.sources):
            return None
        return (
            f"peer names {peers} sinks: give one for all, or one for each of "
            f"the {options.sources} sources"
        )


TRANSPORT = TCPTransport()
