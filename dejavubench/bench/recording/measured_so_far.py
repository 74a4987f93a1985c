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
        self._round_counts = dict.fromkeys(arm_names, 0)
        self._point_id: str | None = None

    def begin(self, point_id: str) -> None:
        """Note that a point begins. Those before it are whole."""
        self._point_id = point_id
        self._round_counts = dict.fromkeys(self._arm_names, 0)

    def count_round(self, arm_name: str) -> None:
        """Note that an arm has ended a measured round."""
        self._round_counts[arm_name] += 1

    def describe(self) -> str:
        """Return the points that are whole, and the rounds of the one that is under way."""
        if self._point_id is None:
            return "nothing was measured"
        finished_count = self._points.index(self._point_id)
        points_text = f"{finished_count} of {len(self._points)} points measured; "
        point_prefix = f"{self._point_id}: " if len(self._points) > 1 else ""
        most_round_count = max(self._round_counts.values())
        if most_round_count == 0:
            return f"{points_text if point_prefix else ''}{point_prefix}no round measured yet"
        arms_text = ", ".join(f"{name} {count}" for name, count in self._round_counts.items())
        # Until a precision is reached, a point may take more rounds than the fewest.
        round_count = self._rounds[self._point_id]
        rounds_text = f" of {round_count}" if most_round_count <= round_count else ""
        return (
            f"{points_text if point_prefix else ''}{point_prefix}"
            f"rounds measured{rounds_text}: {arms_text}"
        )
