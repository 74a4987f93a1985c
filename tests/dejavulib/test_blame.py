"""Delays that are injected at one place are seen in the part of a chunk's latency that is there.

CPU, fp32, 1 thread. Each delay is 5 ms a chunk, far above the noise. What is compared are shares
within one run: injected iterations against those between them. Other programs delay some chunks by
as much, so the quarter of the chunks with the least of it decides: a delay is in every chunk.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles

import pytest

from dejavubench.analysis.answers.limits.collect_evidence import make_evidence
from dejavubench.analysis.answers.limits.rules import find_limit
from dejavubench.analysis.breakdown.chunk_bill import make_bills
from dejavubench.analysis.breakdown.overhead_parts import compute_overhead_parts
from dejavubench.analysis.facts.collect_samples import collect
from dejavubench.analysis.facts.host_rounds import HostRounds, read_host_rounds
from dejavubench.dejavulib.chunk_times import cut
from dejavubench.records import read_chunk_times, read_run
from dejavubench.records.conditions import read_conditions
from helpers.faults import FAULTY
from helpers.jobs import PATIENCE, QUICK, TINY, args, last_of_each, run
from helpers.paths import ROOT, SCRIPTS

LEAST_SHARE = 0.8
"""Least share of the added time that the part in question holds."""

pytestmark = pytest.mark.mpi


def read_latencies(
    folder: Path, phases: tuple[str, ...]
) -> Iterator[tuple[str, int, dict[str, int]]]:
    """Yield arm, iteration and the parts of each chunk of some phases, in nanoseconds."""
    for _, listed, times in read_chunk_times(folder):
        for chunk, stamps in zip(listed.chunks, times.stamps(), strict=True):
            if chunk.phase in phases:
                parts = listed.parts(chunk.phase)
                part_names = [part.name for part in parts]
                yield (
                    times.arm,
                    times.iteration,
                    dict(zip(part_names, cut(parts, stamps), strict=True)),
                )


def added_times(folder: Path, arm: str, phases: tuple[str, ...]) -> dict[str, float]:
    """Return the time that injection adds to each part, by lower quartiles."""
    lengths: dict[bool, dict[str, list[int]]] = {
        injected: defaultdict(list) for injected in (False, True)
    }
    for name, iteration, parts in read_latencies(folder, phases):
        if name == arm:
            for part, length in parts.items():
                lengths[iteration % 2 == 1][part].append(length)
    return {
        part: quartile(lengths[True][part]) - quartile(lengths[False][part])
        for part in lengths[True]
    }


def quartile(values: list[int]) -> float:
    """Return the lower quartile."""
    return quantiles(values, n=4)[0]


def find_limits(folder: Path) -> dict[str, str]:
    """Return by arm what limits it in the injected rounds, as the report's rules say."""
    run_of_folder = read_run(folder)
    points = collect(run_of_folder)
    hosts = [
        HostRounds(
            replace(
                host_round.log,
                windows=[window for window in host_round.log.windows if _is_odd(window.round)],
            )
        )
        for host_round in read_host_rounds(run_of_folder)
    ]
    (point,) = points.values()
    for name, arm in point.arms.items():
        total = {number: ms for number, ms in arm.times.total.items() if _is_odd(number)}
        point.arms[name] = replace(arm, times=replace(arm.times, total=total))
    bills_ = make_bills(read_chunk_times(folder), points)
    named = {}
    for name, arm in point.arms.items():
        mine = [bill for bill in bills_ if bill.arm_name == name]
        if arm.info.is_streaming:
            evidence = make_evidence(run_of_folder, hosts, point, arm, mine)
            assert evidence is not None
            named[name] = find_limit(evidence).name
    return named


def _is_odd(number: int | None) -> bool:
    return number is not None and number % 2 == 1


