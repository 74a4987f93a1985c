"""Rules that name what limits an arm, on made-up evidence. Pure: no device, no thread, no data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dejavubench.analysis.answers.limits.collect_chunks import collect_chunk_facts
from dejavubench.analysis.answers.limits.evidence import (
    ChunkFacts,
    CostFacts,
    Evidence,
    LongestPart,
    MachineFacts,
    MovingSide,
    PartKind,
    StreamFacts,
)
from dejavubench.analysis.answers.limits.rules import NOT_KNOWN, RULES, find_limit
from dejavubench.analysis.breakdown.chunk_bill import Bill, PartTime

STALLED = CostFacts(total_ms=100.0, stalled_ms=90.0, drain_ms=1.0, request_ms=1000.0)
DRAINED = CostFacts(total_ms=100.0, stalled_ms=95.0, drain_ms=94.0, request_ms=1000.0)
SLOWER = CostFacts(
    total_ms=100.0,
    stalled_ms=5.0,
    drain_ms=1.0,
    request_ms=1000.0,
    prompt_pct=30.0,
    tokens_pct=2.0,
)
LEVEL_1 = StreamFacts(is_overlapped=False, nbytes=1e9)
LEVEL_0 = StreamFacts(is_overlapped=False, is_naive=True, nbytes=1e9, copy_count=1e6)
CEILING: dict[str, Any] = {"ceiling": "a-probe", "ceiling_gb_per_s": 11.0}


def make_facts(
    kind: PartKind, prompt_us: float | None, token_us: float | None, extent_us: float | None = None
) -> ChunkFacts:
    """Chunks of 10 MB in the prompt and 1 MB in a token, with one large part."""
    part = LongestPart(str(kind), kind, 0.8, prompt_us, token_us)
    return ChunkFacts(
        part, prompt_nbytes=1e7, token_nbytes=1e6, extent_count=1000, extent_us=extent_us
    )


RISING, CONSTANT = (1000.0, 100.0), (110.0, 100.0)
"""Times of a large and a small chunk: in proportion to bytes, and nearly the same."""

BUSY_MACHINE = MachineFacts(core_count=2, busy_core_count=1.1, other_core_count=0.9)
CROWDED_MACHINE = MachineFacts(
    core_count=2,
    busy_core_count=1.1,
    other_core_count=0.0,
    cpu_wait_pct=8.0,
    baseline_cpu_wait_pct=0.5,
)
POLLED_MACHINE = MachineFacts(
    core_count=2,
    busy_core_count=1.9,
    model_core_count=1.9,
    sink=MovingSide(cpu_ms=600.0, needed_ms=20.0),
)
MEMORY_BOUND_MACHINE = MachineFacts(copy_gb_per_s=10.0, read_pct=90.0)

CASES: dict[str, tuple[str, Evidence]] = {
    "disk behind": (
        "disk rate",
        Evidence(
            DRAINED,
            StreamFacts(on_storage=True, nbytes=1e10, alone_ms=1050.0, ceiling_gb_per_s=11.0),
        ),
    ),
    "memory": ("memory bandwidth", Evidence(STALLED, replace(LEVEL_1, is_local=True, **CEILING))),
    "link": ("link rate", Evidence(STALLED, replace(LEVEL_1, **CEILING))),
    "extents by chunks": (
        "descriptors/extents",
        Evidence(
            STALLED,
            LEVEL_0,
            make_facts(PartKind.MOVE, prompt_us=90e3, token_us=90e3, extent_us=8.0),
        ),
    ),
    "slow disk": (
        "disk rate",
        Evidence(STALLED, replace(LEVEL_1, on_storage=True), make_facts(PartKind.DISK, *RISING)),
    ),
    "late disk": (
        "disk latency",
        Evidence(STALLED, replace(LEVEL_1, on_storage=True), make_facts(PartKind.DISK, *CONSTANT)),
    ),
    "disk of one size": (
        "disk, rate or latency",
        Evidence(
            STALLED,
            replace(LEVEL_1, on_storage=True),
            make_facts(PartKind.DISK, prompt_us=None, token_us=100.0),
        ),
    ),
    "slow wire": ("link rate", Evidence(STALLED, LEVEL_1, make_facts(PartKind.WIRE, *RISING))),
    "late wire": ("link latency", Evidence(STALLED, LEVEL_1, make_facts(PartKind.WIRE, *CONSTANT))),
    "wire of one size": (
        "link, rate or latency",
        Evidence(STALLED, LEVEL_1, make_facts(PartKind.WIRE, prompt_us=100.0, token_us=None)),
    ),
    "slow gather": ("gather", Evidence(STALLED, LEVEL_1, make_facts(PartKind.GATHER, *RISING))),
    "posting": (
        "descriptors/extents",
        Evidence(STALLED, LEVEL_1, make_facts(PartKind.POST, *CONSTANT)),
    ),
    "late sink": ("sink", Evidence(STALLED, LEVEL_1, make_facts(PartKind.SINK, *CONSTANT))),
    "kernels send": (
        "GPU SMs",
        Evidence(SLOWER, StreamFacts(on_gpu=True, sending_kernels="a library")),
    ),
    "a kernel gathers": (
        "GPU SMs",
        Evidence(SLOWER, StreamFacts(on_gpu=True, has_gathering_kernel=True)),
    ),
    "a sink polls": ("polling", Evidence(SLOWER, machine=POLLED_MACHINE)),
    "a helper polls": (
        "polling",
        Evidence(SLOWER, machine=replace(POLLED_MACHINE, sink=None, helper=POLLED_MACHINE.sink)),
    ),
    "other programs": ("shared cores", Evidence(SLOWER, machine=BUSY_MACHINE)),
    "threads wait": ("shared cores", Evidence(SLOWER, machine=CROWDED_MACHINE)),
    "copies": (
        "memory bandwidth",
        Evidence(SLOWER, StreamFacts(nbytes=1e9, shares_host=True), machine=MEMORY_BOUND_MACHINE),
    ),
}
"""Name of the limit and evidence for it. There is one case for each rule, in the rules' order."""


