"""How much of a run was measured, for a reader who interrupts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class MeasuredSoFar:
    """Counts the measured rounds of each arm at the point that is under way.

    Args:
        rounds: rounds of each arm at each point, by the point's id, in the order in which points
            are measured; with a precision the fewest.
        arm_names: the names of the arms.
    """

    def __init__(self, rounds: Mapping[str, int], arm_names: Sequence[str]) -> None:
        self._points, self._arm_names, self._rounds = list(rounds), arm_names, rounds
        self._done = dict.fromkeys(arm_names, 0)
        self._under_way: str | None = None

    def begin(self, point_id: str) -> None:
        """Note that a point begins. Those before it are whole."""
        self._under_way, self._done = point_id, dict.fromkeys(self._arm_names, 0)

    def count(self, arm_name: str) -> None:
        """Note that an arm has ended a measured round."""
        self._done[arm_name] += 1

    def text(self) -> str:
        """Return the points that are whole, and the rounds of the one that is under way."""
        if self._under_way is None:
            return "nothing was measured"
        finished_points = self._points.index(self._under_way)
        points = f"{finished_points} of {len(self._points)} points measured; "
        point_prefix = f"{self._under_way}: " if len(self._points) > 1 else ""
        most_rounds = max(self._done.values())
        if most_rounds == 0:
            return f"{points if point_prefix else ''}{point_prefix}no round measured yet"
        arms = ", ".join(f"{arm} {rounds}" for arm, rounds in self._done.items())
        rounds = self._rounds[self._under_way]
        rounds_text = f" of {rounds}" if most_rounds <= rounds else ""
        return f"{points if point_prefix else ''}{point_prefix}rounds measured{rounds_text}: {arms}"
