"""A trace shows what the records say of one iteration, in Chrome's trace event format."""

from __future__ import annotations

import re
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dejavubench.analysis.trace.choice import TraceError, choose
from dejavubench.analysis.trace.clocks import RankClock
from dejavubench.analysis.trace.document import events_of
from dejavubench.analysis.trace.events import MOST_LANES, Event, Passage, Process, lay_out_lanes
from dejavubench.analysis.trace.sink_lanes import add_arrivals
from dejavubench.bench.environment import clock_offset
from dejavubench.bench.environment.clock_offset import RoundTrip, estimate_offset
from dejavubench.records import (
    HostClock,
    Microbatch,
    SinkChunkTimes,
    TimedArrivals,
    TimedChunks,
    read_chunk_times,
    read_run,
    read_sink_times,
)
from helpers import chrome_trace
from helpers.chrome_trace import Complete, Instant, Trace
from helpers.cli_calls import call, usage_error
from helpers.jobs import QUICK, args, run
from helpers.synthetic_runs import AGAIN, NONE, arm_of, point_of, write_run

ARMS = ("none", "host@1", "host@3", "mpi@0", "mpi@1", "mpi@3")
LAYERS, STEPS = 2, 5


# ---- a real job ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run to host and mpi at three levels. CPU, fp32, 1 thread."""
    flags = args("--warmup 1 --rounds 1 --level 0,1,3 --streaming none,host,mpi")
    return run(tmp_path_factory.mktemp("job"), 2, "run", *QUICK, *flags).folder


@pytest.fixture(scope="module")
def traces(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trace]:
    """Its traces by arm, each read by the format's rules."""
    traces_by_arm = {}
    target = tmp_path_factory.mktemp("traces")
    for name in ARMS:
        path = target / f"{name}.json"
        trace_call = call("trace", folder, "--arm", name, "-o", path)
        assert trace_call.exit_code == 0, trace_call.stderr
        assert trace_call.stdout == ""
        assert f"{path}: open it at ui.perfetto.dev" in trace_call.stderr
        traces_by_arm[name] = chrome_trace.read(path)
    return traces_by_arm


def times_of(folder: Path, name: str) -> TimedChunks:
    (timed_chunks,) = [
        timed
        for timed in read_chunk_times(folder)
        if (timed.times.arm, timed.times.round) == (name, 0)
    ]
    return timed_chunks


def microbatch_of(folder: Path, name: str) -> Microbatch:
    (recorded,) = [
        microbatch
        for _, microbatch in read_run(folder).records_of(Microbatch)
        if (microbatch.arm, microbatch.round) == (name, 0)
    ]
    return recorded


@pytest.mark.mpi
@pytest.mark.parametrize("name", ARMS)
def test_the_model_lane_has_every_step_with_the_time_of_the_record(
    folder: Path, traces: dict[str, Trace], name: str
) -> None:
    record = microbatch_of(folder, name)
    steps = traces[name].slices(0, "model")
    tokens = [f"token {step}" for step in range(1, STEPS + 1)]
    assert [step.name for step in steps] == ["prompt", *tokens, "drain"]
    lengths = [record.prompt_ms, *record.token_ms, record.drain_ms]
    # Begin and length are rounded to nanoseconds one by one.
    assert [step.dur for step in steps] == pytest.approx([ms * 1e3 for ms in lengths], abs=0.003)
    all_tokens = steps[-2].end - steps[1].ts
    assert all_tokens == pytest.approx(record.all_token_ms * 1e3, abs=0.003)
    assert traces[name].data["total_ms"] == record.total_ms
    assert [mark.name for mark in traces[name].moments(0, "phase marks")] == [
        "prompt",
        "tokens",
        "drain",
    ]


@pytest.mark.mpi
@pytest.mark.parametrize("name", ARMS)
def test_everything_lies_within_the_iteration(traces: dict[str, Trace], name: str) -> None:
    trace = traces[name]
    first_mark = trace.moments(0, "phase marks")[0]
    end = trace.slices(0, "model")[-1].end
    for events in trace.lanes[trace.process(0)].values():
        assert first_mark.ts <= events[0].ts
        last_event = events[-1]
        assert (
            last_event.end if isinstance(last_event, Complete) else last_event.ts
        ) <= end + 0.001


