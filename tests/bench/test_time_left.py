"""The time left of a run, by a made-up clock."""

from __future__ import annotations

import pytest

from dejavubench.bench.recording.time_left import UNKNOWN_TEXT, PointWork, TimeLeft


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_time_left(
    clock: Clock, sizes: list[float], rounds: int = 5, **more: float | None
) -> TimeLeft:
    return TimeLeft(
        [
            PointWork(size, rounds, ceiling_count=1 if index else 5)
            for index, size in enumerate(sizes)
        ],
        warmup=2,
        ceilings_s=20.0,
        clock=clock,
        **more,  # type: ignore[arg-type]
    )


def measure(
    time_left: TimeLeft, clock: Clock, round_s: float, ceiling_s: float, rounds: int
) -> None:
    for _ in range(rounds):
        clock.now += round_s
        time_left.end_round()
        clock.now += ceiling_s
        time_left.end_ceilings()


def test_loading_compiling_and_warm_up_give_no_estimate() -> None:
    clock = Clock()
    time_left = make_time_left(clock, [1.0])
    time_left.begin_point()
    clock.now += 28.0  # far longer than all that follows
    assert (time_left.estimate_s(), time_left.describe()) == (None, UNKNOWN_TEXT)
    time_left.begin_rounds()
    clock.now += 1.5
    assert time_left.describe() == UNKNOWN_TEXT
    clock.now += 0.5
    time_left.end_round()
    assert time_left.estimate_s() == pytest.approx(4 * 2.0)


def test_rounds_and_ceilings_are_known_apart() -> None:
    clock = Clock()
    time_left = make_time_left(clock, [1.0])
    time_left.begin_point()
    clock.now += 28.0
    time_left.begin_rounds()
    measure(time_left, clock, round_s=2.0, ceiling_s=3.0, rounds=1)
    assert time_left.estimate_s() == pytest.approx(4 * 2.0 + 4 * 3.0)
    clock.now += 1.0  # half of the second round
    assert time_left.estimate_s() == pytest.approx(19.0)
    assert time_left.describe() == "about 19 s left"
    clock.now += 1.0
    time_left.end_round()
    clock.now += 3.0
    time_left.end_ceilings()
    assert time_left.estimate_s() == pytest.approx(15.0)


def test_ceilings_that_take_long_end_after_their_time() -> None:
    clock = Clock()
    time_left = make_time_left(clock, [1.0])
    time_left.begin_point()
    time_left.begin_rounds()
    measure(time_left, clock, round_s=1.0, ceiling_s=15.0, rounds=1)
    assert time_left.estimate_s() == pytest.approx(4 * 1.0 + 5.0)  # 20 s less 15 s


def test_later_points_are_estimated_by_their_size() -> None:
    clock = Clock()
    time_left = make_time_left(clock, [1.0, 4.0])
    time_left.begin_point()
    clock.now += 50.0
    time_left.begin_rounds()
    measure(time_left, clock, round_s=2.0, ceiling_s=1.0, rounds=5)
    later = (2 + 5) * 8.0 + 1.0  # two warm-ups and five rounds, each four times as long
    assert time_left.estimate_s() == pytest.approx(later)
    time_left.begin_point()
    assert time_left.estimate_s() == pytest.approx(later)
    clock.now += 10.0
    assert time_left.estimate_s() == pytest.approx(later - 10.0)
    clock.now += 100.0  # loading takes longer than was thought: the rounds are still to come
    assert time_left.estimate_s() == pytest.approx(5 * 8.0 + 1.0)
    time_left.begin_rounds()
    measure(time_left, clock, round_s=3.0, ceiling_s=1.0, rounds=1)  # faster than its size says
    assert time_left.estimate_s() == pytest.approx(4 * 3.0)


def test_an_estimate_is_never_off_by_much_once_it_is_made() -> None:
    """Nine points of growing size: every estimate is within half and twice the time left."""
    clock, sizes = Clock(), [1.0 + number for number in range(9)]
    time_left = make_time_left(clock, sizes)
    estimates = []
    for number, size in enumerate(sizes):
        time_left.begin_point()
        clock.now += 9.0 if number == 0 else 1.0
        clock.now += 2 * size
        time_left.begin_rounds()
        for round_number in range(5):
            clock.now += size
            time_left.end_round()
            clock.now += 0.5 if round_number < (1 if number else 5) else 0.0
            time_left.end_ceilings()
            estimates.append((clock.now, time_left.estimate_s()))
    ended = clock.now
    for seconds, estimate in estimates[:-5]:
        assert estimate is not None
        assert 0.5 * (ended - seconds) < estimate < 2 * (ended - seconds)


def test_precision_is_printed_only_with_its_longest_time() -> None:
    clock = Clock()
    time_left = make_time_left(clock, [1.0, 1.0], precision=0.01, max_time=60.0)
    time_left.begin_point()
    clock.now += 30.0
    assert time_left.describe() == "±1 % asked"
    time_left.begin_rounds()
    measure(time_left, clock, round_s=2.0, ceiling_s=0.0, rounds=7)
    time_left.reach(0.0184)
    assert time_left.describe() == "±1.8 % so far, ±1 % asked; at most 46 s left here, 1 more point"
    clock.now += 100.0
    time_left.begin_point()
    time_left.begin_rounds()
    measure(time_left, clock, round_s=2.0, ceiling_s=0.0, rounds=1)
    assert time_left.describe() == "±1 % asked; at most 58 s left here"


def test_the_fewest_rounds_count_where_they_take_longer_than_the_longest_time() -> None:
    clock = Clock()
    time_left = make_time_left(clock, [1.0], precision=0.01, max_time=10.0)
    time_left.begin_point()
    time_left.begin_rounds()
    measure(time_left, clock, round_s=20.0, ceiling_s=0.0, rounds=1)
    assert time_left.describe().endswith("at most 80 s left here")
