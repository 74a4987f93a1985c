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
        self._points = list(rounds)
        self._arm_names = arm_names
        self._rounds = rounds
        self._measured_rounds = dict.fromkeys(arm_names, 0)
        self._point_id: str | None = None

    def begin(self, point_id: str) -> None:
        """Note that a point begins. Those before it are whole."""
        self._point_id = point_id
        self._measured_rounds = dict.fromkeys(self._arm_names, 0)

    def count(self, arm_name: str) -> None:
        """Note that an arm has ended a measured round."""
        self._measured_rounds[arm_name] += 1

    def text(self) -> str:
        """Return the points that are whole, and the rounds of the one that is under way."""
        if self._point_id is None:
            return "nothing was measured"
        finished_points = self._points.index(self._point_id)
        points = f"{finished_points} of {len(self._points)} points measured; "
        point_prefix = f"{self._point_id}: " if len(self._points) > 1 else ""
        most_rounds = max(self._measured_rounds.values())
        if most_rounds == 0:
            return f"{points if point_prefix else ''}{point_prefix}no round measured yet"
        by_arm = ", ".join(f"{name} {count}" for name, count in self._measured_rounds.items())
        # Until a precision is reached, a point may take more rounds than the fewest.
        rounds = self._rounds[self._point_id]
        rounds_text = f" of {rounds}" if most_rounds <= rounds else ""
        return (
            f"{points if point_prefix else ''}{point_prefix}rounds measured{rounds_text}: {by_arm}"
        )
