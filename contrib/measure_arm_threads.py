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
from dejavubench.bench.scenarios.plain import PlainSink, PlainSource
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

    def since(self, before: Usage) -> Usage:
        """Return what was used after ``before``."""
        return Usage._make(later - then for later, then in zip(self, before, strict=True))

    def plus(self, other: Usage) -> Usage:
        """Return what two threads have used together."""
        return Usage._make(own + two for own, two in zip(self, other, strict=True))


HEADINGS = ("on core ms", "waited ms", "gave up", "put off", "faults")


# ---- inside a rank ----


def usage_of(number: int, ident: int | None) -> Usage:
    """Return the kernel's numbers of one thread of this process.

    Args:
        number: the kernel's number of the thread.
        ident: Python's identifier of the thread, if Python has started it.
    """
    folder = Path(f"/proc/self/task/{number}")
    ran, waited, _ = map(int, (folder / "schedstat").read_text().split())
    if ident is not None:
        # The kernel brings its own sum up to date at a tick only; the thread's clock is exact.
        ran = time.clock_gettime_ns(time.pthread_getcpuclockid(ident))
    status = dict(
        line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line
    )
    return Usage(
        ran * 1e-6,
        waited * 1e-6,
        int(status["voluntary_ctxt_switches"]),
        int(status["nonvoluntary_ctxt_switches"]),
        # The name in brackets may hold spaces. Behind it, the eighth word is the minor faults.
        int((folder / "stat").read_text().rpartition(")")[2].split()[7]),
    )


def usages() -> dict[str, Usage]:
    """Return the numbers of all threads by name; threads of one name are added up."""
    threads = {thread.native_id: thread for thread in threading.enumerate()}
    used: dict[str, Usage] = {}
    for number in map(int, os.listdir("/proc/self/task")):
        thread = threads.get(number)
        name = thread.name if thread else "not Python's"
        used[name] = used.get(name, Usage()).plus(
            usage_of(number, thread.ident if thread else None)
        )
    return used


def watch() -> None:
    """Let every iteration of this rank leave its numbers."""
    path = Path(os.environ[FOLDER]) / f"{os.getpid()}.jsonl"
    with path.open("w", encoding="utf-8") as file, ExitStack() as patched:
        for part, side in ((PlainSource, "source"), (PlainSink, "sink")):
            patched.enter_context(patch.object(part, "run", watch_scenario(part.run, side, file)))
        dejavubench()


def watch_scenario(
    run: Callable[[Any, Arm, MarkPhase], None], side: str, file: TextIO
) -> Callable[[Any, Arm, MarkPhase], None]:
    """Return a scenario's ``run`` that leaves what each thread has used meanwhile."""

    def runs(part: PlainSource | PlainSink, arm: Arm, mark: MarkPhase) -> None:
        before = usages()
        run(part, arm, mark)
        for name, usage in usages().items():
            used = usage.since(before.get(name, Usage()))
            file.write(json.dumps({"arm": arm.name, "thread": f"{side}: {name}", "used": used}))
            file.write("\n")

    return runs


# ---- beside the job ----


def measure(flags: Sequence[str], ranks: int, folder: Path) -> dict[tuple[str, str], list[Usage]]:
    """Run the job; return what each thread has used in each iteration, by arm and thread."""
    beside = Path(sys.executable).with_name("mpirun")
    program = str(beside) if beside.exists() else shutil.which("mpirun")
    if program is None:
        raise click.ClickException("no mpirun was found")
    words = [program, "-n", str(ranks), sys.executable, str(Path(__file__).resolve()), JOB]
    subprocess.run(
        [*words, "run", *flags, "--log-dir", str(folder / "logs")],
        check=True,
        env={**os.environ, FOLDER: str(folder)},
    )
    used: dict[tuple[str, str], list[Usage]] = defaultdict(list)
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            used[record["arm"], record["thread"]].append(Usage(*record["used"]))
    return used


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--ranks", default=2, show_default=True, help="Ranks of the job.")
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def main(ranks: int, flags: tuple[str, ...]) -> None:
    """Print what every thread uses per arm; FLAGS are those of ``dejavubench run``."""
    with tempfile.TemporaryDirectory(prefix="arm-threads-") as folder:
        used = measure(flags, ranks, Path(folder))
    click.echo(f"{'arm':10} {'thread':28}" + "".join(f"{name:>12}" for name in HEADINGS))
    for (arm, thread), usage in sorted(used.items()):
        medians = [statistics.median(values) for values in zip(*usage, strict=True)]
        if any(medians):
            click.echo(f"{arm:10} {thread:28}" + "".join(f"{value:12.2f}" for value in medians))


if __name__ == "__main__":
    if sys.argv[1:2] == [JOB]:
        del sys.argv[1]
        watch()
    else:
        main()
