"""How often ``dejavubench compare`` errs: comparisons of equals, and of a known slow-down.

    python contrib/compare_honesty.py synthetic results
    python contrib/compare_honesty.py intervals results
    python contrib/compare_honesty.py real runs --runs 80 -- --model gpt2 --streaming host,mpi

``synthetic`` draws both operands from committed records, in blocks of neighbouring rounds or as
disjoint parts of a run. So drift and clock states that last are kept. ``intervals`` compares two
ways to make the interval of two arms of one run. ``real`` measures the same
short run again and again, and compares what should not differ. The words behind ``--`` are flags
of ``dejavubench run``.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import click
import numpy as np

from dejavubench.analysis import markdown
from dejavubench.analysis.comparison.build import Comparison, compare, make_rows
from dejavubench.analysis.comparison.change_result import choose_judged_change
from dejavubench.analysis.comparison.change_rows import ComparisonRow
from dejavubench.analysis.comparison.changes import RunSamples, compare_arms
from dejavubench.analysis.comparison.gate import GateVerdict, judge_all_rows
from dejavubench.analysis.comparison.matching import CellPair
from dejavubench.analysis.comparison.metric import Metric
from dejavubench.analysis.comparison.operands import Operand
from dejavubench.analysis.comparison.pairing import Pairing
from dejavubench.analysis.facts.collect_samples import collect
from dejavubench.analysis.facts.samples import ArmSamples, PhaseTimes, PointSamples
from dejavubench.analysis.find_runs import find
from dejavubench.analysis.integrity import read_checked
from dejavubench.analysis.numbers import stats
from dejavubench.analysis.numbers.round_changes import compute_paired_change, make_median_sample
from dejavubench.records import ArmInfo, Run

INJECTED = 0.02
"""Slow-down of arm B in comparisons that should find one, as a fraction."""

SHARP_PCT = 0.5
"""Half-width in percent up to which an injected slow-down has to be found."""

FEWEST_ROUNDS = 18
"""Rounds of a record from which operands are drawn; from fewer, draws would repeat too often."""

ONE = ArmInfo(name="one", mode="one")
OTHER_ARM = ArmInfo(name="other", mode="other")
# The two are equal arms: the baselines of a record, exchanged at random.

Draw = Callable[["Record", np.random.Generator], tuple[RunSamples, RunSamples]]
"""Draws the samples of A and B from one record."""


# ---- records, and operands that are drawn from them ----


@dataclass(frozen=True)
class Record:
    """One point of a committed run, with the rounds that all its arms have."""

    name: str
    point: PointSamples
    rounds: list[int]

    @property
    def block(self) -> int:
        """Rounds drawn as one: as long as drift is seen to last, a fifth of the record."""
        return max(3, len(self.rounds) // 5)


def records(runs: Sequence[Run], fewest_rounds: int = FEWEST_ROUNDS) -> list[Record]:
    """Return the points with two baselines, an arm, and so many rounds that all arms have."""
    readable_records = []
    for run in runs:
        for point in collect(run).values():
            arms = [
                arm for arm in point.arms.values() if arm.times.total and arm.why_failed is None
            ]
            if len(point.baselines()) < 2 or len(arms) < 3:
                continue
            rounds = sorted(set[int].intersection(*(set(arm.times.total) for arm in arms)))
            if len(rounds) >= fewest_rounds:
                kept_point = replace(point, arms={arm.info.name: arm for arm in arms})
                name = f"{run.path.parent.parent.name}/{run.path.name}"
                readable_records.append(Record(name, kept_point, rounds))
    return readable_records


def drawn_arm(arm: ArmSamples, rounds: Sequence[int], times: float = 1.0) -> ArmSamples:
    """Return an arm with these rounds, numbered anew, each of ``times`` its time."""
    total = {
        number: times * arm.times.total[old_number] for number, old_number in enumerate(rounds)
    }
    return replace(arm, times=PhaseTimes(total=total))


def operand(
    record: Record, rounds: Sequence[int], times: float = 1.0, baselines: float = 1.0
) -> dict[str, PointSamples]:
    """Return the samples of a run that had these rounds, with its arms slowed down."""
    arms = {
        name: drawn_arm(arm, rounds, times if arm.info.is_streaming else baselines)
        for name, arm in record.point.arms.items()
    }
    return {record.point.info.id: replace(record.point, arms=arms)}


def blocks(record: Record, count: int, rng: np.random.Generator) -> list[int]:
    """Return ``count`` rounds, in blocks of neighbours that are drawn with replacement."""
    places = len(record.rounds)
    starts = rng.integers(0, places, size=math.ceil(count / record.block))
    drawn_places = (starts[:, None] + np.arange(record.block)).ravel()[:count] % places
    return [record.rounds[place] for place in drawn_places]


def apart_in_blocks(count: int, injected_change: float) -> Draw:
    """Draw both operands from all of a record."""

    def draw(record: Record, rng: np.random.Generator) -> tuple[RunSamples, RunSamples]:
        a, b = (blocks(record, count, rng) for _ in range(2))
        return [operand(record, a)], [operand(record, b, 1 + injected_change)]

    return draw


def apart_in_parts(count: int, injected_change: float) -> Draw:
    """Take two disjoint parts of a record as they are, either of them first: all drift is kept."""

    def draw(record: Record, rng: np.random.Generator) -> tuple[RunSamples, RunSamples]:
        length = min(count, len(record.rounds) // 2)
        first = int(rng.integers(0, len(record.rounds) - 2 * length + 1))
        second = int(rng.integers(first + length, len(record.rounds) - length + 1))
        parts = [record.rounds[begin : begin + length] for begin in (first, second)]
        a, b = parts if rng.random() < 0.5 else reversed(parts)
        return [operand(record, a)], [operand(record, b, 1 + injected_change)]

    return draw


def in_turns(pairs: int, injected_change: float) -> Draw:
    """Take neighbouring parts of a record for the two runs of a pair, either of them as A.

    The slow-down is of all arms, the baselines included.
    """

    def draw(record: Record, rng: np.random.Generator) -> tuple[RunSamples, RunSamples]:
        length = max(1, len(record.rounds) // 32)
        places = blocks(record, pairs, rng)
        a, b = [], []
        for begin in map(record.rounds.index, places):
            turn = [
                record.rounds[number % len(record.rounds)]
                for number in range(begin, begin + 2 * length)
            ]
            first_half, other = turn[:length], turn[length:]
            if rng.random() < 0.5:
                first_half, other = other, first_half
            a.append(operand(record, first_half))
            b.append(operand(record, other, 1 + injected_change, 1 + injected_change))
        return a, b

    return draw


def in_rounds(count: int, injected_change: float) -> Draw:
    """Take the two baselines for two arms of one run, exchanged at random from block to block."""

    def draw(record: Record, rng: np.random.Generator) -> tuple[RunSamples, RunSamples]:
        rounds = blocks(record, count, rng)
        is_exchanged = np.repeat(rng.random(count) < 0.5, record.block)[:count]
        first, other = (drawn_arm(arm, rounds) for arm in record.point.baseline_arms())
        first_total, other_total = first.times.total, other.times.total
        for number, swap in enumerate(is_exchanged):
            if swap:
                first_total[number], other_total[number] = other_total[number], first_total[number]
        other = drawn_arm(other, sorted(other_total), 1 + injected_change)
        arms = {ONE.name: replace(first, info=ONE), OTHER_ARM.name: replace(other, info=OTHER_ARM)}
        run = [{record.point.info.id: replace(record.point, arms=arms)}]
        return run, run

    return draw


# ---- comparisons, and how often they err ----


@dataclass
class Tally:
    """Verdicts of many comparisons.

    Attributes:
        sharp, sharp_regressions: comparisons with half-widths of at most 0.5 %, and those of them
            that found a regression.
        by_time: regressions that would be reported if times were judged in place of overheads.
    """

    verdicts: Counter[GateVerdict] = field(default_factory=Counter)
    sharp: int = 0
    sharp_regressions: int = 0
    by_time: int = 0

    @property
    def count(self) -> int:
        """Number of comparisons that were judged."""
        return self.verdicts.total()

    def add(self, rows: Sequence[ComparisonRow]) -> None:
        """Count the verdict of one comparison over all its rows."""
        judged_rows = [row for row in rows if row.gate.verdict is not None]
        verdict = judge_all_rows(
            row.gate.verdict for row in judged_rows if row.gate.verdict is not None
        )
        self.verdicts[verdict] += 1
        widths = [_half_width(row) for row in judged_rows]
        if max(widths) <= SHARP_PCT:
            self.sharp += 1
            self.sharp_regressions += verdict is GateVerdict.REGRESSION
        self.by_time += any((row.time.time_change_low_pct or 0) > 0 for row in judged_rows)


def _half_width(row: ComparisonRow) -> float:
    _, low, high = choose_judged_change(row)
    return math.inf if low is None or high is None else (high - low) / 2


def compare_operands(
    record: Record, pairing: Pairing, operands: tuple[RunSamples, RunSamples]
) -> list[ComparisonRow]:
    """Compare two operands of one point as ``dejavubench compare --fail-above 0`` does."""
    info = record.point.info
    pairs = [CellPair(info, info, ONE, OTHER_ARM)]
    if pairing is not Pairing.ROUNDS:
        streaming = [arm.info for arm in record.point.arms.values() if arm.info.is_streaming]
        pairs = [CellPair(info, info), *(CellPair(info, info, arm, arm) for arm in streaming)]
    changes = [compare_arms(*operands, pair, Metric.TOTAL, pairing) for pair in pairs]
    return make_rows([change for change in changes if change], Metric.TOTAL, pairing, 0.0)


def count_outcomes(
    known_records: Sequence[Record], pairing: Pairing, draw: Draw, count: int, seed: int = 1
) -> Tally:
    """Compare ``count`` pairs of operands, drawn from each record in turn."""
    tally = Tally()
    for number in range(count):
        record = known_records[number % len(known_records)]
        rng = np.random.default_rng([seed, number])
        tally.add(compare_operands(record, pairing, draw(record, rng)))
    return tally


def binomial(successes: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a rate, by Wilson's formula."""
    if not count:
        return 0.0, 1.0
    z, rate = 1.96, successes / count
    middle_rate = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half_width = (
        z * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count**2)) / (1 + z * z / count)
    )
    return max(0.0, middle_rate - half_width), min(1.0, middle_rate + half_width)