@pytest.mark.parametrize("number", range(len(RULES)), ids=list(CASES))
def test_each_rule_fires_on_its_evidence(number: int) -> None:
    """The first rule that holds is the one of the case, so rules do not hide each other."""
    name, evidence = list(CASES.values())[number]
    assert [rule.holds(evidence) for rule in RULES].index(True) == number
    limit = find_limit(evidence)
    assert limit.name == name
    assert limit.remedy
    # Two numbers at least say so.
    assert sum(word[:1].isdigit() for word in limit.evidence_text.replace("+", "").split()) >= 2


def test_there_is_a_case_for_every_rule() -> None:
    assert [name for name, _ in CASES.values()] == [rule.name for rule in RULES]


@pytest.mark.parametrize("cost", [STALLED, DRAINED, SLOWER], ids=["stalled", "drained", "slower"])
def test_no_rule_fires_without_evidence(cost: CostFacts) -> None:
    limit = find_limit(Evidence(cost))
    assert (limit.name, limit.remedy) == (NOT_KNOWN, "")


LACKING: dict[str, dict[str, dict[str, Any]]] = {
    "disk behind": {"stream": {"alone_ms": 500.0}},
    "memory": {"stream": {"ceiling_gb_per_s": 1000.0}},
    "link": {"cost": {"stalled_ms": 10.0}},
    "extents by chunks": {"stream": {"is_naive": False}},
    "slow wire": {"cost": {"stalled_ms": 40.0}},
    "slow gather": {"cost": {"stalled_ms": 40.0}},
    "kernels send": {"cost": {"tokens_pct": 25.0}},
    "a kernel gathers": {"stream": {"on_gpu": False}},
    "a sink polls": {"machine": {"core_count": 4}},
    "a helper polls": {"machine": {"helper": MovingSide(cpu_ms=600.0, needed_ms=580.0)}},
    "other programs": {"machine": {"other_core_count": 0.05}},
    "threads wait": {"machine": {"baseline_cpu_wait_pct": 7.9}},
    "copies": {"machine": {"read_pct": 20.0}},
}
"""Facts that contradict a case: its rule must then be silent."""


@pytest.mark.parametrize("case", LACKING)
def test_a_rule_is_silent_where_a_fact_contradicts_it(case: str) -> None:
    name, evidence = CASES[case]
    changed = {
        part: replace(getattr(evidence, part), **facts) for part, facts in LACKING[case].items()
    }
    assert find_limit(replace(evidence, **changed)).name != name


