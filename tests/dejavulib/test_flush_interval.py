"""Steps that move as one: every byte arrives, the lag counts them, and both sides agree.

On a CPU. The schedule itself is tested in test_schedule.py, killed runs in test_restart.py too.
"""

from __future__ import annotations

import csv
import ctypes
import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from dejavubench.analysis.prediction import StreamedRequest
from dejavubench.config.points import Point
from dejavubench.config.resolve import load
from dejavubench.dejavulib.destinations.base import Stream, StreamingError
from dejavubench.dejavulib.destinations.disk import DiskDestination, SavedStream, stream_file
from dejavubench.dejavulib.destinations.host import HostDestination
from dejavubench.dejavulib.destinations.tcp.offer import TCPOffer, make_schedules, read_offer
from dejavubench.dejavulib.extents import ExtentAddresses, ExtentViews, cut_extent_views
from dejavubench.dejavulib.geometry import KVGeometry
from dejavubench.dejavulib.kv_cache import BOTH, KVCache, KVLayout, Span
from dejavubench.dejavulib.levels import LEVELS, Level
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.schedule import StreamSchedule
from dejavubench.dejavulib.swapping.swapper import Swapper
from dejavubench.errors import UsageError
from dejavubench.records import Microbatch, Verification
from helpers.caches import packed_stream, play_model, random_cache
from helpers.cli_calls import stdout_of, usage_error_of
from helpers.disk_files import (
    IDENTITY,
    NEW_TOKENS,
    PROMPT,
    open_stream_file,
    path_of,
    read,
    stream_microbatch,
)
from helpers.disk_files import schedule_of as file_schedule
from helpers.fake_destination import (
    CUT_LAYERS,
    INPUT_LEN,
    PATIENCE,
    STEPS,
    WHOLE_LAYERS,
    FakeDestination,
    begin_over,
    filled_cache,
    make_destination,
    small_geometry,
    stored_bytes,
    streaming,
)
from helpers.fake_destination import schedule_of as small_schedule
from helpers.jobs import QUICK, args, last_of_each, process_folder, run

INTERVALS = (2, STEPS, STEPS + 1)
"""Of 3 decode steps: one that does not divide them, all of them, and more than there are."""

levels = pytest.mark.parametrize("level", LEVELS.values(), ids=list(LEVELS))


def schedule_of(
    interval: int, slot: int = WHOLE_LAYERS, layout: KVLayout = KVLayout.HND
) -> StreamSchedule:
    return small_schedule(small_geometry(layout), slot, interval=interval)


def steps_that_leave(interval: int) -> list[int]:
    return [step for step in range(STEPS + 1) if step % interval == 0 or step == STEPS]


# ---- the bytes, at every level ----


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize("slot", [WHOLE_LAYERS, CUT_LAYERS])
@levels
@pytest.mark.parametrize("kind", ["memory", "host", "page-cache"])
def test_every_byte_arrives_whatever_the_flush_interval(
    kind: str, level: Level, slot: int, interval: int, tmp_path: Path
) -> None:
    for seed, layout in enumerate(KVLayout):
        stream = Stream(id=0, schedule=schedule_of(interval, slot, layout))
        source, cache = random_cache(stream.schedule.geometry, seed), None
        (tmp_path / layout).mkdir()
        with streaming(make_destination(kind, tmp_path / layout), slot) as streamer:
            cache = filled_cache(stream.schedule.geometry, 0)
            manager = CacheManager(cache, [stream], level, streamer, PATIENCE)
            begin_over(manager, streamer, 0x21)
            play_model(source, cache, stream.schedule, manager)
            manager.drain()
            assert stored_bytes(streamer.destination, stream) == packed_stream(
                source, stream.schedule
            )
            assert manager.prompt.nbytes + manager.tokens.nbytes == stream.schedule.nbytes
            if isinstance(streamer.destination, DiskDestination):
                streamer.destination.check(stream)


