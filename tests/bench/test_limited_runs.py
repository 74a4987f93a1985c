"""Causes that are injected into real runs, and what ANSWER says limits their arms.

CPU, fp32, 1 thread, one source and one sink under mpirun. Delays are far above the noise.
tests/dejavulib/test_blame.py has more causes: a gather, a disk's latency, a sink, a throttled link
and a busy core.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from dejavubench.analysis.answers.limits.collect_evidence import make_evidence
from dejavubench.analysis.answers.limits.rules import Limit, find_limit
from dejavubench.analysis.breakdown.chunk_bill import make_bills
from dejavubench.analysis.facts.collect_samples import collect
from dejavubench.analysis.facts.host_rounds import read_host_rounds
from dejavubench.records import Run, read_chunk_times
from helpers.faults import FAULTY
from helpers.jobs import QUICK, TINY, args, run

pytestmark = pytest.mark.mpi


def find_limits(measured: Run, with_conditions: bool = True) -> dict[str, Limit]:
    """Return what limits each arm by the rules of the report, whether or not its cost is shown.

    Args:
        with_conditions: look at what other programs did as well.
    """
    hosts = read_host_rounds(measured) if with_conditions else []
    points = collect(measured)
    (point,) = points.values()
    bills_ = make_bills(read_chunk_times(measured.path), points)
    named = {}
    for name, arm in point.arms.items():
        if arm.info.is_streaming:
            mine = [bill for bill in bills_ if bill.arm_name == name]
            evidence = make_evidence(measured, hosts, point, arm, mine)
            assert evidence is not None
            named[name] = find_limit(evidence)
    return named


def test_each_injected_cause_is_named(tmp_path: Path) -> None:
    flags = args("--warmup 0 --rounds 4 --level 0,1,2 --streaming none,host,disk,mpi")
    # Chunks of a token take several pages; a file's own pages would look like latency otherwise.
    flags += args("--ubatch-size 16 --durability page-cache")
    job = run(tmp_path, 2, "limited", "run", *QUICK, *flags, driver=FAULTY)
    named = {arm: limit.name for arm, limit in find_limits(job.run).items()}
    named_limits = {arm: named[arm] for arm in ("host@0", "disk@1", "mpi@1", "mpi@2")}
    assert named_limits == {
        "host@0": "descriptors/extents",
        "disk@1": "disk rate",
        "mpi@1": "link latency",
        "mpi@2": "descriptors/extents",  # a post is what announces them
    }


def test_slow_memory_is_named_as_the_limit(tmp_path: Path) -> None:
    sizes = args("--ubatch-size 2 --input-len 8 --output-len 6")
    flags = args("--warmup 0 --rounds 2 --level 1 --streaming none,host --no-verify")
    job = run(tmp_path, 2, "slow-memory", "run", *TINY, *sizes, *flags, driver=FAULTY)
    limit = find_limits(job.run)["host@1"]
    assert limit.name == "memory bandwidth"
    assert "of memory-copy" in limit.evidence_text


def run_undisturbed(folder: Path, ranks: int, *words: object) -> Run:
    """Run a job, anew while other programs disturb its rounds, and return its records.

    Skips the test if they disturb three runs: then they are what limits an arm.
    """
    for attempt in ("first", "second", "third"):
        (folder / attempt).mkdir()
        measured = run(folder / attempt, ranks, *words, driver=FAULTY).run
        (host,) = read_host_rounds(measured)
        if not any(host_round.is_disturbed for host_round in host.rounds.values()):
            return measured
    pytest.skip("other programs disturbed three runs")


@pytest.mark.parametrize(
    ("poller", "ranks", "arm_name"), [("sink", 2, "mpi@3"), ("helper", 1, "host@3")]
)
def test_a_sink_or_helper_that_polls_is_named_as_the_limit(
    tmp_path: Path, poller: str, ranks: int, arm_name: str
) -> None:
    """It takes as much of the only core as the model; without polling it would sleep."""
    sizes = args("--layer-num 6 --head-num 12 --size-per-head 64 --ubatch-size 2")
    lengths = args("--input-len 16 --output-len 16 --no-ceilings --no-verify")
    flags = args(f"--streaming none,{arm_name.partition('@')[0]} --warmup 0 --rounds 4")
    words = (f"polling-{poller}", "run", *TINY, *sizes, *lengths, *flags)
    limit = find_limits(run_undisturbed(tmp_path, ranks, *words))[arm_name]
    assert limit.name == "polling", limit
    assert f"; the {poller} took " in limit.evidence_text
    assert limit.evidence_text.endswith(" of 1 core")


def test_copies_in_a_memory_that_bounds_tokens_are_named(tmp_path: Path) -> None:
    """An emulated memory: model and copies share its rate, which the probes report."""
    batch, prompt, tokens = 32, 32, 6
    sizes = args(f"--ubatch-size {batch} --input-len {prompt} --output-len {tokens}")
    flags = args("--warmup 0 --rounds 6 --streaming none,host --no-verify")
    # Two layers of 64 elements in fp32, a head of 101 words, and the cache at the middle step.
    weights = 4 * (2 * 12 * 64**2 + 101 * 64)
    cached = 4 * 2 * 2 * 64 * batch * (prompt + tokens // 2)
    fault = f"shared-memory:{weights + cached}"
    job = run(tmp_path, 1, fault, "run", *TINY, *sizes, *flags, driver=FAULTY)
    # The rule is the last one. On a busy machine, that of other programs could hold before it.
    limit = find_limits(job.run, with_conditions=False)["host@3"]
    assert limit.name == "memory bandwidth", limit
    assert "the stream's copies take at least " in limit.evidence_text
    assert limit.remedy.startswith("a sink on another host")