@pytest.mark.mpi
@pytest.mark.parametrize("name", ARMS[1:])
def test_the_parts_of_each_chunk_sum_to_its_latency(
    folder: Path, traces: dict[str, Trace], name: str
) -> None:
    timed = times_of(folder, name)
    trace = traces[name]
    part_names = {part.name for part in timed.chunk_list.prompt_parts}
    parts: dict[str, list[Complete]] = defaultdict(list)
    for lane in part_names & {title.partition(" (")[0] for title in trace.lanes[trace.process(0)]}:
        for event in trace.slices(0, lane):
            parts[event.name].append(event)
    assert len(parts) == len(timed.chunk_list.chunks)
    latencies = sorted(
        complete - ready
        for complete, ready in zip(timed.times.complete, timed.times.ready, strict=True)
    )
    shown = sorted(sum(part.dur for part in parts_of_chunk) for parts_of_chunk in parts.values())
    # Each slice that touches the next one of its lane ends a nanosecond early.
    early_us = 1e-3 * len(part_names)
    assert shown == pytest.approx([ns / 1e3 for ns in latencies], abs=early_us)
    for parts_of_chunk in parts.values():
        ordered = sorted(parts_of_chunk, key=lambda part: (part.ts, part.end))
        span_us = ordered[-1].end - ordered[0].ts
        assert span_us == pytest.approx(ordered[0].args["latency µs"], abs=early_us)
        for earlier_part, later_part in pairwise(ordered):
            assert later_part.ts == pytest.approx(earlier_part.end, abs=1.5e-3)


@pytest.mark.mpi
def test_layers_of_the_prompt_are_shown_where_each_left_by_itself(
    traces: dict[str, Trace],
) -> None:
    layers = traces["mpi@3"].slices(0, "layers in place")
    assert [layer.name for layer in layers] == [f"layer {n}" for n in range(LAYERS)]
    prompt = traces["mpi@3"].slices(0, "model")[0]
    assert layers[0].ts == prompt.ts
    assert layers[0].end == pytest.approx(layers[1].ts, abs=1.5e-3)
    assert layers[-1].end <= prompt.end
    assert all(layer.args["begin is"].startswith("derived: ") for layer in layers)
    for name in ("none", "mpi@1"):
        assert not traces[name].slices(0, "layers in place")


@pytest.mark.mpi
@pytest.mark.parametrize("name", ARMS[1:])
def test_stalls_sum_to_what_the_record_counts(
    folder: Path, traces: dict[str, Trace], name: str
) -> None:
    record = microbatch_of(folder, name)
    stalls = traces[name].slices(0, "stall")
    for phase in ("tokens", "drain"):
        shown = [stall.dur for stall in stalls if f"({phase})" in stall.name]
        assert sum(shown) == pytest.approx(getattr(record, phase).stall_ms * 1e3, abs=0.01)
    # The prompt's also counts the look, before the clock, for chunks of the microbatch before.
    prompt = sum(stall.dur for stall in stalls if "(prompt)" in stall.name)
    assert prompt <= record.prompt.stall_ms * 1e3 + 0.01
    assert len(stalls) == STEPS + 2 + (LAYERS if name.endswith("@3") else 0)


@pytest.mark.mpi
@pytest.mark.parametrize("name", ARMS[1:])
def test_the_lag_begins_and_ends_at_zero(folder: Path, traces: dict[str, Trace], name: str) -> None:
    trace = traces[name]
    lag = trace.counters[trace.process(0)]["lag"]
    values = [event.args["bytes"] for event in lag]
    assert min(values) == values[-1] == 0
    assert max(values) >= max(chunk.nbytes for chunk in times_of(folder, name).chunk_list.chunks)


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["mpi@0", "mpi@1", "mpi@3"])
def test_the_sink_has_each_chunk_after_it_was_gathered(
    folder: Path, traces: dict[str, Trace], name: str
) -> None:
    trace = traces[name]
    timed = times_of(folder, name)
    (arrivals,) = [
        timed.times
        for timed in read_sink_times(folder)
        if (timed.times.arm, timed.times.round) == (name, 0)
    ]
    events: Sequence[Complete | Instant] = trace.slices(1, "sink")
    if arrivals.received is None:
        events = trace.moments(1, "sink")
    assert len(events) == len(timed.chunk_list.chunks)
    # Both ranks read one clock, so cause and effect are in order.
    start = trace.slices(0, "model")[0].ts
    for event, gathered in zip(events, timed.times.gathered, strict=True):
        assert start + gathered / 1e3 <= event.ts
    parts = {title for title in trace.lanes[trace.process(0)] if title.startswith("queue")}
    chunk_names = {event.name for title in parts for event in trace.slices(0, title)}
    assert {event.name for event in events} == chunk_names
    # An arrow leads to each of them from the call that sent it.
    call_title = "move" if name == "mpi@0" else "post"
    posted = trace.slices(0, call_title)
    assert len(trace.arrows) == len(events)
    for begin, end in trace.arrows:
        assert begin in posted
        assert end in events
        assert begin.name == end.name


