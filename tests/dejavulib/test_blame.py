"""Delays that are injected at one place are seen in the part of a chunk's latency that is there.

CPU, fp32, 1 thread. Each delay is 5 ms a chunk, far above the noise. What is compared are shares
within one run: injected iterations against those between them, by medians.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from dejavubench.dejavulib.chunktimes import cut
from dejavubench.machine.launcher import LAUNCHED
from dejavubench.records import read_chunk_times
from helpers.faults import FAULTY
from helpers.jobs import PATIENCE, QUICK, TINY, args, run
from helpers.paths import ROOT, SCRIPTS

SCRIPT = SCRIPTS / "two_hosts.py"
HELD = 0.8
"""Least share of the added time that the part in question holds."""

pytestmark = pytest.mark.mpi


def latencies(folder: Path, phases: tuple[str, ...]) -> Iterator[tuple[str, int, dict[str, int]]]:
    """Yield arm, iteration and the parts of each chunk of some phases, in nanoseconds."""
    for _, listed, times in read_chunk_times(folder):
        for chunk, stamps in zip(listed.chunks, times.stamps(), strict=True):
            if chunk.phase in phases:
                parts = listed.parts(chunk.phase)
                names = [part.name for part in parts]
                yield times.arm, times.iteration, dict(zip(names, cut(parts, stamps), strict=True))


def added(folder: Path, arm: str, phases: tuple[str, ...]) -> dict[str, float]:
    """Return the time that injection adds to each part, by medians."""
    found: dict[bool, dict[str, list[int]]] = {
        injected: defaultdict(list) for injected in (False, True)
    }
    for name, iteration, parts in latencies(folder, phases):
        if name == arm:
            for part, length in parts.items():
                found[iteration % 2 == 1][part].append(length)
    return {part: median(found[True][part]) - median(found[False][part]) for part in found[True]}


@pytest.fixture(scope="module")
def slowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with a slow gather, a slow disk and a late sink, each in its own arms."""
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
    slowed: Path, destination: str, blamed: str, arm: str, phases: tuple[str, ...]
) -> None:
    found = added(slowed, f"{destination}@{arm}", phases)
    assert found[blamed] > 0
    # The parts of each chunk sum to its latency, so this sum is the time that was added.
    assert found[blamed] >= HELD * sum(found.values()), found


def test_a_throttled_link_is_blamed_on_the_wire(tmp_path: Path) -> None:
    """Two emulated hosts; a token's chunk takes some 50 ms at the link's rate."""
    sizes = args("--layer-num 8 --ubatch-size 16 --input-len 2 --output-len 8 --level 1 --rounds 3")
    to = args("--streaming none,mpi,tcp --peer 10.77.0.2:7601 --no-ceilings")
    command = [sys.executable, SCRIPT, "--rate", "10Mbit/s", "--", "run", *TINY, *sizes, *to]
    inherited = {key: value for key, value in os.environ.items() if key not in LAUNCHED}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=tmp_path,
        env={**inherited, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if not any(tmp_path.glob("logs/*")):
        pytest.skip(f"two hosts cannot be emulated here: {done.stderr.strip()[-300:]}")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "logs").iterdir()
    shares = defaultdict(list)
    for arm, _, parts in latencies(folder, ("tokens",)):
        shares[arm].append(parts["wire"] / sum(parts.values()))
    assert set(shares) == {"mpi@1", "tcp@1"}
    for arm, each in shares.items():
        assert median(each) >= HELD, arm
