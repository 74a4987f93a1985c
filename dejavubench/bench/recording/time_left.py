"""How long a run will still take, from the rounds that it has measured.

A point begins with loading, compiling, the reference and warm-up. They take another time than a
round, so no estimate is made of them: the first one comes with the first round of all arms.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

from dejavubench.units import count_text, seconds_text

NEWEST_ROUNDS = 5
"""Rounds whose median counts as the time of a round."""

UNKNOWN_TEXT = "time left is known after the first round"


class TimeLeft:
    """Estimates the time left of all points.

    Points that are to come are estimated from the last measured point and their relative sizes.

    Args:
        sizes: time of a round of each point, in any unit, such as a rough estimate.
        warmup: passes over all arms before the first round.
        rounds: by point, its rounds; with ``precision`` the fewest.
        ceilings: by point, number of rounds that are followed by measurements of the machine.
        ceilings_s: longest time of these measurements at one point, in seconds.
        precision: the precision that ends a point, as a fraction; None: the number of rounds does.
        max_time: longest time of a point's rounds with ``precision``, in seconds.
        clock: returns seconds.
    """

    def __init__(
        self,
        sizes: Sequence[float],
        *,
        warmup: int,
        rounds: Sequence[int],
        ceilings: Sequence[int],
        ceilings_s: float,
        precision: float | None = None,
        max_time: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sizes = sizes
        self._warmup = warmup
        self._rounds = rounds
        self._ceilings = ceilings
        self._ceilings_s = ceilings_s
        self._precision = precision
        self._max_time = max_time
        self._clock = clock
        self._point = -1
        self._half_width: float | None = None
        self._round_durations_s: list[float] = []  # rounds of this point
        self._ceiling_durations_s: list[float] = []  # measurements of the machine at this point
        self._began_s = 0.0
        self._rounds_began_s = 0.0
        self._newest_end_s = 0.0
        self._in_rounds = False
        self._unit_s: float | None = None  # seconds of a round of size 1, from the last point
        self._last_ceiling_s = 0.0
        self._other_lead_s = 0.0  # loading and the like, as the last point but the first had it

    # ---- what has happened ----

    def begin_point(self) -> None:
        """Note that the next point begins, with loading."""
        if self._round_durations_s:
            self._unit_s = self._round_s() / self._sizes[self._point]
        self._last_ceiling_s = self._ceiling_s()
        self._point += 1
        self._round_durations_s = []
        self._ceiling_durations_s = []
        self._half_width = None
        self._began_s = self._clock()
        self._in_rounds = False

    def begin_rounds(self) -> None:
        """Note that the reference and warm-up of the point are over."""
        now_s = self._clock()
        self._rounds_began_s = now_s
        self._newest_end_s = now_s
        self._in_rounds = True

    def end_round(self) -> None:
        """Note that every arm has run once more."""
        now_s = self._clock()
        self._round_durations_s.append(now_s - self._newest_end_s)
        self._newest_end_s = now_s
        # The first point's lead has the program's own start in it: it tells nothing of later ones.
        if len(self._round_durations_s) == 1 and self._point > 0:
            lead_s = self._rounds_began_s - self._began_s
            self._other_lead_s = max(0.0, lead_s - self._warmup * self._round_durations_s[0])

    def end_ceilings(self) -> None:
        """Note that what follows a round has ended."""
        now_s = self._clock()
        if len(self._ceiling_durations_s) < self._ceilings[self._point]:
            self._ceiling_durations_s.append(now_s - self._newest_end_s)
        self._newest_end_s = now_s

    def reach(self, half_width: float | None) -> None:
        """Note how exactly the point's overheads are known so far, as a fraction."""
        self._half_width = half_width

    # ---- what is left ----

    def text(self) -> str:
        """Return the time left in words, as far as it is known."""
        if self._precision is not None:
            return self._describe_precision(self._precision)
        left_s = self.seconds()
        return UNKNOWN_TEXT if left_s is None else f"about {seconds_text(left_s)} left"

    def _describe_precision(self, precision: float) -> str:
        """Return how exactly overheads are known: nobody knows how many rounds that takes."""
        if not self._round_durations_s:
            return f"±{100 * precision:g} % asked"
        reached_text = (
            "" if self._half_width is None else f"±{100 * self._half_width:.2g} % so far, "
        )
        most_s = self._max_time - (self._clock() - self._rounds_began_s)
        most_s = max(0.0, most_s, self._here_s(self._round_s()))
        later_points = len(self._sizes) - 1 - self._point
        later_text = f", {count_text(later_points, 'more point')}" if later_points else ""
        return (
            f"{reached_text}±{100 * precision:g} % asked; at most {seconds_text(most_s)} left here"
            f"{later_text}"
        )

    def seconds(self) -> float | None:
        """Return the time left until the last round has ended; None while it is not known."""
        if self._round_durations_s:
            unit_s = self._round_s() / self._sizes[self._point]
        elif self._unit_s is not None:
            unit_s = self._unit_s
        else:
            return None
        later_points = range(self._point + 1, len(self._sizes))
        rounds_s = [unit_s * self._sizes[point_index] for point_index in later_points]
        later_s = sum(
            self._lead_s(round_s) + self._rounds[point_index] * round_s
            for point_index, round_s in zip(later_points, rounds_s, strict=True)
        )
        later_s += (
            sum(self._ceilings[point_index] for point_index in later_points) * self._ceiling_s()
        )
        return self._here_s(unit_s * self._sizes[self._point]) + later_s

    def _here_s(self, round_s: float) -> float:
        """Return the time left at this point."""
        # Each part is at least 0, so that a slow round does not make the estimate negative.
        rounds = max(0, self._rounds[self._point] - len(self._round_durations_s))
        ceilings = self._ceilings[self._point] - len(self._ceiling_durations_s)
        spared_s = max(0.0, self._ceilings_s - sum(self._ceiling_durations_s))
        left_s = rounds * round_s + min(ceilings * self._ceiling_s(), spared_s)
        if self._in_rounds:
            return max(0.0, left_s - min(self._clock() - self._newest_end_s, round_s))
        return left_s + max(0.0, self._lead_s(round_s) - (self._clock() - self._began_s))

    def _lead_s(self, round_s: float) -> float:
        """Return the time of a later point before its rounds."""
        return self._other_lead_s + self._warmup * round_s

    def _round_s(self) -> float:
        return median(self._round_durations_s[-NEWEST_ROUNDS:])

    def _ceiling_s(self) -> float:
        return (
            median(self._ceiling_durations_s) if self._ceiling_durations_s else self._last_ceiling_s
        )
