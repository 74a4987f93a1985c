"""NVTX ranges: balanced and nested on each thread, and named like the lanes of a trace.

CPU, int16 caches, one thread beside the helper; a fake recorder of ranges stands for NVTX. The test
on a GPU runs a job in fp16 with 1 rank.
"""

from __future__ import annotations

import json
import re
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dejavubench.analysis.trace import source_lanes
from dejavubench.analysis.trace.events import Process
from dejavubench.bench.profiling import nvtx
from dejavubench.bench.profiling.ranged_maker import RangedBatchMaker
from dejavubench.bench.profiling.ranged_recorder import RangedRecorder
from dejavubench.bench.recording.chunk_file import ChunkFile
from dejavubench.bench.recording.microbatches import IterationId, make_microbatch_record
from dejavubench.bench.recording.recorder import Recorder
from dejavubench.config.arms import Arm
from dejavubench.config.experiment import Experiment
from dejavubench.dejavulib.destinations.base import Destination
from dejavubench.dejavulib.destinations.disk import DiskDestination
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.packing import staging
from dejavubench.dejavulib.ranged_streamer import RangedStreamer, push_range
from dejavubench.records import lanes, read_chunk_times
from helpers.caches import random_cache
from helpers.cli_calls import usage_error_of
from helpers.fake_destination import (
    INPUT_LEN,
    PATIENCE,
    STEPS,
    WHOLE_LAYERS,
    FakeDestination,
    make_small_stream,
)
from helpers.fake_steps import EmptySteps, collectives_of_one_rank, model_of_one_stage
from helpers.gpu_marks import needs_gpus
from helpers.jobs import QUICK, args, run
from helpers.paths import DRIVERS

LAYERS = 3
MODEL_THREAD, HELPER = "MainThread", "streamer"


class FakeRanges:
    """A recorder of ranges: for each thread, the names at each depth, in the order of their begin.

    Attributes:
        begun: (depth, name) of each range by the name of its thread.
        open: names of the ranges that have not ended, by the name of their thread.
    """

    def __init__(self) -> None:
        self.begun: dict[str, list[tuple[int, str]]] = defaultdict(list)
        self.open: dict[str, list[str]] = defaultdict(list)

    def push(self, name: str) -> None:
        thread = threading.current_thread().name
        self.begun[thread].append((len(self.open[thread]), name))
        self.open[thread].append(name)

    def pop(self) -> None:
        self.open[threading.current_thread().name].pop()  # an IndexError if none is open


class FakeSteps(EmptySteps):
    """Steps that compute nothing; a prompt reports its layers."""

    keeps_all_checks = True

    def run(
        self,
        microbatch: int,
        x: torch.Tensor,
        position: int,
        on_layer: Callable[[int], None] | None,
    ) -> torch.Tensor:
        for layer in range(LAYERS if on_layer else 0):
            assert on_layer is not None
            on_layer(layer)
        return torch.empty(0)

    def wait(self, microbatch: int) -> torch.Tensor:
        return torch.zeros(2, dtype=torch.long)


def trace_microbatch(
    destination: Destination, level: str, tmp_path: Path
) -> tuple[FakeRanges, dict[str, set[str]]]:
    """Run a microbatch with ranges; return them, and the events of its trace by lane."""
    ranges = FakeRanges()
    stream = make_small_stream()
    streamer = RangedStreamer(ranges, destination, staging(WHOLE_LAYERS, 2))
    try:
        cache = random_cache(stream.schedule.geometry)
        manager = CacheManager(cache, [stream], LEVELS[level], streamer, PATIENCE)
        prompt = torch.zeros(2, INPUT_LEN, dtype=torch.long)
        model, alone = model_of_one_stage(LAYERS), collectives_of_one_rank()
        maker = RangedBatchMaker(ranges, model, FakeSteps(), alone, [prompt], STEPS + 1)
        manager.begin()
        (clock,), _ = maker.run([manager], lambda phase: None)
    finally:
        streamer.close()
    when = IterationId(point="p000", arm="fake", iteration=0, round=0)
    file = ChunkFile(tmp_path, 0)
    file.write(Arm("fake", "fake", level), when, [clock], [manager])
    file.close()
    process = Process(0, "rank 0")
    record = make_microbatch_record(
        when, microbatch_index=0, clock=clock, stream=manager, cpu_s=0.0, helper_cpu_s=0.0
    )
    source_lanes.add_model(process, [record], lambda ns: ns)
    source_lanes.add_chunks(process, list(read_chunk_times(tmp_path)), lambda ns: ns)
    drawn: dict[str, set[str]] = defaultdict(set)
    for lane in process.lanes:
        # What overlaps takes further rows, such as "queue (2)".
        drawn[re.sub(r" \(\d+\)$", "", lane.title)] |= {event.name for event in lane.events}
    return ranges, drawn