@pytest.mark.mpi
def test_an_arm_whose_chunks_stay_leaves_the_sink_empty(traces: dict[str, Trace]) -> None:
    for name in ("none", "host@3"):
        trace = traces[name]
        assert trace.arrows == []
        assert [mark.name for mark in trace.moments(1, "phase marks")] == ["idle"]
        assert set(trace.lanes[trace.process(1)]) == {"phase marks"}


@pytest.mark.mpi
def test_ranks_of_one_host_read_one_clock(traces: dict[str, Trace]) -> None:
    for clock in traces["mpi@3"].data["clocks"]:
        assert clock["said"].startswith("offset 0: ")
    assert not any("±" in title for title in traces["mpi@3"].lanes)


@pytest.mark.mpi
def test_an_existing_file_stays_without_force(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text("mine")
    assert usage_error(call("trace", folder, "-o", path)).endswith(
        "exists. Use --force to overwrite it"
    )
    assert path.read_text() == "mine"
    assert call("trace", folder, "-o", path, "--force").exit_code == 0
    assert chrome_trace.read(path).data["point"] == "p000"


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--point p007", "there is no measured point 'p007'. There is: p000"),
        (
            "--arm mpi@2",
            "there is no measured arm 'mpi@2'. There is: none, none#2, host@0, host@1, host@3, "
            "mpi@0, mpi@1, mpi@3",
        ),
        ("--arm mpi@3 --round 2", "mpi@3 has no measured round 2. It has: 1"),
    ],
)
def test_a_wrong_name_gets_a_list_of_what_is_there(
    folder: Path, tmp_path: Path, flags: str, message: str
) -> None:
    assert usage_error(call("trace", folder, *args(flags), "-o", tmp_path / "x.json")) == message


def test_lanes_of_several_microbatches_have_titles_of_their_own() -> None:
    process = Process(2, "rank 2")
    arrivals = [
        TimedArrivals(2, make_sink_times(peer, microbatch))
        for peer in (0, 1)
        for microbatch in (0, 1)
    ]
    add_arrivals(process, arrivals, [], lambda ns: ns)
    titles = [lane.title for lane in process.lanes]
    assert titles == [
        f"sink from rank {peer} of microbatch {microbatch}"
        for peer in (0, 1)
        for microbatch in (0, 1)
    ]


def make_sink_times(peer: int, microbatch: int) -> SinkChunkTimes:
    return SinkChunkTimes(
        point="p000",
        arm="mpi@3",
        iteration=0,
        round=0,
        ubatch=microbatch,
        peer=peer,
        stream=microbatch,
        began_ns=0,
        received=[1],
        scattered=[2],
    )


# ---- the choice of an iteration ----


def test_records_without_times_of_steps_are_refused(tmp_path: Path) -> None:
    older_run = write_run(tmp_path / "old", [NONE, AGAIN, arm_of("host")], [point_of()])
    message = usage_error(call("trace", older_run, "-o", tmp_path / "x.json"))
    assert "too old for a trace" in message
    assert not (tmp_path / "x.json").exists()


def test_a_round_is_a_word_or_a_number(tmp_path: Path) -> None:
    for word in ("0", "best", "-1", "1.5"):
        trace_call = call("trace", tmp_path, "--round", word, "-o", tmp_path / "x.json")
        assert trace_call.exit_code == 2
        assert "neither median nor worst" in trace_call.stderr


def test_of_several_runs_one_must_be_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / "logs" / name, [NONE], [point_of()])
    trace_call = call("trace", tmp_path / "logs", "-o", tmp_path / "x.json")
    assert trace_call.exit_code == 2
    assert "holds 2 runs" in trace_call.stderr
    assert str(tmp_path / "logs" / "b") in trace_call.stderr