@pytest.mark.parametrize(
    ("layout", "every_step", "four"),
    [
        # 2 requests × 2 heads of 16 elements of 2 bytes: K and V of 3 layers.
        (KVLayout.HND, (24, 32), (24, 128)),
        (KVLayout.NHD, (12, 64), (12, 256)),
        (KVLayout.FT, (36, None), (36, None)),  # V as in hnd; K in 2 vectors of 16 bytes per head
    ],
)
def test_a_longer_interval_makes_extents_larger_and_not_more(
    layout: KVLayout, every_step: tuple[int, int | None], four: tuple[int, int | None]
) -> None:
    geometry = KVGeometry(
        layers=3, requests=2, heads=2, positions=12, head_size=16, itemsize=2, layout=layout
    )
    for interval, (count, nbytes) in ((1, every_step), (4, four)):
        schedule = StreamSchedule(
            geometry,
            geometry.whole,
            input_len=4,
            steps=8,
            slot_nbytes=1 << 16,
            flush_interval=interval,
        )
        extents = list(schedule.extents(interval))
        assert sum(len(extent.offsets) for extent in extents) == count
        sizes = {extent.kv: extent.nbytes for extent in extents}
        expected = {"k": 16 * interval, "v": 32 * interval}
        assert sizes == (expected if nbytes is None else {"k": nbytes, "v": nbytes})


@pytest.mark.parametrize("kept", [0, 200_000])
def test_extents_are_found_ahead_for_the_next_group(kept: int) -> None:
    schedule = schedule_of(2)
    cache = random_cache(schedule.geometry)
    views, addresses = ExtentViews(cache, schedule, kept), ExtentAddresses(cache, schedule, kept)
    assert (schedule.step_after(0), schedule.step_after(2), schedule.step_after(3)) == (2, 3, 4)
    for step in steps_that_leave(2):
        expected = b"".join(cut_extent_views(cache, schedule.extents(step)))
        assert len(expected) == schedule.step_nbytes(step)
        assert b"".join(views.of_step(step)) == expected
        contents = [
            ctypes.string_at(address, nbytes) for address, nbytes in addresses.of_step(step)
        ]
        assert b"".join(contents) == expected
        following = schedule.step_after(step)
        for way in (views, addresses) if step < 3 else ():
            # A list that is made on demand is another one each time.
            assert (way.of_step(following) is way.of_step(following)) == bool(kept)
            way.prepare(following)
            assert way.of_step(following) is way.of_step(following)
    assert (views.of_step(1), addresses.of_step(1)) == ([], [])  # nothing leaves at its end


# ---- lag and waits ----


@levels
def test_a_step_within_a_group_waits_for_nothing_and_counts_as_lag(level: Level) -> None:
    stream = Stream(id=0, schedule=schedule_of(2))
    position_nbytes = stream.schedule.position_nbytes
    cache = random_cache(stream.schedule.geometry)
    with streaming(FakeDestination()) as streamer:
        manager = CacheManager(cache, [stream], level, streamer, PATIENCE)
        manager.begin()
        for layer in range(3):
            manager.layer_ready(layer)
        manager.step_ready(0)
        streamer.wait(manager._byte_progress, PATIENCE)
        assert manager.lag_nbytes == 0
        manager.step_ready(1)
        assert (manager.lag_nbytes, manager.tokens.nbytes) == (position_nbytes, 0)
        with pytest.raises(
            StreamingError, match=f"{position_nbytes} bytes of decode steps cannot be drained"
        ):
            manager.drain()
        manager.step_ready(2)
        assert manager.tokens.nbytes == 2 * position_nbytes
        if level.overlapped:
            streamer.wait(manager._byte_progress, PATIENCE)
        assert manager.lag_nbytes == 0
        manager.step_ready(3)
        manager.drain()
        assert manager.tokens.lag_nbytes == 2 * position_nbytes
        assert manager.tokens.nbytes == 3 * position_nbytes