TOKENS = [f"token {step}" for step in range(1, STEPS + 1)]


@pytest.mark.parametrize("level", ["0", "1", "2", "3"])
def test_ranges_are_balanced_and_named_like_the_lanes(level: str, tmp_path: Path) -> None:
    ranges, drawn = trace_microbatch(FakeDestination(), level, tmp_path)
    assert set(ranges.begun) == {MODEL_THREAD, HELPER}
    assert not any(ranges.open.values())
    named: dict[str, set[str]] = defaultdict(set)
    for ranges_of_thread in ranges.begun.values():
        for _, name in ranges_of_thread:
            lane, _, title = name.partition(": ")
            named[lane].add(title)
    assert set(named) <= set(drawn) | {lanes.LAYERS}
    assert named[lanes.MODEL] == drawn[lanes.MODEL] == {"prompt", *TOKENS, "drain"}
    # The drain has a range of the model's. Its wait in the library has none beside it.
    assert named[lanes.STALL] | {lanes.wait_title("drain")} == drawn[lanes.STALL]
    assert named[lanes.LAYERS] == {f"layer {layer}" for layer in range(LAYERS)}
    for lane in set(named) - {lanes.MODEL, lanes.STALL, lanes.LAYERS}:
        assert named[lane] == drawn[lane], lane


@pytest.mark.parametrize("level", ["1", "3"])
def test_the_models_ranges_nest(level: str, tmp_path: Path) -> None:
    ranges, _ = trace_microbatch(FakeDestination(), level, tmp_path)
    wait = lanes.wait_title("prompt")
    in_prompt = [
        title
        for layer in range(LAYERS)
        for title in ((1, f"layers in place: layer {layer}"), (1, f"stall: {wait}"))
    ]
    steps = [
        title
        for token in TOKENS
        for title in ((0, f"model: {token}"), (0, f"stall: {lanes.wait_title('tokens')}"))
    ]
    assert ranges.begun[MODEL_THREAD] == [
        (0, "model: prompt"),
        *in_prompt,
        (0, f"stall: {wait}"),
        *steps,
        (0, "model: drain"),
    ]


@pytest.mark.parametrize(
    ("level", "parts"), [("0", ["move"]), ("1", ["gather", "post"]), ("3", ["gather", "post"])]
)
def test_the_helper_has_a_range_for_each_part_of_each_chunk(
    level: str, parts: list[str], tmp_path: Path
) -> None:
    ranges, _ = trace_microbatch(FakeDestination(), level, tmp_path)
    prompt = [f"layer {layer}" for layer in range(LAYERS)] if level == "3" else ["prompt"]
    expected = [(0, f"{part}: {title}") for title in [*prompt, *TOKENS] for part in parts]
    assert ranges.begun[HELPER] == expected


def test_parts_are_those_that_the_destination_declares(tmp_path: Path) -> None:
    disk = DiskDestination(tmp_path, "test", "page-cache", False, {})
    ranges, _ = trace_microbatch(disk, "3", tmp_path)
    assert {name.partition(":")[0] for _, name in ranges.begun[HELPER]} == {"gather", "write"}


class Failing(FakeDestination):
    def flush(self, *_: object) -> None:
        raise ValueError("no")


