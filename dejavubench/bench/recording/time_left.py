"""How long a run will still take, from the rounds that it has measured.

A point begins with loading, compiling, the reference and warm-up. They take another time than a
round, so no estimate is made of them: the first one comes with the first round of all arms.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from dejavubench.units import format_count_of, format_duration

NEWEST_ROUND_COUNT = 5
"""Rounds whose median counts as the time of a round."""

UNKNOWN_TEXT = "time left is known after the first round"


@dataclass(frozen=True)
class PointWork:
    """Measurements that one point takes.

    Attributes:
        size: time of a round, in any unit, such as a rough estimate.
        round_count: number of its rounds; with a precision the fewest.
        ceiling_count: number of rounds that are followed by measurements of the machine.
    """

    size: float
    round_count: int
    ceiling_count: int


@dataclass
class _MeasuredPoint:
    """Measurements of the newest point so far.

    Attributes:
        began_s: when its loading began.
        rounds_began_s: when its first round began.
        newest_end_s: when the newest round, or what follows it, ended.
        in_rounds: its reference and warm-up are over.
        half_width: how exactly its overheads are known, as a fraction.
        round_durations_s: its rounds.
        ceiling_durations_s: measurements of the machine.
    """

    began_s: float = 0.0
    rounds_began_s: float = 0.0
    newest_end_s: float = 0.0
    in_rounds: bool = False
    half_width: float | None = None
    round_durations_s: list[float] = field(default_factory=list)
    ceiling_durations_s: list[float] = field(default_factory=list)


class TimeLeft:
    """Estimates the time left of all points.

    Points that are to come are estimated from the last measured point and their relative sizes.

    Args:
        points: the points, in the order in which they are measured.
        warmup: passes over all arms before the first round.
        ceilings_s: longest time of the measurements of the machine at one point, in seconds.
        precision: the precision that ends a point, as a fraction; None: the number of rounds does.
        max_time: longest time of a point's rounds with ``precision``, in seconds.
        clock: returns seconds.
    """

    def __init__(
        self,
        points: Sequence[PointWork],
        *,
        warmup: int,
        ceilings_s: float,
        precision: float | None = None,
        max_time: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._points = points
        self._warmup = warmup
        self._ceilings_s = ceilings_s
        self._precision = precision
        self._max_time = max_time
        self._clock = clock
        self._point_index = -1
        self._measured = _MeasuredPoint()
        self._unit_s: float | None = None  # seconds of a round of size 1, from the last point
        self._last_ceiling_s = 0.0
        self._other_lead_s = 0.0  # loading and the like, as the last point but the first had it

    # ---- what has happened ----

    def begin_point(self) -> None:
        """Note that the next point begins, with loading."""
        if self._measured.round_durations_s:
            self._unit_s = self._round_s() / self._point.size
        self._last_ceiling_s = self._ceiling_s()
        self._point_index += 1
        self._measured = _MeasuredPoint(began_s=self._clock())

    def begin_rounds(self) -> None:
        """Note that the reference and warm-up of the point are over."""
        now_s = self._clock()
        self._measured.rounds_began_s = now_s
        self._measured.newest_end_s = now_s
        self._measured.in_rounds = True

    def end_round(self) -> None:
        """Note that every arm has run once more."""
        now_s = self._clock()
        self._measured.round_durations_s.append(now_s - self._measured.newest_end_s)
        self._measured.newest_end_s = now_s
        # The first point's lead has the program's own start in it: it tells nothing of later ones.
        if len(self._measured.round_durations_s) == 1 and self._point_index > 0:
            lead_s = self._measured.rounds_began_s - self._measured.began_s
            first_round_s = self._measured.round_durations_s[0]
            self._other_lead_s = max(0.0, lead_s - self._warmup * first_round_s)

    def end_ceilings(self) -> None:
        """Note that what follows a round has ended."""
        now_s = self._clock()
        if len(self._measured.ceiling_durations_s) < self._point.ceiling_count:
            self._measured.ceiling_durations_s.append(now_s - self._measured.newest_end_s)
        self._measured.newest_end_s = now_s

    def reach(self, half_width: float | None) -> None:
        """Note how exactly the point's overheads are known so far, as a fraction."""
        self._measured.half_width = half_width

    # ---- what is left ----

    def describe(self) -> str:
        """Return the time left in words, as far as it is known."""
        if self._precision is not None:
            return self._describe_precision(self._precision)
        left_s = self.estimate_s()
        return UNKNOWN_TEXT if left_s is None else f"about {format_duration(left_s)} left"

    def _describe_precision(self, precision: float) -> str:
        """Return how exactly overheads are known: nobody knows how many rounds that takes."""
        if not self._measured.round_durations_s:
            return f"±{100 * precision:g} % asked"
        half_width = self._measured.half_width
        reached_text = "" if half_width is None else f"±{100 * half_width:.2g} % so far, "
        most_s = self._max_time - (self._clock() - self._measured.rounds_began_s)
        most_s = max(0.0, most_s, self._here_s(self._round_s()))
        later_point_count = len(self._points) - 1 - self._point_index
        later_text = (
            f", {format_count_of(later_point_count, 'more point')}" if later_point_count else ""
        )
        return (
            f"{reached_text}±{100 * precision:g} % asked; at most {format_duration(most_s)} left "
            f"here{later_text}"
        )

    def estimate_s(self) -> float | None:
        """Return the time left until the last round has ended; None while it is not known."""
        if self._measured.round_durations_s:
            unit_s = self._round_s() / self._point.size
        elif self._unit_s is not None:
            unit_s = self._unit_s
        else:
            return None
        later_points = self._points[self._point_index + 1 :]
        rounds_s = [unit_s * point.size for point in later_points]
        later_s = sum(
            self._lead_s(round_s) + point.round_count * round_s
            for point, round_s in zip(later_points, rounds_s, strict=True)
        )
        later_s += sum(point.ceiling_count for point in later_points) * self._ceiling_s()
        return self._here_s(unit_s * self._point.size) + later_s

    @property
    def _point(self) -> PointWork:
        """The point that is measured."""
        return self._points[self._point_index]

    def _here_s(self, round_s: float) -> float:
        """Return the time left at this point."""
        # Each part is at least 0, so that a slow round does not make the estimate negative.
        round_count = max(0, self._point.round_count - len(self._measured.round_durations_s))
        ceiling_count = self._point.ceiling_count - len(self._measured.ceiling_durations_s)
        spared_s = max(0.0, self._ceilings_s - sum(self._measured.ceiling_durations_s))
        left_s = round_count * round_s + min(ceiling_count * self._ceiling_s(), spared_s)
        if self._measured.in_rounds:
            return max(0.0, left_s - min(self._clock() - self._measured.newest_end_s, round_s))
        return left_s + max(0.0, self._lead_s(round_s) - (self._clock() - self._measured.began_s))

    def _lead_s(self, round_s: float) -> float:
        """Return the time of a later point before its rounds."""
        return self._other_lead_s + self._warmup * round_s

    def _round_s(self) -> float:
        return median(self._measured.round_durations_s[-NEWEST_ROUND_COUNT:])

    def _ceiling_s(self) -> float:
        durations_s = self._measured.ceiling_durations_s
        return median(durations_s) if durations_s else self._last_ceiling_s