def test_a_request_that_was_given_up_within_a_group_leaves_nothing_to_the_next() -> None:
    stream = Stream(id=0, schedule=schedule_of(2))
    source = random_cache(stream.schedule.geometry)
    cache = filled_cache(stream.schedule.geometry, 0)
    with streaming(HostDestination()) as streamer:
        manager = CacheManager(cache, [stream], LEVELS["3"], streamer, PATIENCE)
        manager.begin()
        manager.step_ready(0)
        manager.step_ready(1, np.zeros(2))
        manager.begin()
        assert manager.lag_nbytes == 0
        play_model(source, cache, stream.schedule, manager)
        manager.drain()
        assert stored_bytes(streamer.destination, stream) == packed_stream(source, stream.schedule)


def test_token_ids_come_with_the_group_that_they_went_into() -> None:
    stream = Stream(id=0, schedule=schedule_of(2, CUT_LAYERS))
    cache = random_cache(stream.schedule.geometry)
    ids = np.arange(2 * STEPS).reshape(2, STEPS)
    for level in LEVELS.values():
        with streaming(FakeDestination()) as streamer:
            manager = CacheManager(cache, [stream], level, streamer, PATIENCE)
            for new_tokens in (ids, None):
                manager.begin()
                play_model(cache, cache, stream.schedule, manager, new_tokens)
                manager.drain()
            assert isinstance(streamer.destination, FakeDestination)
            assert streamer.destination.steps[stream] == [
                (2, ids[:, :2].tolist()),
                (3, ids[:, 2].tolist()),
                (2, None),
                (3, None),
            ]


# ---- refusals ----


def test_streams_whose_groups_differ_are_refused() -> None:
    streams = [
        Stream(id=0, schedule=schedule_of(1), peer=0),
        Stream(id=0, schedule=schedule_of(2), peer=1),
    ]
    cache = random_cache(small_geometry())
    with streaming(FakeDestination()) as streamer:
        with pytest.raises(ValueError, match=r"same flush interval and decode steps"):
            CacheManager(cache, streams, LEVELS["3"], streamer)
        CacheManager(
            cache,
            [streams[1], Stream(id=1, schedule=schedule_of(2), peer=2)],
            LEVELS["3"],
            streamer,
        )