def test_ranges_end_where_streaming_fails(tmp_path: Path) -> None:
    ranges = FakeRanges()
    with pytest.raises(Exception, match="ValueError: no"):
        # The streamer is closed on the way, so its thread has ended.
        stream_to_failure(ranges)
    assert ranges.begun[HELPER]
    assert not ranges.open[HELPER]


def stream_to_failure(ranges: FakeRanges) -> None:
    stream = make_small_stream()
    streamer = RangedStreamer(ranges, Failing(), staging(WHOLE_LAYERS, 2))
    try:
        cache = random_cache(stream.schedule.geometry)
        manager = CacheManager(cache, [stream], LEVELS["1"], streamer, PATIENCE)
        manager.begin()
        manager.step_ready(0)
    finally:
        streamer.close()


def test_phases_lie_within_the_iteration_of_their_arm(tmp_path: Path) -> None:
    ranges = FakeRanges()
    recorder = RangedRecorder(ranges, tmp_path, rank=0, has_several_points=False, to_stdout=False)
    recorder.mark_phase("load", point="p000")
    for iteration in range(2):
        for phase in ("prepare", "prompt"):
            recorder.mark_phase(phase, point="p000", arm="mpi@3", iteration=iteration)
            with push_range(ranges, "model: prompt"):
                pass
    recorder.mark_phase("end")
    recorder.close()
    assert ranges.open == {MODEL_THREAD: []}
    in_iteration = [
        *((1, "phase marks: prepare"), (2, "model: prompt")),
        *((1, "phase marks: prompt"), (2, "model: prompt")),
    ]
    assert ranges.begun[MODEL_THREAD] == [
        (0, "phase marks: load"),
        (0, "p000 mpi@3, iteration 0"),
        *in_iteration,
        (0, "p000 mpi@3, iteration 1"),
        *in_iteration,
        (0, "phase marks: end"),
    ]
    written = (tmp_path / "rank-0000.jsonl").read_text().splitlines()
    assert len(written) == 6


def test_without_nvtx_the_plain_class_is_made(tmp_path: Path) -> None:
    off, on = Experiment(), Experiment(nvtx=True)
    assert nvtx.choose_ranged_maker(off, Recorder, RangedRecorder) is Recorder
    recorder = nvtx.choose_ranged_maker(on, Recorder, RangedRecorder)(
        tmp_path, 0, has_several_points=False, to_stdout=False, session=2
    )
    assert isinstance(recorder, RangedRecorder)
    assert recorder.session == 2
    assert on.settings() == ["--nvtx"]


def test_nvtx_is_refused_on_a_cpu() -> None:
    error = usage_error_of("run", *QUICK, "--nvtx", "--dry-run")
    assert error.startswith("--nvtx needs --device cuda, not cpu: ")


@pytest.mark.gpu
@needs_gpus(1)
def test_a_job_on_a_gpu_pushes_its_ranges(tmp_path: Path) -> None:
    device = args("--device cuda --inference-data-type fp16 --size-per-head 32 --nvtx")
    flags = (*QUICK, *device, *args("--streaming none,host --warmup 0 --rounds 1"))
    job = run(tmp_path, 1, "run", *flags, driver=(DRIVERS / "ranged.py",))
    assert "--nvtx" in (job.run.header.settings or [])
    ranges = json.loads((tmp_path / "ranges-0.json").read_text())
    assert set(ranges) >= {MODEL_THREAD, HELPER}
    event_names = {name for events in ranges.values() for _, name in events}
    expected = {"model: prompt", "model: token 1", "model: drain", "phase marks: tokens"}
    assert expected <= event_names
    assert {"layers in place: layer 0", "layers in place: layer 1"} <= event_names
    assert any(name.endswith("host@3, iteration 0") for name in event_names)
    assert any("copy to host: token 1" in name for name in event_names)
    assert "notice: token 1" in event_names  # the copy has brought the chunk into its place
    depths = [depth for depth, _ in ranges[HELPER]]
    assert set(depths) == {0}