def test_extents_are_told_from_a_probe_and_from_the_packed_arm() -> None:
    probed = Evidence(STALLED, replace(LEVEL_0, naive_us=0.07))
    assert "1,000,000 extents at 0.07 µs each, by a probe" in find_limit(probed).evidence_text
    packed = Evidence(replace(STALLED, packed_ms=20.0), LEVEL_0)
    assert "the same bytes packed cost 20.00 ms" in find_limit(packed).evidence_text
    assert {find_limit(bill).name for bill in (probed, packed)} == {"descriptors/extents"}
    # A probe that explains a tenth of the stall, and a packed arm that costs as much, say nothing.
    cheap_extents = Evidence(replace(STALLED, packed_ms=95.0), replace(LEVEL_0, naive_us=0.01))
    assert find_limit(cheap_extents).name == NOT_KNOWN


def test_the_time_of_an_extent_is_said_to_be_a_median() -> None:
    """36,864 extents at 345 µs are 12.7 s, and the stall was 23.3 s: a median is no mean."""
    limit = find_limit(CASES["extents by chunks"][1])
    assert limit.evidence_text.endswith("1,000 extents at 8 µs each in the median chunk")


def test_a_program_on_the_models_core_alone_is_told_by_its_cpu_time() -> None:
    """One of eight cores is busy, but the program took most of the rest as CPU time."""
    machine = MachineFacts(core_count=8, busy_core_count=1.0, other_core_count=0.5, other_ms=80.0)
    assert find_limit(Evidence(SLOWER, machine=machine)).name == "shared cores"
    idle = replace(machine, other_ms=20.0)
    assert find_limit(Evidence(SLOWER, machine=idle)).name == NOT_KNOWN


def test_more_cpu_time_beside_streaming_is_named_as_that_of_other_processes() -> None:
    machine = MachineFacts(
        core_count=2, busy_core_count=0.68, other_core_count=1.27, other_ms=298.0
    )
    assert find_limit(Evidence(SLOWER, machine=machine)).evidence_text.endswith(
        "; other processes took 1.27 and this job 0.68 of 2 cores; the other processes, kernel "
        "threads included, took 298.0 ms more CPU time per iteration than without streaming"
    )


@pytest.mark.parametrize(
    ("total_ms", "stalled_ms", "numbers"),
    [
        (100.0, 40.0, "of 100.0 ms of cost, 60.0 ms are {slower}; 40.0 ms are stall"),
        (14.1, 4.3, "of 14.10 ms of cost, 9.80 ms are {slower}; 4.30 ms are stall"),
        (14.096, 4.294, "of 14.10 ms of cost, 9.81 ms are {slower}; 4.29 ms are stall"),
        (0.5, 0.125, "of 0.500 ms of cost, 0.375 ms are {slower}; 0.125 ms are stall"),
    ],
)
def test_the_parts_of_a_cost_add_up_to_the_total_beside_them(
    total_ms: float, stalled_ms: float, numbers: str
) -> None:
    cost = CostFacts(total_ms, stalled_ms, drain_ms=0.0, request_ms=1000.0)
    limit = find_limit(Evidence(cost))
    assert limit.name == NOT_KNOWN
    assert limit.evidence_text == numbers.format(slower="the model itself running slower")


def test_a_sink_that_sleeps_between_two_looks_does_not_poll() -> None:
    """An eighth of a core is what waking costs, and 30 ms of CPU explain no 95 ms of cost."""
    for cpu_ms in (0.125 * 1100.0, 30.0):
        idle = replace(POLLED_MACHINE, sink=MovingSide(cpu_ms, needed_ms=0.0))
        assert find_limit(Evidence(SLOWER, machine=idle)).name == NOT_KNOWN
    stalled = Evidence(STALLED, machine=POLLED_MACHINE)
    assert find_limit(stalled).name == NOT_KNOWN, "polling does not explain a stall"


def test_a_polling_sink_is_told_with_its_cpu_time_and_the_cores() -> None:
    limit = find_limit(Evidence(SLOWER, machine=POLLED_MACHINE))
    assert limit.evidence_text == (
        "of 100.0 ms of cost, 95.0 ms are the model itself running slower (prompt +30.0 %, tokens "
        "+2.00 % of that phase); the sink took 600.0 ms of CPU time per request, of which "
        "its bytes need 20.00 ms at most; the model alone takes 1.90 of 2 cores"
    )
    assert "a sink that sleeps" in limit.remedy