def format_rate(successes: int, count: int) -> str:
    """Write a share in percent with its binomial 95 % interval; a dash without trials."""
    if not count:
        return "–"
    low, high = binomial(successes, count)
    return f"{100 * successes / count:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


AA_HEADINGS = ("pairing", "operands", "comparisons", "false regressions", "pass", "unresolved")
INJECTED_HEADINGS = ("pairing", "operands", "comparisons", "half-width ≤ 0.5 %", "of these found")


def aa_cells(pairing: Pairing, operands: str, tally: Tally) -> list[str]:
    """Return the cells of one row of comparisons of equals."""
    verdicts = tally.verdicts
    return [
        f"`{pairing}`",
        operands,
        str(tally.count),
        format_rate(verdicts[GateVerdict.REGRESSION], tally.count),
        str(verdicts[GateVerdict.PASS]),
        str(verdicts[GateVerdict.UNRESOLVED]),
    ]


@click.group()
def main() -> None:
    """Measure how often ``dejavubench compare`` errs."""


@main.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--count", default=240, show_default=True, help="Comparisons per line.")
def synthetic(folders: tuple[Path, ...], count: int) -> None:
    """Compare operands that are drawn from the runs in FOLDERS, equal ones and slower ones."""
    known_records = records(find(folders).runs)
    for record in known_records:
        click.echo(f"{record.name}: {len(record.rounds)} rounds", err=True)
    # Sizes: usual ones, and those at which the half-width of most records is 0.5 % or less.
    plans: list[tuple[Pairing, str, Callable[[int, float], Draw], int, int | None]] = [
        (Pairing.APART, "blocks", apart_in_blocks, 20, 640),
        (Pairing.APART, "disjoint parts", apart_in_parts, 20, None),
        (Pairing.ROUNDS, "blocks", in_rounds, 20, 320),
        (Pairing.TURNS, "neighbouring parts", in_turns, 16, 640),
    ]
    equal_rows, slower_rows = [], []
    for pairing, operands, draw, size, sharp_size in plans:
        tally = count_outcomes(known_records, pairing, draw(size, 0.0), count)
        equal_rows.append(aa_cells(pairing, f"{operands}, {size}", tally))
        if pairing is Pairing.APART:
            times = replace_verdicts(tally)
            equal_rows.append(aa_cells(pairing, f"{operands}, {size}, if times were judged", times))
        click.echo(" | ".join(equal_rows[-1]), err=True)
        if sharp_size is not None:
            sharp_tally = count_outcomes(
                known_records, pairing, draw(sharp_size, INJECTED), count, seed=2
            )
            rate = format_rate(sharp_tally.sharp_regressions, sharp_tally.sharp)
            sizes = [str(sharp_tally.count), str(sharp_tally.sharp)]
            slower_rows.append([f"`{pairing}`", f"{operands}, {sharp_size}", *sizes, rate])
            click.echo(" | ".join(slower_rows[-1]), err=True)
    click.echo("\n".join(markdown.make_table(AA_HEADINGS, equal_rows, left_column_count=2)) + "\n")
    click.echo("\n".join(markdown.make_table(INJECTED_HEADINGS, slower_rows, left_column_count=2)))


