"""Peers of a ``tcp`` sink that have not proven yet that they know the token.

Anybody can connect, so peers that only wait must not keep others out. They have few places of their
own. A peer that knows the token proves it within milliseconds; the oldest of the others make room.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from .wire import Wire

PROVE_WITHIN_S = 2.0
"""Seconds that a peer has for its proof."""

MOST_UNAUTHENTICATED = 128
MOST_PER_ADDRESS = 16
"""Most peers, in all and of one address.

More may come from one address at a time, as the sources of a large host do: see :data:`YOUNG_S`.
"""

YOUNG_S = 0.5
"""Seconds in which a peer of a crowded address is not dropped for another one."""


@dataclass
class _Entrant:
    wire: Wire
    address: str
    entered_s: float


class UnauthenticatedPeers:
    """The peers that are about to prove themselves; called from several threads.

    Args:
        clock: returns seconds since some moment.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._entrants: dict[Wire, _Entrant] = {}  # the oldest first
        self._dropped_wires: set[Wire] = set()

    def make_room(self, address: str) -> float:
        """Drop the peer that must go before a peer of this address can come, if any.

        Returns:
            0 if it can come now; else seconds to wait before asking again.
        """
        with self._lock:
            of_address = [
                entrant for entrant in self._entrants.values() if entrant.address == address
            ]
            if len(of_address) >= MOST_PER_ADDRESS and self._age(of_address[0]) >= YOUNG_S:
                self._drop(of_address[0])
            if len(self._entrants) < MOST_UNAUTHENTICATED:
                return 0.0
            # The address with most peers pays, so that one attacker cannot push out the others.
            counts: dict[str, int] = {}
            for entrant in self._entrants.values():
                counts[entrant.address] = counts.get(entrant.address, 0) + 1
            crowded_address = max(counts, key=lambda address: counts[address])
            oldest_entrant = next(
                entrant for entrant in self._entrants.values() if entrant.address == crowded_address
            )
            if self._age(oldest_entrant) < YOUNG_S:
                return YOUNG_S / 20
            self._drop(oldest_entrant)
            return 0.0

    def drop_oldest(self) -> None:
        """Drop the oldest peer: this process has run out of file descriptors."""
        with self._lock:
            if self._entrants:
                self._drop(next(iter(self._entrants.values())))

    def enter(self, wire: Wire, address: str) -> None:
        """Give a peer a place."""
        with self._lock:
            self._entrants[wire] = _Entrant(wire, address, self._clock())

    def leave(self, wire: Wire) -> bool:
        """Release a peer's place, because it has proven itself or is gone.

        Returns:
            Whether it was dropped before.
        """
        with self._lock:
            self._entrants.pop(wire, None)
            was_dropped = wire in self._dropped_wires
            self._dropped_wires.discard(wire)
            return was_dropped

    def _drop(self, entrant: _Entrant) -> None:
        del self._entrants[entrant.wire]
        self._dropped_wires.add(entrant.wire)
        entrant.wire.shutdown()  # its thread wakes up, and closes it

    def _age(self, entrant: _Entrant) -> float:
        return self._clock() - entrant.entered_s