def test_an_interval_without_steps_and_a_swap_of_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 decode step, not 0"):
        schedule_of(0)
    caches = [filled_cache(small_geometry(), 0)]
    streams = [Stream(number, schedule_of(2)) for number in range(2)]
    with (
        streaming(HostDestination()) as streamer,
        pytest.raises(ValueError, match="swapped need a flush interval of 1"),
    ):
        Swapper(caches, streams, streamer, PATIENCE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flush_interval": "0"}, "--flush-interval: must be greater than 0, not '0'"),
        ({"flush_interval": "2"}, "--flush-interval 2 needs a destination"),
        (
            {"flush_interval": "2", "swap": "host", "pipeline_para_size": "3"},
            "--flush-interval 2 cannot be combined with --swap: a cache is evicted after each step",
        ),
        (
            {"flush_interval": "8", "streaming": "host", "output_len": "5,8"},
            r"--flush-interval 8 is more than the 7 decode steps that the sources stream "
            r"\(--output-len 5,8\). Use at most 7",
        ),
        (
            {"flush_interval": "3", "streaming": "mpi", "handoff": True, "handoff_tokens": "3"},
            r"more than the 2 decode steps that the sources stream \(--handoff-tokens 3\)",
        ),
    ],
)
def test_flush_intervals_that_make_no_sense_are_refused(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        load(None, {"model": "gpt2", "device": "cpu", "output_len": "8", **options}, {})


def test_another_interval_is_another_experiment_and_the_default_keeps_the_old_hash() -> None:
    options = {"model": "gpt2", "device": "cpu", "streaming": "host", "output_len": "9"}
    default = load(None, options, {})
    every_step, four = (load(None, {**options, "flush_interval": n}, {}) for n in ("1", "4"))
    assert default.hash() == every_step.hash() != four.hash()
    assert [point.flush_groups for point in four.points] == [((4, 2),)]


# ---- the file ----


@pytest.mark.parametrize("interval", INTERVALS)
@levels
def test_the_file_has_a_record_per_group(level: Level, interval: int, tmp_path: Path) -> None:
    schedule = file_schedule(KVLayout.FT, interval=interval)
    source = random_cache(schedule.geometry, seed=7)
    with open_stream_file(tmp_path, schedule, level.name) as (manager, destination):
        stream_microbatch(manager, random_cache(schedule.geometry, seed=8), pattern=0x11)
        stream_microbatch(manager, source)
        destination.check(manager.streams[0])
    content = path_of(tmp_path).read_bytes()
    document = read(content)  # shares no code with the writer
    assert len(content) == stream_file.count_file_nbytes(schedule)
    assert document.header["flush_interval"] == interval
    assert document.watermark == STEPS + 1
    assert all(record.sound for record in document.records)
    assert b"".join(record.packed for record in document.records) == packed_stream(source, schedule)
    ids = np.concatenate([record.tokens for record in document.records], axis=1)
    assert np.array_equal(ids, np.concatenate([PROMPT, NEW_TOKENS], axis=1))
    assert len(document.records) == len(steps_that_leave(interval))


@levels
def test_the_watermark_moves_by_groups_and_what_is_under_it_comes_back(
    level: Level, tmp_path: Path
) -> None:
    """As after a kill behind any step; never more than the interval is lost."""
    schedule = file_schedule(KVLayout.HND, CUT_LAYERS, interval=2)
    source = random_cache(schedule.geometry)
    marks = {0: 1, 1: 1, 2: 3, 3: 4}
    for last_step, watermark in marks.items():
        with open_stream_file(tmp_path, schedule, level.name, name=f"until{last_step}") as (
            manager,
            _,
        ):
            manager.begin(PROMPT)
            play_until(last_step, source, manager, schedule)
            manager._streamer.wait(manager._byte_progress, PATIENCE)
        path = path_of(tmp_path, f"until{last_step}")
        file = SavedStream(path, Stream(id=0, schedule=schedule), IDENTITY)
        cache = KVCache.allocate(schedule.geometry, torch.int16)
        cache.fill(0x77)
        restored = file.restore(cache)
        assert (file.watermark, restored.steps, restored.fault) == (watermark, watermark, None)
        restored_tokens = [ids.tolist() for ids in restored.tokens]
        assert restored_tokens == [
            PROMPT.tolist(),
            *(NEW_TOKENS[:, [step]].tolist() for step in range(watermark - 1)),
        ]
        written, geometry = INPUT_LEN + watermark - 1, schedule.geometry
        for kv in BOTH:
            region_in_the_file = geometry.region(positions=Span(0, written))
            assert torch.equal(
                cache.piece(kv, region_in_the_file), source.piece(kv, region_in_the_file)
            )
            region_behind = geometry.region(positions=Span(written, geometry.positions))
            assert (cache.piece(kv, region_behind) == 0x7777).all()


def play_until(
    last_step: int, source: KVCache, manager: CacheManager, schedule: StreamSchedule
) -> None:
    """Report the prompt and the steps up to ``last``, all over a cache that holds everything."""
    for kv in BOTH:
        manager.cache.bytes(kv).copy_(source.bytes(kv))
    for layer in range(schedule.geometry.layers):
        manager.layer_ready(layer)
    for step in range(last_step + 1):
        manager.step_ready(step, NEW_TOKENS[:, step - 1] if step else None)


def test_a_file_of_another_interval_is_refused_and_one_of_interval_1_is_as_before(
    tmp_path: Path,
) -> None:
    for interval in (1, 2):
        schedule = file_schedule(KVLayout.HND, interval=interval)
        with open_stream_file(tmp_path, schedule, name=f"n{interval}") as (manager, _):
            stream_microbatch(manager, random_cache(schedule.geometry))
    for interval, other_interval in ((1, 2), (2, 1)):
        stream = Stream(id=0, schedule=file_schedule(KVLayout.HND, interval=other_interval))
        with pytest.raises(
            StreamingError,
            match=f"does not match: flush_interval is {interval} there, {other_interval} here",
        ):
            SavedStream(path_of(tmp_path, f"n{interval}"), stream, IDENTITY)
    # A program of before compares its header with one that has no interval.
    (header_of_interval_1,) = (read(path_of(tmp_path, "n1").read_bytes()).header,)
    assert "flush_interval" not in header_of_interval_1


def test_a_watermark_within_a_group_is_not_trusted(tmp_path: Path) -> None:
    schedule = file_schedule(KVLayout.HND, interval=2)
    with open_stream_file(tmp_path, schedule) as (manager, _):
        stream_microbatch(manager, random_cache(schedule.geometry))
    content = bytearray(path_of(tmp_path).read_bytes())
    page = stream_file.WATERMARK_OFFSET
    content[page : page + 16] = stream_file.make_watermark_page(2).tobytes()[:16]
    assert struct.unpack_from("<Q", content, page) == (2,)
    path_of(tmp_path).write_bytes(content)
    with pytest.raises(StreamingError, match="the watermark is damaged"):
        SavedStream(path_of(tmp_path), Stream(id=0, schedule=schedule), IDENTITY)


def test_a_damaged_group_costs_all_its_steps(tmp_path: Path) -> None:
    schedule = file_schedule(KVLayout.HND, interval=2)
    with open_stream_file(tmp_path, schedule) as (manager, _):
        stream_microbatch(manager, random_cache(schedule.geometry))
    content = bytearray(path_of(tmp_path).read_bytes())
    content[stream_file.find_record_offset(schedule, 2)] ^= 1
    path_of(tmp_path).write_bytes(content)
    restored = SavedStream(path_of(tmp_path), Stream(id=0, schedule=schedule), IDENTITY).restore(
        KVCache.allocate(schedule.geometry, torch.int16)
    )
    assert restored.steps == 1
    assert "checksum of step 2, layer 0 does not agree; of 4 steps under the watermark 1 are" in (
        restored.fault or ""
    )


# ---- tcp: what the two sides agree on ----


def test_the_offer_of_interval_1_is_the_text_that_older_sinks_take() -> None:
    stream = Stream(id=0, schedule=schedule_of(1))
    assert "flush_interval" not in TCPOffer.for_streams([stream], torch.int16).text()
    for interval in INTERVALS:
        stream = Stream(id=0, schedule=schedule_of(interval, CUT_LAYERS))
        offer = read_offer(TCPOffer.for_streams([stream], torch.int16).text())
        (offered,) = make_schedules(offer).values()
        for level in LEVELS.values():
            assert list(offered.all_chunks(level)) == list(stream.schedule.all_chunks(level))


@pytest.mark.parametrize("interval", [0, -1, 1 << 32])
def test_an_offer_with_an_impossible_interval_is_refused(interval: int) -> None:
    offer = json.loads(
        TCPOffer.for_streams([Stream(id=0, schedule=schedule_of(2))], torch.int16).text()
    )
    offer["streams"][0]["flush_interval"] = interval
    with pytest.raises(ValueError, match=r"offer: streams\.0\.flush_interval: "):
        read_offer(json.dumps(offer))


# ---- planning and prediction ----


@pytest.mark.parametrize(
    ("output_len", "interval", "groups"),
    [
        pytest.param(12, 4, ((4, 2), (3, 1)), id="11 decode steps"),
        pytest.param(3, 4, ((2, 1),), id="fewer steps than the interval"),
        pytest.param(1, 1, (), id="no decode step"),
    ],
)
def test_a_point_counts_its_groups_by_their_tokens(
    output_len: int, interval: int, groups: tuple[tuple[int, int], ...]
) -> None:
    point = Point(
        "p000",
        load(None, {"model": "gpt2", "device": "cpu"}, {}).points[0].spec,
        "bf16",
        "hnd",
        ubatch_size=2,
        input_len=16,
        output_len=output_len,
        positions=64,
        tensor_para_size=1,
        pipeline_para_size=1,
        flush_interval=interval,
    )
    assert point.flush_groups == groups


def print_plan(*flags: str, command: str = "plan") -> str:
    return stdout_of(command, *last_of_each(["--model", "gpt2", "--output-len", "12", *flags]))


def test_plan_and_the_dry_run_say_what_leaves_as_one() -> None:
    """gpt2 in fp16: K and V of 12 layers × 12 heads of 64 elements."""
    (row,) = csv.DictReader(io.StringIO(print_plan("--format", "csv")))
    (four,) = csv.DictReader(io.StringIO(print_plan("--format", "csv", "--flush-interval", "4")))
    flush_columns = {"flush_nbytes": str(4 * 36864), "flush_runs": str(2 * 12 * 12)}
    assert four == row | flush_columns
    assert json.loads(print_plan("--format", "json"))["flush_interval"] == 1
    text = " ".join(print_plan("--flush-interval", "4").split())
    assert "flush: every 4 tokens; the busiest source then sends 147.5 kB in 288 extents" in text
    assert "flush" not in print_plan()
    message = usage_error_of("plan", "--model", "gpt2", "--flush-interval", "99")
    assert "is more than the 31 decode steps" in message
    flags = ["--device", "cpu", "--inference-data-type", "fp32", "--streaming", "host", "--dry-run"]
    dry = print_plan(*flags, "--flush-interval", "4", "--output-len", "3,12", command="run")
    text = " ".join(dry.split())
    assert "every 4 tokens, up to 288 KiB per microbatch and source" in text
    assert "p000 has 2 decode steps, fewer than --flush-interval 4" in text


def test_the_prediction_waits_for_the_last_step_of_a_group() -> None:
    """1 layer, prompt 10 ms, 3 steps of 4 ms; each step's bytes take 1 ms, the prompt's 2."""
    request_of_single_steps, request_of_pairs = (
        StreamedRequest(
            layer_count=1,
            step_count=3,
            prompt_ms=10.0,
            token_ms=4.0,
            prompt_nbytes=2.0,
            step_nbytes=1.0,
            flush_interval=interval,
        )
        for interval in (1, 2)
    )
    assert request_of_single_steps.predict_ms("3", 1.0) == 10 + 3 * 4 + 1
    assert request_of_pairs.predict_ms("3", 1.0) == 10 + 3 * 4 + 1
    # On a link four times as slow, step 3 waits for the group of steps 1 and 2.
    assert request_of_single_steps.predict_ms("3", 0.25) == 18 + 3 * 4
    assert request_of_pairs.predict_ms("3", 0.25) == 10 + 2 * 4 + 3 * 4
    for level in ("0", "1", "2"):
        assert request_of_single_steps.predict_ms(level, 0.25) == request_of_pairs.predict_ms(
            level, 0.25
        )


# ---- whole jobs ----


@pytest.mark.mpi
def test_a_job_verifies_and_shows_its_interval(tmp_path: Path) -> None:
    """fp32, 1 thread, 2 ranks on a CPU; 6 decode steps, which 4 does not divide."""
    flags = args("--streaming none,mpi,disk --level 0,0-batched,1,3 --output-len 7")
    job = run(tmp_path, 2, "run", *QUICK, *flags, *args("--flush-interval 4 --rounds 1 --warmup 0"))
    checks = [check for _, check in job.run.records_of(Verification)]
    assert {check.arm for check in checks} >= {"mpi@0", "disk@0", "mpi@3", "disk@3"}
    assert all(check.ok for check in checks)
    assert job.run.header.experiment["flush_interval"] == 4
    for _, record in job.run.records_of(Microbatch):
        if record.arm.endswith("@1"):
            assert record.tokens.copies == 2  # 4 steps, then 2
        if record.arm.endswith("@0"):
            # K and V of 2 layers × 2 requests × 4 heads, for each of the two groups.
            assert record.tokens.copies == 2 * 2 * 2 * 2 * 4
    for style in ("table", "csv"):
        assert "--flush-interval 4" in process_folder(job.folder, style)
