"""CPU time, waits for a core and switches of every thread, per arm and iteration.

A busy machine disturbs clocks more than CPU times, so this shows what streaming does to the model
where single runs of the clock show noise.

    python contrib/measure_arm_threads.py -- --model gpt2 --streaming none,host,mpi --rounds 6

The words behind ``--`` are flags of ``dejavubench run``. The kernel keeps the numbers for each
thread, and they are read before and after the timed part of an iteration, outside the clock:

- ``on core``: milliseconds on a core.
- ``waited``: milliseconds in which the thread could run and had no core.
- ``gave up``: voluntary switches. The thread slept: a nap, or a wait for Python's lock.
- ``put off``: involuntary switches. Another thread took its core.
- ``faults``: minor page faults.

Only Linux has these files.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TextIO
from unittest.mock import patch

import click

from dejavubench.bench.engine.batch_maker import MarkPhase
from dejavubench.bench.scenarios.base import ScenarioPart
from dejavubench.bench.scenarios.handover import HandoverSource
from dejavubench.bench.scenarios.plain import PlainSink, PlainSource
from dejavubench.bench.scenarios.swap import SwapSource
from dejavubench.cli import main as dejavubench
from dejavubench.config.arms import Arm

JOB = "job"
"""First argument of the ranks that this script starts."""

FOLDER = "DEJAVUBENCH_ARM_THREADS"
"""Environment variable: the folder in which each rank leaves its numbers."""


class Usage(NamedTuple):
    """What a thread has used so far."""

    on_core_ms: float = 0.0
    waited_ms: float = 0.0
    gave_up: int = 0
    put_off: int = 0
    faults: int = 0

    def since(self, earlier_usage: Usage) -> Usage:
        """Return what was used after ``earlier_usage``."""
        return Usage._make(
            later_count - earlier_count
            for later_count, earlier_count in zip(self, earlier_usage, strict=True)
        )

    def plus(self, other_usage: Usage) -> Usage:
        """Return what two threads have used together."""
        return Usage._make(
            own_count + other_count
            for own_count, other_count in zip(self, other_usage, strict=True)
        )


HEADINGS = ("on core ms", "waited ms", "gave up", "put off", "faults")


# ---- inside a rank ----


def usage_of(thread_number: int, ident: int | None) -> Usage:
    """Return the kernel's numbers of one thread of this process.

    Args:
        thread_number: the kernel's number of the thread.
        ident: Python's identifier of the thread, if Python has started it.
    """
    folder = Path(f"/proc/self/task/{thread_number}")
    ran_ns, waited_ns, _ = map(int, (folder / "schedstat").read_text().split())
    if ident is not None:
        # The kernel brings its own sum up to date at a tick only; the thread's clock is exact.
        ran_ns = time.clock_gettime_ns(time.pthread_getcpuclockid(ident))
    status = dict(
        line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line
    )
    return Usage(
        ran_ns * 1e-6,
        waited_ns * 1e-6,
        int(status["voluntary_ctxt_switches"]),
        int(status["nonvoluntary_ctxt_switches"]),
        # The name in brackets may hold spaces. Behind it, the eighth word is the minor faults.
        int((folder / "stat").read_text().rpartition(")")[2].split()[7]),
    )


def usages() -> dict[str, Usage]:
    """Return the numbers of all threads by name; threads of one name are added up."""
    threads = {thread.native_id: thread for thread in threading.enumerate()}
    usage_by_name: dict[str, Usage] = {}
    for thread_number in map(int, os.listdir("/proc/self/task")):
        thread = threads.get(thread_number)
        name = thread.name if thread else "not Python's"
        usage_by_name[name] = usage_by_name.get(name, Usage()).plus(
            usage_of(thread_number, thread.ident if thread else None)
        )
    return usage_by_name


def watch() -> None:
    """Let every iteration of this rank leave its numbers."""
    path = Path(os.environ[FOLDER]) / f"{os.getpid()}.jsonl"
    with path.open("w", encoding="utf-8") as file, ExitStack() as patches:
        parts = (
            (PlainSource, "source"),
            (HandoverSource, "source"),
            (SwapSource, "source"),
            (PlainSink, "sink"),
        )
        for scenario, side in parts:
            patches.enter_context(
                patch.object(scenario, "run", watch_scenario(scenario.run, side, file))
            )
        dejavubench()


def watch_scenario(
    run: Callable[[Any, Arm, MarkPhase], None], side: str, file: TextIO
) -> Callable[[Any, Arm, MarkPhase], None]:
    """Return a scenario's ``run`` that leaves what each thread has used meanwhile."""

    def runs(scenario: ScenarioPart, arm: Arm, mark: MarkPhase) -> None:
        usages_before = usages()
        run(scenario, arm, mark)
        for name, usage in usages().items():
            thread_usage = usage.since(usages_before.get(name, Usage()))
            file.write(
                json.dumps({"arm": arm.name, "thread": f"{side}: {name}", "used": thread_usage})
            )
            file.write("\n")

    return runs


# ---- beside the job ----


def measure(flags: Sequence[str], ranks: int, folder: Path) -> dict[tuple[str, str], list[Usage]]:
    """Run the job; return what each thread has used in each iteration, by arm and thread."""
    mpirun = Path(sys.executable).with_name("mpirun")
    program = str(mpirun) if mpirun.exists() else shutil.which("mpirun")
    if program is None:
        raise click.ClickException("no mpirun was found")
    words = [program, "-n", str(ranks), sys.executable, str(Path(__file__).resolve()), JOB]
    subprocess.run(
        [*words, "run", *flags, "--log-dir", str(folder / "logs")],
        check=True,
        env={**os.environ, FOLDER: str(folder)},
    )
    usages_by_arm: dict[tuple[str, str], list[Usage]] = defaultdict(list)
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            usages_by_arm[record["arm"], record["thread"]].append(Usage(*record["used"]))
    return usages_by_arm


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--ranks", default=2, show_default=True, help="Ranks of the job.")
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def main(ranks: int, flags: tuple[str, ...]) -> None:
    """Print what every thread uses per arm; FLAGS are those of ``dejavubench run``."""
    with tempfile.TemporaryDirectory(prefix="arm-threads-") as folder:
        usages_by_arm = measure(flags, ranks, Path(folder))
    click.echo(f"{'arm':10} {'thread':28}" + "".join(f"{name:>12}" for name in HEADINGS))
    for (arm, thread), usage in sorted(usages_by_arm.items()):
        medians = [statistics.median(values) for values in zip(*usage, strict=True)]
        if any(medians):
            click.echo(f"{arm:10} {thread:28}" + "".join(f"{value:12.2f}" for value in medians))


if __name__ == "__main__":
    if sys.argv[1:2] == [JOB]:
        del sys.argv[1]
        watch()
    else:
        main()