def test_an_arm_that_waits_for_its_chunks_is_sent_to_level_3_or_else_to_packing() -> None:
    slow_packed_arm = Evidence(STALLED, replace(LEVEL_0, **CEILING))
    assert find_limit(slow_packed_arm).remedy.startswith(
        "--level 3, which streams beside the model; "
    )
    extents = Evidence(STALLED, replace(LEVEL_0, naive_us=0.07))
    assert find_limit(extents).remedy.startswith("--level 1 or above, which packs them")


def test_a_slow_link_comes_before_its_extents() -> None:
    evidence = Evidence(
        replace(STALLED, packed_ms=90.0), replace(LEVEL_0, naive_us=0.07, **CEILING)
    )
    assert find_limit(evidence).name == "link rate"


def test_without_a_ceiling_the_stream_alone_is_no_evidence_of_a_rate() -> None:
    """A stream that each chunk's latency slows down alone must not count as a slow link."""
    stream = replace(LEVEL_1, alone_ms=95.0)
    assert (
        find_limit(Evidence(STALLED, stream, make_facts(PartKind.SINK, *CONSTANT))).name == "sink"
    )


def test_a_drain_behind_a_fast_stream_asks_for_longer_requests() -> None:
    draining = Evidence(DRAINED, StreamFacts(alone_ms=300.0), make_facts(PartKind.WIRE, *RISING))
    assert find_limit(draining).remedy.startswith("longer requests")
    assert find_limit(draining).evidence_text.startswith(
        "of 100.0 ms of cost, 95.0 ms are drain; wire is 80 %"
    )
    behind = replace(draining, stream=StreamFacts(alone_ms=1100.0, nbytes=1e9))
    assert "the stream alone takes 1100.0 ms" in find_limit(behind).evidence_text
    assert "longer requests" not in find_limit(behind).remedy


def test_a_chunk_time_is_cut_into_a_fixed_and_a_rising_part() -> None:
    fixed = make_facts(PartKind.WIRE, prompt_us=190.0, token_us=100.0)
    assert fixed.fixed_us == pytest.approx(90.0)  # 10 µs for each MB beside it
    assert fixed.is_mostly_fixed
    alike = replace(fixed, prompt_nbytes=1.2e6)
    assert (alike.fixed_us, alike.is_mostly_fixed) == (None, None)
    # The larger chunk came out faster.
    assert make_facts(PartKind.WIRE, prompt_us=80.0, token_us=100.0).fixed_us == 100.0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gather", PartKind.GATHER),
        ("gather + copy to host", PartKind.COPY),
        ("copy to host", PartKind.COPY),
        ("copy into place", PartKind.MOVE),
        ("notice", PartKind.NOTICE),
        ("wire + acknowledgement", PartKind.WIRE),
        ("sync", PartKind.DISK),
        ("a plug-in's own part", PartKind.OTHER),
    ],
)
def test_each_part_of_a_chunk_time_has_the_kind_of_its_name(name: str, kind: PartKind) -> None:
    assert PartKind.of_part(name) is kind


@pytest.mark.parametrize("gather", [False, True])
def test_copies_of_single_extents_count_as_moving_them(gather: bool) -> None:
    """At ``0-batched`` on a GPU both copies are of extents; a packed chunk crosses the bus."""
    times = {"latency": 9.0, "queue": 1.0, "copy to host": 3.0, "copy into place": 2.0, "post": 4.0}
    parts = [
        PartTime(name, sum_ms=ms, median_us=None, p99_us=None, share=0.0)
        for name, ms in times.items()
    ]
    if gather:
        parts.append(PartTime("gather", sum_ms=0.5, median_us=None, p99_us=None, share=0.0))
    bill = Bill(
        "p000",
        "host@x",
        "tokens",
        round_count=6,
        chunk_count=1,
        extent_count=10,
        extent_nbytes=64.0,
        extent_us=None,
        chunks_beyond=0,
        parts=parts,
    )
    facts = collect_chunk_facts([bill], "total")
    assert facts is not None
    assert facts.longest_part.name == ("post" if gather else "copy to host + copy into place")
    assert facts.longest_part.kind is (PartKind.POST if gather else PartKind.MOVE)
