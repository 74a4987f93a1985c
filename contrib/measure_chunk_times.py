"""What it costs that the library notes the times of every chunk.

Two measurements:

1. The stamping alone: all that is done for one chunk because it is timed, in a loop, less the same
   loop with an untimed chunk. Times the chunks of a request, as a share of TOTAL.
2. A paired run: one job in which the times are on in half of the iterations, in the order on, off,
   off, on. Each ratio is of two neighbouring iterations of one arm, so drift cancels.

    python contrib/measure_chunk_times.py --rounds 48 -- --model gpt2 --streaming none,mpi

The words behind ``--`` are flags of ``dejavubench run``. The sink takes its own times in both
halves, on a core of its own.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import torch

from dejavubench.analysis.numbers.stats import Estimate, estimate
from dejavubench.bench.scenarios.streaming import StreamingSource
from dejavubench.cli import main as dejavubench
from dejavubench.config.arms import Arm
from dejavubench.dejavulib.chunk_times import BEGUN, GATHERED, POSTED, Receipt, TimesBlock
from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.destinations.host import HostDestination
from dejavubench.dejavulib.geometry import KVGeometry
from dejavubench.dejavulib.kv_cache import KVCache
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.packing import Packing
from dejavubench.dejavulib.posting import note_completion
from dejavubench.dejavulib.schedule import StreamSchedule
from dejavubench.dejavulib.transfers import ByteProgress, PlannedChunk, StreamStats, Transfer
from dejavubench.records import Iteration, Run, read_chunk_times, read_run

JOB = "job"
"""First argument of the ranks that this script starts."""

CHUNKS = 50_000
"""Chunks of one loop."""

LOOPS = 7
"""Repetitions of the loop with times and of the one without."""


# ---- 1. the stamping alone ----


class Noted(HostDestination):
    """A destination that has a receipt for every chunk, as one between ranks has."""

    def receipt(self, stream: Stream) -> Receipt:
        """Return two times at once, so that the streamer files a receipt for each chunk."""
        return 0, 0


def nanoseconds_per_chunk() -> float:
    """Return what the library does more for a chunk that is timed, in nanoseconds of CPU time."""
    timed_ns = [_loop(True) for _ in range(LOOPS)]
    untimed_ns = [_loop(False) for _ in range(LOOPS)]
    return (min(timed_ns) - min(untimed_ns)) / CHUNKS


def _loop(is_timed: bool) -> int:
    geometry = KVGeometry(1, 1, 1, 2, 16, 2)
    stream = Stream(0, StreamSchedule(geometry, geometry.whole, 1, 1, 1 << 16))
    chunk = next(stream.schedule.all_chunks(LEVELS["3"]))
    packing = Packing(KVCache.allocate(geometry, torch.float16), chunk.region)
    planned_chunk = PlannedChunk(stream, chunk, packing, each_complete=False)
    progress = ByteProgress()
    stats = StreamStats()
    destination = Noted()
    block = TimesBlock(1) if is_timed else None
    began_ns = time.thread_time_ns()
    for _ in range(CHUNKS):
        transfer = Transfer(planned_chunk, progress, stats)
        if block is not None:  # as CacheManager does, which has read the clock for the stall
            transfer.take_times(block, 0)
        transfer.stamp(BEGUN)
        transfer.stamp(GATHERED)
        transfer.stamp(POSTED)
        note_completion(destination, transfer)
    return time.thread_time_ns() - began_ns


# ---- 2. on and off in one job ----


def alternate() -> None:
    """Let every arm take times in half of its iterations: on, off, off, on."""
    prepare, count = StreamingSource.prepare, Counter[str]()
    blocks: dict[CacheManager, TimesBlock | None] = {}

    def prepared(self: StreamingSource, arm: Arm, pattern: int) -> None:
        if arm.level is not None:
            is_timed = count[arm.name] % 4 in (0, 3)
            destinations = self.source.destinations
            for manager in destinations.open_managers(arm, arm.level):
                block = blocks.setdefault(manager, manager.times)
                manager.times = block if is_timed else None
            destinations.open_streamer(arm).destination.timed = is_timed
            count[arm.name] += 1
        prepare(self, arm, pattern)

    StreamingSource.prepare = prepared  # type: ignore[method-assign]


def pairs(run: Run) -> Iterator[tuple[str, list[float], float, int]]:
    """Yield each arm with its ratios of on to off, its median TOTAL in ms, and its chunks."""
    timed_rounds: dict[str, set[int]] = defaultdict(set)
    chunks: dict[str, int] = {}
    for _, listed_arm, times in read_chunk_times(run.path):
        timed_rounds[times.arm].add(times.iteration)
        chunks[times.arm] = len(listed_arm.chunks) + listed_arm.more
    totals: dict[str, dict[int, float]] = defaultdict(dict)
    for _, iteration in run.records_of(Iteration):
        if iteration.arm in timed_rounds:
            totals[iteration.arm][iteration.iteration] = iteration.total_ms
    warmup = run.header.warmup + run.header.warmup % 2  # pairs begin at even iterations
    for arm, total in totals.items():
        ratios = []
        for round_number in range(warmup, len(total) - 1, 2):
            two_totals = total[round_number], total[round_number + 1]
            ratios.append(
                two_totals[0] / two_totals[1]
                if round_number in timed_rounds[arm]
                else two_totals[1] / two_totals[0]
            )
        yield arm, ratios, statistics.median(total.values()), chunks[arm]


def measure(flags: Sequence[str], ranks: int, folder: Path) -> Run:
    """Run the job in which the times alternate; return its records."""
    mpirun = Path(sys.executable).with_name("mpirun")
    program = str(mpirun) if mpirun.exists() else shutil.which("mpirun")
    if program is None:
        raise click.ClickException("no mpirun was found")
    words = [program, "-n", str(ranks), sys.executable, str(Path(__file__).resolve()), JOB]
    subprocess.run([*words, "run", *flags, "--log-dir", str(folder)], check=True)
    (run_folder,) = folder.iterdir()
    return read_run(run_folder)


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--rounds", default=24, show_default=True, help="Rounds of the paired run.")
@click.option("--ranks", default=2, show_default=True, help="Ranks of the job.")
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def main(rounds: int, ranks: int, flags: tuple[str, ...]) -> None:
    """Measure what the times of chunks cost; FLAGS are those of ``dejavubench run``."""
    cost = nanoseconds_per_chunk()
    click.echo(f"stamping alone: {cost / 1e3:.2f} us of CPU time per chunk")
    with tempfile.TemporaryDirectory(prefix="chunk-times-") as folder:
        for arm, ratios, total_ms, chunks in pairs(
            measure([*flags, "--rounds", str(rounds)], ranks, Path(folder))
        ):
            share = cost * chunks / (total_ms * 1e6)
            click.echo(
                f"{arm}: {chunks} chunks, {cost * chunks / 1e3:.0f} us = {share:.4%} of TOTAL "
                f"({total_ms:.1f} ms)"
            )
            click.echo(f"{arm}: on against off {in_words(estimate(ratios).shift(-1))}")


def in_words(change: Estimate) -> str:
    """Write an estimate in percent, with its interval and number of pairs."""
    return (
        f"{change.median:+.2%} [{change.low:+.2%}, {change.high:+.2%}], half-width "
        f"{change.half_width:.2%}, {change.sample_count} pairs"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == [JOB]:
        del sys.argv[1]
        alternate()
        dejavubench()
    else:
        main()