def replace_verdicts(tally: Tally) -> Tally:
    """Return the tally as it would be if times were judged; only its regressions are known."""
    undetected_count = tally.count - tally.by_time
    verdicts = {GateVerdict.REGRESSION: tally.by_time, GateVerdict.UNRESOLVED: undetected_count}
    return Tally(Counter(verdicts))


# ---- the interval of two arms of one run ----

PAIRED_ROUNDS = (6, 10, 20, 40)
"""Rounds of a run in which two arms are compared."""

PAIRED_HEADINGS = (
    "rounds",
    "interval",
    "comparisons",
    "equal arms ranked",
    "2 % slower arm ranked",
)


def paired_intervals(a: RunSamples) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval of other over one, less 1, by the way in which it is made.

    Args:
        a: samples of a run with the arms ``one`` and ``other``, as :func:`in_rounds` draws them.
    """
    (point,) = a[0].values()
    first_totals, other_totals = (
        point.arms[baseline.name].times.total for baseline in (ONE, OTHER_ARM)
    )
    ratios = stats.compute_paired_ratios(other_totals, [first_totals])
    plain_interval = stats.estimate(ratios).shift(-1.0)
    used_interval = compute_paired_change(make_median_sample(np.log(ratios)))
    return {
        "plain bootstrap of rounds": (plain_interval.low, plain_interval.high),
        "as `compare` and ANSWER make it": (used_interval.low, used_interval.high),
    }


def rank_pairs(
    known_records: Sequence[Record], rounds: int, injected_change: float, count: int, seed: int
) -> Counter[str]:
    """Return how often each interval excludes 0, of so many pairs of arms."""
    times: Counter[str] = Counter()
    draw = in_rounds(rounds, injected_change)
    for number in range(count):
        run, _ = draw(
            known_records[number % len(known_records)], np.random.default_rng([seed, number])
        )
        for interval, (low, high) in paired_intervals(run).items():
            times[interval] += low > 0 or high < 0
    return times


@main.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--count", default=480, show_default=True, help="Comparisons per line.")
def intervals(folders: tuple[Path, ...], count: int) -> None:
    """Compare two ways to make the interval of two arms of one run, of the runs in FOLDERS."""
    known_records = records(find(folders).runs)
    lines = []
    for rounds in PAIRED_ROUNDS:
        equal_counts, slower_counts = (
            rank_pairs(known_records, rounds, injected_change, count, seed)
            for seed, injected_change in ((1, 0.0), (2, INJECTED))
        )
        for interval, times in equal_counts.items():
            rates = (format_rate(times, count), format_rate(slower_counts[interval], count))
            lines.append([str(rounds), interval, str(count), *rates])
            click.echo(" | ".join(lines[-1]), err=True)
    click.echo("\n".join(markdown.make_table(PAIRED_HEADINGS, lines, left_column_count=2)))


# ---- real runs ----


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
@click.option("--runs", "count", default=80, show_default=True, help="Runs to measure.")
@click.option("--ranks", default=2, show_default=True, help="Ranks per run.")
@click.option("--pairs", default=8, show_default=True, help="Pairs of runs that take turns.")
def real(folder: Path, flags: tuple[str, ...], count: int, ranks: int, pairs: int) -> None:
    """Measure equal runs in FOLDER, with FLAGS of ``dejavubench run``, and compare them.

    Runs that are in FOLDER already count, so an interrupted series goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    measured_runs = len(list(folder.glob("*/run.json")))
    for run_number in range(measured_runs, count):
        click.echo(f"run {run_number + 1} of {count}", err=True)
        measure(folder, ranks, flags)
    runs = [read_checked(path.parent) for path in sorted(folder.glob("*/run.json"))]
    runs.sort(key=lambda run: run.header.started_utc)
    plans = (
        (Pairing.APART, "one run each", list(real_apart(runs))),
        (Pairing.ROUNDS, "none against none#2", list(real_rounds(runs))),
        (Pairing.TURNS, f"{pairs} pairs of runs, relabelled", list(real_turns(runs, pairs))),
    )
    lines = []
    for pairing, operands, comparisons in plans:
        tally = Tally()
        for comparison in comparisons:
            tally.add(comparison.rows)
        lines.append(aa_cells(pairing, operands, tally))
        if pairing is Pairing.APART:
            times = replace_verdicts(tally)
            lines.append(aa_cells(pairing, f"{operands}, if times were judged", times))
    click.echo("\n".join(markdown.make_table(AA_HEADINGS, lines, left_column_count=2)))