def test_defaults_are_the_costliest_arm_and_the_lower_median_round(tmp_path: Path) -> None:
    factors = {"host@3": 1.01, "mpi@3": 1.2, "disk@3": 1.1}
    arms = [NONE, AGAIN, *map(arm_of, ("host", "mpi", "disk"))]
    run_read = read_run(write_run(tmp_path / "run", arms, [point_of()], rounds=6, factors=factors))
    chosen = choose(run_read, None, None, "median")
    assert (chosen.point_id, chosen.arm_name) == ("p000", "mpi@3")
    totals = {
        microbatch.round: microbatch.total_ms
        for _, microbatch in run_read.records_of(Microbatch)
        if microbatch.arm == "mpi@3" and microbatch.round is not None
    }
    assert chosen.total_ms == sorted(totals.values())[2]
    assert totals[chosen.round] == chosen.total_ms
    assert re.search(r"ms, \+\d\d\.\d % over none in that round$", str(chosen))


def test_the_worst_round_is_worst_beside_the_baselines_of_the_same_round(tmp_path: Path) -> None:
    run_read = read_run(
        write_run(
            tmp_path / "run", [NONE, AGAIN, arm_of("mpi")], [point_of()], rounds=10, noise=0.05
        )
    )
    worst = choose(run_read, None, "mpi@3", "worst")
    rounds = [choose(run_read, None, "mpi@3", str(number)) for number in range(1, 11)]
    assert worst.overhead == max(
        chosen.overhead for chosen in rounds if chosen.overhead is not None
    )
    # A round of its own drift is the slowest one, which is not the one that streaming cost most.
    assert worst.total_ms < max(chosen.total_ms for chosen in rounds)
    assert choose(run_read, None, "none", "worst").overhead is None


def test_a_run_without_measured_rounds_has_nothing_to_choose(tmp_path: Path) -> None:
    run_read = read_run(write_run(tmp_path / "run", [NONE], [point_of()], rounds=0))
    with pytest.raises(TraceError, match="no measured rounds"):
        choose(run_read, None, None, "median")


# ---- lanes ----

SPANS = st.tuples(st.integers(0, 40), st.integers(0, 10))


@given(st.lists(SPANS, max_size=60))
def test_events_of_a_lane_never_overlap_and_none_is_lost(spans: list[tuple[int, int]]) -> None:
    events = [Event(str(n), begin, begin + length) for n, (begin, length) in enumerate(spans)]
    lanes, left_out = lay_out_lanes("wire", events)
    assert len(lanes) <= MOST_LANES
    shown = [event for lane in lanes for event in lane.events]
    assert len(shown) + left_out == len(events)
    assert len({event.name for event in shown}) == len(shown)
    for lane in lanes:
        for earlier_event, later_event in zip(lane.events, lane.events[1:], strict=False):
            assert earlier_event.last_ns <= later_event.begin_ns


def test_what_finds_no_lane_is_counted_in_a_note() -> None:
    process = Process(3, "rank 3")
    process.add("queue", [Event("chunk", begin_ns=0, end_ns=10) for _ in range(MOST_LANES + 2)])
    assert [lane.title for lane in process.lanes[:2]] == ["queue", "queue (2)"]
    (note,) = process.notes
    assert note.startswith("rank 3: 2 events of 'queue' are left out")


# ---- clocks of hosts ----

WAYS = st.integers(1, 10**7)


@given(
    st.integers(-(10**12), 10**12),
    st.integers(0, 10**12),
    st.lists(st.tuples(WAYS, WAYS), min_size=1),
)
def test_the_true_offset_is_within_the_error_however_unequal_the_ways(
    true_offset: int, began: int, ways: list[tuple[int, int]]
) -> None:
    trips = [
        RoundTrip(began, began + true_offset + out_ns, began + out_ns + back_ns)
        for out_ns, back_ns in ways
    ]
    offset = estimate_offset("a", trips)
    assert abs(offset.offset_ns - true_offset) <= offset.error_ns
    assert offset.error_ns <= min(out_ns + back_ns for out_ns, back_ns in ways) / 2 + 1.5


class FakeComm:
    """A communicator between threads, as far as a measurement needs it."""

    def __init__(self, rank: int, size: int, boxes: dict[tuple[int, int], Queue[int]]) -> None:
        self.rank, self.size = rank, size
        self._boxes = boxes

    def Send(self, buffer: Any, destination: int) -> None:  # noqa: N802 - as MPI spells it
        self._boxes[self.rank, destination].put(buffer[0])

    def Recv(self, buffer: Any, source: int) -> None:  # noqa: N802 - as MPI spells it
        buffer[0] = self._boxes[source, self.rank].get(timeout=10)

    def allgather(self, value: Any) -> list[Any]:
        for rank in range(self.size):
            self._boxes[self.rank, rank].put(value)
        return [self._boxes[source, self.rank].get(timeout=10) for source in range(self.size)]


