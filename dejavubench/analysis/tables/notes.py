"""Notes under the tables, from the rows: noise, too few rounds, streams that hardly fit."""

from __future__ import annotations

from dejavubench.analysis import stats
from dejavubench.analysis.numbertexts import ms, rate, signed_percent
from dejavubench.analysis.tables.rows import NO_ROUNDS, Row
from dejavubench.analysis.tables.textcells import has_alone, noise_of, share_of
from dejavubench.records.destinationinfo import NO_STREAMING

NOISY_PCT = 5.0
"""Noise floor, in percent, above which a report warns."""

NO_TIME_LEFT = 0.9
"""Share of a request's time that a stream may take alone; above it, the stream hardly fits."""

MEDIAN_TIMES = "A time is that of the slowest source, the median over rounds."
INTERVALS = "Brackets hold 95 % bootstrap intervals."
RANGES = "Brackets hold the range of the rounds."
PAIRED = "Overheads are paired: each round is divided by the geometric mean of its none and none#2."
RESTART_TIMES = (
    "Times are of one iteration on the slowest source. The recompute time is that of the earlier "
    "steps without streaming, in this process."
)


def how_times_are_made(rows: list[Row]) -> str:
    """Say how the times and overheads in the tables are computed."""
    if any(row.resumed.resumed_run for row in rows):
        return RESTART_TIMES
    counts = [row.times.samples for row in rows if row.times.samples]
    brackets = RANGES if counts and min(counts) < stats.COVERING_ROUNDS else INTERVALS
    paired = [PAIRED] if any(row.streams for row in rows) else []
    return " ".join([MEDIAN_TIMES, brackets, *paired])


def without_unmeasured_points(rows: list[Row]) -> list[Row]:
    """Leave out points that the run did not reach; a note names them."""
    reached = {row.point for row in rows if row.status != NO_ROUNDS}
    return [row for row in rows if row.point in reached]


def why_rows_are_empty(rows: list[Row]) -> list[str]:
    """Say why rows have no numbers, each reason once. Points stand for all of their rows."""
    points: dict[str | None, list[Row]] = {}
    for row in rows:
        points.setdefault(row.point, []).append(row)
    numbers = {point: number for number, point in enumerate(points)}
    rows_by_reason: dict[str, list[str | int]] = {}
    for point, rows_of_point in points.items():
        whys = [None if row.ok else f"{row.status}: {row.reason}" for row in rows_of_point]
        whole = whys[0] is not None and point is not None and len(set(whys)) == 1
        for row, why in zip(rows_of_point, whys, strict=True):
            places = rows_by_reason.setdefault(why, []) if why is not None else []
            if not whole:
                places.append(" ".join(word for word in (point, row.arm) if word))
            elif numbers[point] not in places:
                places.append(numbers[point])
    names = [str(point) for point in points]
    return [
        f"{why} ({', '.join(_joined(places, names))})" for why, places in rows_by_reason.items()
    ]


def _joined(places: list[str | int], names: list[str]) -> list[str]:
    """Return places in words. Three or more numbers of points in a row become ``p003 to p008``."""
    words: list[str] = []
    start = 0
    while start < len(places):
        first, last = places[start], start
        if isinstance(first, str):
            words.append(first)
        else:
            while last + 1 < len(places) and places[last + 1] == first + last + 1 - start:
                last += 1
            group = names[first : first + last - start + 1]
            words += [f"{group[0]} to {group[-1]}"] if len(group) > 2 else group
        start = last + 1
    return words


def streams_that_hardly_fit(rows: list[Row]) -> list[str]:
    """Name arms whose stream alone takes nearly all of a request's time, or more."""
    requests = {row.point: row.times.total_ms for row in rows if row.arm == NO_STREAMING}
    notes = []
    for row in rows:
        request, alone = requests.get(row.point), row.rates.alone_ms
        if not has_alone(row) or not request or not alone or alone < NO_TIME_LEFT * request:
            continue
        share = f", {share_of(row)}" if row.rates.ceiling_share_pct is not None else ""
        fits = (
            "does not fit behind the model"
            if alone > request
            else "hardly fits behind the model: a slower round ends in a drain"
        )
        notes.append(
            f"{row.point} {row.arm} {fits}. Its stream alone takes {ms(alone)} ms "
            f"({rate(row.rates.alone_gb_per_s, 2)} GB/s{share}), a request takes {ms(request)} ms."
        )
    return notes


def ceiling_not_measured_everywhere(rows: list[Row]) -> list[str]:
    """Say that shares of a ceiling are missing: a sum over some sources bounds no other one."""
    rated = [row.rates for row in rows if row.rates.alone_gb_per_s is not None]
    if any(rates.ceiling is not None and rates.ceiling_share_pct is None for rates in rated):
        return ["No share of the ceiling is shown: not every source measured the ceiling."]
    return []


def noise_notes(rows: list[Row], cause: str | None = None) -> list[str]:
    """State the noise floor of each point, and warn when it is high.

    Args:
        cause: what the run has recorded of other programs, as a sentence.
    """
    floors = {row.point: row for row in rows if row.overhead.noise_floor_pct is not None}
    return [*_noisy(floors, cause), *_noise_floor(floors)] if floors else []


def _noisy(floors: dict[str | None, Row], cause: str | None) -> list[str]:
    floors_of_points = [row.overhead for row in floors.values()]
    # With a single round there is a median, but no interval.
    ends = [
        abs(end)
        for floor in floors_of_points
        for end in (floor.noise_floor_pct, floor.noise_floor_low_pct, floor.noise_floor_high_pct)
        if end is not None
    ]
    reach = max(ends)
    if reach <= NOISY_PCT:
        return []
    return [
        f"NOISY: two identical baselines (none and none#2) differ by up to {reach:.0f} %. Smaller "
        f"overheads cannot be told from noise. {cause or 'Is another program running?'}"
    ]


def _noise_floor(floors: dict[str | None, Row]) -> list[str]:
    if len(floors) == 1:
        (row,) = floors.values()
        return [f"noise floor (none#2 against none): {noise_of(row).removeprefix('noise ')} %"]
    medians = sorted(
        row.overhead.noise_floor_pct
        for row in floors.values()
        if row.overhead.noise_floor_pct is not None
    )
    low, high = signed_percent(medians[0]), signed_percent(medians[-1])
    return [
        f"noise floor (none#2 against none): medians from {low} to {high} % over {len(floors)} "
        "points"
    ]


def too_few_rounds(rows: list[Row]) -> list[str]:
    """Warn of intervals from so few rounds that they are wide, or cover less than 95 %."""
    counts = [row.times.samples for row in rows if row.times.samples]
    if not counts or min(counts) >= stats.FEW_ROUNDS:
        return []
    rounds = f"Only {min(counts)} round{'s' if min(counts) > 1 else ''}"
    if min(counts) < stats.COVERING_ROUNDS:
        return [
            f"{rounds}: a 95 % interval needs {stats.COVERING_ROUNDS}. Give more --rounds, or "
            "--precision."
        ]
    return [f"{rounds}: intervals are wide. Give more --rounds, or --precision."]
