"""The sink of ``tcp`` that one source streams to."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch

from dejavubench.dejavulib.destinations.base import Stream, StreamingError
from dejavubench.dejavulib.destinations.tcp.handshake import connect, leave
from dejavubench.dejavulib.destinations.tcp.wire import RefusedError, TokenError
from dejavubench.errors import UsageError
from dejavubench.transports.loops.tcp_services import MeasuredTCPDestination
from dejavubench.transports.tcp_token import TOKEN_VARIABLE, read_token
from dejavubench.units import parse_address


@dataclass(frozen=True)
class TCPPeer:
    """A sink that has been reached.

    Attributes:
        peer: address of the peer, as it was given.
        same_host: the peer runs on this host.
        same_machine: the peer runs on this machine, maybe in another network, as in a container.
        timeout_s: seconds that it may be silent when an answer is due.
        checksums: both ends hash the streamed bytes.
    """

    peer: str
    same_host: bool
    same_machine: bool
    timeout_s: float
    checksums: bool

    @classmethod
    def find(cls, peer: str, timeout_s: float, checksums: bool) -> TCPPeer:
        """Return the sink at an address.

        Raises:
            UsageError: there is no token, or nobody at this address shares it.
        """
        try:
            wire = connect(parse_address(peer), read_token(), timeout_s)
        except TokenError as error:
            raise UsageError(
                f"--peer {peer}: {error}. Set {TOKEN_VARIABLE} to the sink's token."
            ) from None
        except StreamingError as error:
            raise UsageError(f"--peer {peer}: {error}") from None
        # Found is enough: each destination makes a connection of its own, with its caches.
        leave(wire)
        wire.close()
        return cls(
            peer=peer,
            same_host=wire.same_host,
            same_machine=wire.same_machine,
            timeout_s=timeout_s,
            checksums=checksums,
        )

    def refusal(
        self, streams: list[Stream], dtype: torch.dtype, reservations: ExitStack
    ) -> str | None:
        """Return why the sink does not take these streams, or None.

        The sink keeps room for them until ``reservations`` is closed.

        Raises:
            UsageError: the sink is not there any more.
        """
        try:
            reservations.callback(self.connect(streams, dtype).close)
        except RefusedError as refused:
            return f"streaming tcp: {refused}"
        except StreamingError as error:
            raise UsageError(f"--peer {self.peer}: {error}") from None
        return None

    def connect(self, streams: list[Stream], dtype: torch.dtype) -> MeasuredTCPDestination:
        """Return a destination for all of these streams, on a connection of its own.

        Raises:
            StreamingError: the sink refuses, or is not there any more.
        """
        return MeasuredTCPDestination(
            address=parse_address(self.peer),
            token=read_token(),
            streams=streams,
            dtype=dtype,
            timeout=self.timeout_s,
            checksums=self.checksums,
        )