@pytest.fixture(scope="module")
def slowed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with slow gathers, syncs or acknowledgements in its arms."""
    flags = args("--warmup 0 --rounds 6 --level 1,3 --streaming none,host,disk,mpi")
    return run(
        tmp_path_factory.mktemp("slowed"), 2, "slowed", "run", *QUICK, *flags, driver=FAULTY
    ).folder


@pytest.mark.parametrize(
    ("arm", "phases"),
    # Layers of a prompt are ready together at level 3, and wait for each other in the queue.
    [("1", ("prompt", "tokens")), ("3", ("tokens",))],
    ids=["level 1", "level 3"],
)
@pytest.mark.parametrize(
    ("destination", "blamed"), [("host", "gather"), ("disk", "sync"), ("mpi", "acknowledgement")]
)
def test_the_slow_part_is_blamed(
    slowed_run: Path, destination: str, blamed: str, arm: str, phases: tuple[str, ...]
) -> None:
    added = added_times(slowed_run, f"{destination}@{arm}", phases)
    assert added[blamed] > 0
    # The parts of each chunk sum to its latency, so this sum is the time that was added.
    assert added[blamed] >= LEAST_SHARE * sum(added.values()), added


def test_the_answer_names_the_slow_part(slowed_run: Path) -> None:
    """At level 1 the model waits for each chunk, so every delay is a cost."""
    named = find_limits(slowed_run)
    named_limits = {arm: named[f"{arm}@1"] for arm in ("host", "disk", "mpi")}
    assert named_limits == {
        "host": "gather",
        "disk": "disk latency",
        "mpi": "sink",
    }


def test_a_throttled_link_is_blamed_on_the_wire(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two emulated hosts; in odd iterations the link's rate adds some 5 ms to a token's chunk."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import two_hosts

    sizes = args("--layer-num 8 --ubatch-size 32 --input-len 2 --output-len 12 --level 1")
    rounds = args("--warmup 0 --rounds 4 --no-ceilings --no-verify")
    flags = args("--streaming none,mpi,tcp --peer 10.77.0.2:7601")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    slow = f"throttled-link:{two_hosts.INTERFACE}:150mbit"
    driver = (sys.executable, *map(str, FAULTY), slow)
    options = last_of_each([*TINY, *sizes, *rounds, *flags])
    try:
        status = two_hosts.run("unlimited", ["run", *options], driver)
    except two_hosts.NoHostsError as error:
        pytest.skip(str(error))
    assert status == 0
    (folder,) = (tmp_path / "logs").iterdir()
    for arm in ("mpi@1", "tcp@1"):
        blamed = added_times(folder, arm, ("tokens",))
        assert blamed["wire"] > 0
        assert blamed["wire"] >= LEAST_SHARE * sum(blamed.values()), (arm, blamed)
    assert find_limits(folder) == {"mpi@1": "link rate", "tcp@1": "link rate"}


# ---- a busy core ----

ROUNDS = 6


@contextmanager
def stopped_load() -> Iterator[int]:
    """Start a process that computes on the first granted core, stopped until somebody wakes it."""
    core = min(os.sched_getaffinity(0))
    code = (
        f"import os, time\nos.sched_setaffinity(0, {{{core}}})\n"
        f"while time.monotonic() < {time.monotonic() + PATIENCE}: pass"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as load:
        os.kill(load.pid, signal.SIGSTOP)
        try:
            yield load.pid
        finally:
            load.kill()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the model needs a core of its own")
def test_a_busy_core_is_in_the_rest_and_blamed_on_no_part(tmp_path: Path) -> None:
    """In odd iterations of mpi@3 another process takes its share of the model's core.

    The helper thread and the sink have the other cores, so nothing else has a reason to be slow.
    """
    sizes = args("--layer-num 6 --head-num 12 --size-per-head 64 --ubatch-size 2")
    lengths = args("--input-len 16 --output-len 8 --no-ceilings --no-verify")
    flags = (*sizes, *lengths, *args("--streaming none,mpi --warmup 0 --rounds"), ROUNDS)
    with stopped_load() as pid:
        job = run(tmp_path, 2, f"busy-core:{pid}:mpi@3", "run", *TINY, *flags, driver=FAULTY)
    injected = range(1, ROUNDS, 2)
    (point,) = collect(job.run).values()
    arm = point.arms["mpi@3"]
    # The very numbers of the table, over the rounds with the load alone.
    with_load = {number: arm.times.total[number] for number in injected}
    arm = replace(arm, times=replace(arm.times, total=with_load))
    parts = {
        overhead.part: overhead.ms.median
        for overhead in compute_overhead_parts(point, arm)
        if overhead.phase == "total"
    }
    overhead = parts["overhead"]
    assert overhead > 0
    assert parts["rest"] >= LEAST_SHARE * overhead, parts
    assert max(parts["stall"], parts["drain"]) <= (1 - LEAST_SHARE) * overhead, parts
    # Summed over all chunks of an iteration, no part of their latency grows by much of that.
    grown = sum_parts(job.folder, "mpi@3", True) - sum_parts(job.folder, "mpi@3", False)
    assert set(grown) <= {"queue", "gather", "post", "wire", "acknowledgement"}
    assert all(ms <= (1 - LEAST_SHARE) * overhead for ms in grown.values()), (grown, overhead)
    check_conditions(job.folder, tmp_path, injected)
    assert find_limits(job.folder) == {"mpi@3": "shared cores"}


def sum_parts(folder: Path, arm: str, injected: bool) -> Counter[str]:
    """Return the ms of each part over the chunks of an iteration, the median over iterations."""
    sums: dict[int, Counter[str]] = defaultdict(Counter)
    for name, iteration, parts in read_latencies(folder, ("prompt", "tokens")):
        if name == arm and (iteration % 2 == 1) == injected:
            sums[iteration].update(parts)
    part_names = {part for part_times in sums.values() for part in part_times}
    # A Counter's difference keeps what has grown, and leaves out the rest.
    return Counter(
        {
            part: median(part_times[part] for part_times in sums.values()) / 1e6
            for part in part_names
        }
    )


def check_conditions(folder: Path, cwd: Path, injected: range) -> None:
    """Assert that the conditions of the injected iterations hold the load process's CPU time."""
    load_s = {int(n): seconds for n, seconds in json.loads((cwd / "load.json").read_text()).items()}
    assert list(load_s) == list(injected)
    assert min(load_s.values()) > 0
    (log,) = read_conditions(folder)
    windows = {window.iteration: window for window in log.windows if window.arm == "mpi@3"}
    other_cpu_s = [windows[number].other_cpu_s for number in load_s]
    # The kernel counts CPU time in ticks, and a window of a tenth of a second has few: so the sum
    # of the windows is judged, less a tick at either end of each.
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    least_s = LEAST_SHARE * sum(load_s.values()) - 2 * tick_s * len(load_s)
    assert least_s > 0
    assert sum(seconds or 0.0 for seconds in other_cpu_s) >= least_s, (other_cpu_s, load_s)
