"""How much of a run was measured, for a reader who interrupts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class MeasuredSoFar:
    """Counts the measured rounds of each arm at the point that is under way.

    Args:
        rounds: rounds of each arm at each point, by the point's id, in the order in which points
            are measured; with a precision the fewest.
        arms: the names of the arms.
    """

    def __init__(self, rounds: Mapping[str, int], arms: Sequence[str]) -> None:
        self._points, self._arms, self._rounds = list(rounds), arms, rounds
        self._done = dict.fromkeys(arms, 0)
        self._under_way: str | None = None

    def begin(self, point: str) -> None:
        """Note that a point begins. Those before it are whole."""
        self._under_way, self._done = point, dict.fromkeys(self._arms, 0)

    def count(self, arm: str) -> None:
        """Note that an arm has ended a measured round."""
        self._done[arm] += 1

    def text(self) -> str:
        """Return the points that are whole, and the rounds of the one that is under way."""
        if self._under_way is None:
            return "nothing was measured"
        whole = self._points.index(self._under_way)
        points = f"{whole} of {len(self._points)} points measured; "
        where = f"{self._under_way}: " if len(self._points) > 1 else ""
        most = max(self._done.values())
        if most == 0:
            return f"{points if where else ''}{where}no round measured yet"
        arms = ", ".join(f"{arm} {rounds}" for arm, rounds in self._done.items())
        rounds = self._rounds[self._under_way]
        asked = f" of {rounds}" if most <= rounds else ""
        return f"{points if where else ''}{where}rounds measured{asked}: {arms}"