def measure(folder: Path, ranks: int, flags: Sequence[str]) -> None:
    """Measure one run. Its name is its number: two runs may start in one second."""
    mpirun = shutil.which("mpirun")
    if mpirun is None:
        raise click.ClickException("no mpirun on PATH")
    command = [mpirun, "-n", str(ranks), sys.executable, "-m", "dejavubench", "run", *flags]
    process = subprocess.run(
        [*command, "--log-dir", str(folder)], capture_output=True, text=True, check=False
    )
    if process.returncode:
        raise click.ClickException(f"a run ended with {process.returncode}:\n{process.stderr}")


def real_apart(runs: Sequence[Run]) -> Iterator[Comparison]:
    """Compare each run with the next one; every second pair the other way round."""
    for pair_number, (first_run, other_run) in enumerate(pairwise(runs)):
        if pair_number % 2 == 0:  # disjoint pairs
            a, b = (first_run, other_run) if pair_number % 4 == 0 else (other_run, first_run)
            yield compare(Operand("A", (a,)), Operand("B", (b,)), Metric.TOTAL, 0.0)


def real_rounds(runs: Sequence[Run]) -> Iterator[Comparison]:
    """Compare the two baselines of each run; every second time the other way round."""
    for run_number, run in enumerate(runs):
        baseline_names = ("none", "none#2") if run_number % 2 == 0 else ("none#2", "none")
        a, b = (
            Operand(label, (run,), arm_name=arm)
            for label, arm in zip("AB", baseline_names, strict=True)
        )
        yield compare(a, b, Metric.TOTAL, 0.0)


def real_turns(runs: Sequence[Run], pairs: int, count: int = 40) -> Iterator[Comparison]:
    """Compare so many neighbouring pairs of runs, drawn at random, either run of a pair as A.

    The comparisons share runs, so they are not independent. None with too few runs.
    """
    neighbours = [runs[begin : begin + 2] for begin in range(0, len(runs) - 1, 2)]
    rng = np.random.default_rng(1)
    for _ in range(count if len(neighbours) >= pairs else 0):
        a, b = [], []
        for pair_index in np.sort(rng.choice(len(neighbours), pairs, replace=False)):
            first_run, other_run = (
                neighbours[pair_index] if rng.random() < 0.5 else reversed(neighbours[pair_index])
            )
            a.append(first_run)
            b.append(other_run)
        yield compare(Operand("A", tuple(a)), Operand("B", tuple(b)), Metric.TOTAL, 0.0)


if __name__ == "__main__":
    main()