def test_each_rank_gets_the_offset_that_its_host_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four ranks on three hosts, whose clocks are set apart by hand. No MPI, no device."""
    hosts = ["a", "b", "b", "c"]
    true_offsets = {"a": 0, "b": 5 * 10**9, "c": -7 * 10**9}
    thread = threading.local()
    real_clock = time.perf_counter_ns
    monkeypatch.setattr(
        clock_offset, "perf_counter_ns", lambda: real_clock() - true_offsets[thread.host]
    )
    boxes: dict[tuple[int, int], Queue[int]] = defaultdict(Queue)
    for pair in ((sender, receiver) for sender in range(4) for receiver in range(4)):
        boxes[pair] = Queue()
    clocks: dict[int, dict[str, Any]] = {}

    def measure(rank: int) -> None:
        thread.host = hosts[rank]
        clocks[rank] = clock_offset.measure(cast(Any, FakeComm(rank, 4, boxes)), hosts)["clock"]

    ranks = [threading.Thread(target=measure, args=(rank,)) for rank in range(4)]
    for rank_thread in ranks:
        rank_thread.start()
    for rank_thread in ranks:
        rank_thread.join(20)
    assert clocks[1] == clocks[2]
    for rank, clock in clocks.items():
        assert clock["reference"] == "a"
        assert abs(clock["offset_ns"] - true_offsets[hosts[rank]]) <= clock["error_ns"]
    assert (clocks[0]["error_ns"], clocks[0]["round_trips"]) == (0, 0)
    assert clocks[3]["round_trips"] == clock_offset.ROUND_TRIP_COUNT


def clock_of(offset: int, error: int, common: int) -> HostClock:
    return HostClock(reference="a", offset_ns=offset, error_ns=error, at_ns=common, round_trips=100)


def test_a_drift_is_taken_as_even_between_start_and_end() -> None:
    clock = RankClock(
        1,
        "b",
        "a",
        clock_of(offset=1000, error=12_000, common=0),
        clock_of(offset=3000, error=9_000, common=10_000),
    )
    assert [clock.to_common(ns) for ns in (0, 5_000, 10_000)] == [1_000, 7_000, 13_000]
    assert clock.error_ns == 12_000
    assert str(clock) == "host b, clock ±12 µs"
    assert clock.facts()["start"] == {"offset_ns": 1000, "error_ns": 12_000}


def test_without_an_offset_another_hosts_times_cannot_be_placed() -> None:
    assert not RankClock(1, "b", "a", None, None).is_known
    compared_once = RankClock(1, "b", "a", clock_of(offset=1000, error=12_000, common=0), None)
    assert compared_once.to_common(5) == 1005
    assert "drift since is not known" in compared_once.facts()["said"]
    assert RankClock(1, "a", "a", None, None).to_common(5) == 5


def test_an_arrow_needs_both_ends_in_order() -> None:
    """Of two hosts, a clock's error can let a chunk arrive before it has left."""
    passages = [Passage(source=0, sink=1, stream=0, chunk_number=number) for number in range(3)]
    source = Process(0, "rank 0, source")
    sink = Process(1, "rank 1, sink")
    source.add("post", [Event("a", begin_ns=10, end_ns=20, leaves=passages[0])])
    source.add("post", [Event("b", begin_ns=50, end_ns=60, leaves=passages[1])])
    sink.add("sink", [Event("a", begin_ns=15, end_ns=30, arrives=passages[0])])
    # Chunk 1 arrives before it has left, and nobody has sent chunk 2.
    sink.add("sink", [Event("b", begin_ns=40, end_ns=45, arrives=passages[1])])
    sink.add("sink", [Event("c", begin_ns=70, end_ns=80, arrives=passages[2])])
    trace = cast(Any, SimpleNamespace(processes=[source, sink], zero_ns=0))
    ends = [event for event in events_of(trace) if event["ph"] in "sf"]
    assert [(end["ph"], end["id"], end["ts"], end["pid"]) for end in ends] == [
        ("s", 1, 0.01, 1),
        ("f", 1, 0.015, 2),
    ]
