"""A killed run restarts from what it has streamed to disk, never with a wrong key or token."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dejavubench.analysis.tables.chunks_part import make_chunk_rows
from dejavubench.analysis.tables.report_part import RunData
from dejavubench.dejavulib.destinations.base import Stream, StreamingError
from dejavubench.dejavulib.destinations.disk import stream_file
from dejavubench.dejavulib.destinations.disk.block_file import Durability
from dejavubench.dejavulib.destinations.disk.saved_stream import SavedStream
from dejavubench.dejavulib.kv_cache import BOTH, KVCache, KVLayout, Span
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.schedule import StreamSchedule
from dejavubench.records import RUN_FILE, PhaseMark, Restart, read_chunk_times
from helpers.caches import random_cache
from helpers.cli_calls import usage_error_of
from helpers.disk_files import (
    CUT_LAYERS,
    DURABILITIES,
    IDENTITY,
    PAGE,
    PROMPT,
    STEPS,
    open_stream_file,
    path_of,
    schedule_of,
    stream_microbatch,
)
from helpers.gpu_marks import needs_gpus
from helpers.jobs import TINY, TYPES, Job, args, process_folder, read_tokens, run
from helpers.paths import DRIVERS

KILLED = (DRIVERS / "killed.py",)
NEW_TOKENS = 20
REQUEST = (
    *TINY,
    *args("--ubatch-size 2 --input-len 8"),
    "--output-len",
    str(NEW_TOKENS),
    "--no-ceilings",
)
STREAMED = args("--streaming disk --keep --no-verify --warmup 1 --rounds 2")


# ---- one file ----


def saved_stream(schedule: StreamSchedule, directory: Path, **identity: str) -> SavedStream:
    return SavedStream(
        path_of(directory), Stream(id=0, schedule=schedule), {**IDENTITY, **identity}
    )


def write_one(
    directory: Path,
    schedule: StreamSchedule,
    level: str = "3",
    durability: Durability = "fdatasync",
) -> KVCache:
    """Write the file of a whole microbatch; return the cache that it was streamed from."""
    with open_stream_file(directory, schedule, level, durability) as (manager, _):
        stream_microbatch(manager, random_cache(schedule.geometry))
        return manager.cache


def restore(stream: SavedStream) -> tuple[KVCache, int, str | None]:
    """Return the restored cache, its steps, and what is wrong with the file."""
    cache = KVCache.allocate(stream.schedule.geometry, torch.int16)
    cache.fill(0x77)
    restored_stream = stream.restore(cache)
    return cache, restored_stream.steps, restored_stream.fault


def assert_first_steps(
    cache: KVCache, source: KVCache, schedule: StreamSchedule, steps: int
) -> None:
    """Assert that the first steps' positions are the source's, and all behind them unchanged."""
    positions = schedule.positions(steps - 1).stop if steps else 0
    restored_region = schedule.geometry.region(positions=Span(0, positions))
    region_behind = schedule.geometry.region(positions=Span(positions, schedule.geometry.positions))
    for kv in BOTH:
        assert torch.equal(cache.piece(kv, restored_region), source.piece(kv, restored_region))
        assert (cache.piece(kv, region_behind) == 0x7777).all()


@pytest.mark.parametrize("layout", KVLayout)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("slot", [1 << 16, CUT_LAYERS])
def test_a_whole_file_gives_the_cache_and_the_tokens_back(
    layout: KVLayout, level: str, slot: int, tmp_path: Path
) -> None:
    schedule = schedule_of(layout, slot)
    source = write_one(tmp_path, schedule, level)
    file = saved_stream(schedule, tmp_path)
    assert file.watermark == STEPS + 1
    cache, steps, fault = restore(file)
    assert (steps, fault) == (STEPS + 1, None)
    assert_first_steps(cache, source, schedule, steps)
    restored_stream = file.restore(cache)
    assert np.array_equal(restored_stream.tokens[0], PROMPT)


@pytest.mark.parametrize("durability", DURABILITIES)
def test_files_of_every_durability_are_restored_alike(
    durability: Durability, tmp_path: Path
) -> None:
    schedule = schedule_of(KVLayout.HND)
    source = write_one(tmp_path, schedule, durability=durability)
    cache, steps, _ = restore(saved_stream(schedule, tmp_path))
    assert_first_steps(cache, source, schedule, steps)


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, KVCache]:
    directory = tmp_path_factory.mktemp("whole")
    return directory, write_one(directory, schedule_of(KVLayout.FT))


@given(data=st.data())
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_damage_yields_a_wrong_key(
    whole_file: tuple[Path, KVCache], data: st.DataObject, tmp_path: Path
) -> None:
    """Bytes changed anywhere, the file cut anywhere: only what was streamed is put back."""
    directory, source = whole_file
    schedule = schedule_of(KVLayout.FT)
    content = bytearray(path_of(directory).read_bytes())
    places = st.integers(0, len(content) - 1)
    for index in data.draw(st.lists(places, max_size=3), "damaged bytes"):
        content[index] ^= data.draw(st.integers(1, 255), "by")
    cut = data.draw(st.one_of(st.just(len(content)), places), "cut at")
    path_of(tmp_path).write_bytes(content[:cut])
    try:
        cache, steps, fault = restore(saved_stream(schedule, tmp_path))
    except StreamingError:
        return
    assert_first_steps(cache, source, schedule, steps)
    assert (steps == STEPS + 1) == (fault is None)


def test_a_damaged_step_is_named_and_those_before_are_good(
    whole_file: tuple[Path, KVCache], tmp_path: Path
) -> None:
    schedule = schedule_of(KVLayout.FT)
    content = bytearray(path_of(whole_file[0]).read_bytes())
    content[stream_file.find_record_offset(schedule, 2) + schedule.layer_nbytes(2)] ^= 0x40
    path_of(tmp_path).write_bytes(content)
    cache, steps, fault = restore(saved_stream(schedule, tmp_path))
    assert steps == 2
    assert fault == (
        f"{path_of(tmp_path)}: checksum of step 2, layer 1 does not agree; "
        f"of {STEPS + 1} steps under the watermark 2 are good"
    )
    assert_first_steps(cache, whole_file[1], schedule, 2)


def test_a_file_that_was_cut_off_is_good_up_to_there(
    whole_file: tuple[Path, KVCache], tmp_path: Path
) -> None:
    schedule = schedule_of(KVLayout.FT)
    offset = stream_file.find_record_offset(schedule, 3) + 5
    path_of(tmp_path).write_bytes(path_of(whole_file[0]).read_bytes()[:offset])
    _, steps, fault = restore(saved_stream(schedule, tmp_path))
    assert steps == 3
    assert (
        f"ends at byte {offset}, within step 3; of {STEPS + 1} steps under the watermark 3 are good"
        in str(fault)
    )


@pytest.mark.parametrize(
    ("identity", "message"),
    [
        ({"run": "r2"}, "run is r1 there, r2 here"),
        ({"weights": "seed 1"}, "weights is seed 0 there, seed 1 here"),
        ({"requests": "other"}, "requests is None there, other here"),
    ],
)
def test_a_stream_file_of_another_run_is_refused(
    identity: dict[str, str], message: str, whole_file: tuple[Path, KVCache]
) -> None:
    with pytest.raises(StreamingError, match=f"does not match: {message}"):
        saved_stream(schedule_of(KVLayout.FT), whole_file[0], **identity)


def test_a_stream_file_of_another_microbatch_is_refused(whole_file: tuple[Path, KVCache]) -> None:
    with pytest.raises(StreamingError, match="does not match: stream is 0 there, 1 here"):
        SavedStream(
            path_of(whole_file[0]), Stream(id=1, schedule=schedule_of(KVLayout.FT)), IDENTITY
        )


def test_a_restored_stream_keeps_only_token_ids_in_memory(whole_file: tuple[Path, KVCache]) -> None:
    cache = KVCache.allocate(schedule_of(KVLayout.FT).geometry, torch.int16)
    restored_stream = saved_stream(schedule_of(KVLayout.FT), whole_file[0]).restore(cache)
    arrays = {
        id(ids if ids.base is None else ids.base): ids if ids.base is None else ids.base
        for ids in restored_stream.tokens
    }
    assert (
        sum(array.nbytes for array in arrays.values()) == PROMPT.size * 4 + STEPS * len(PROMPT) * 4
    )


def test_a_stream_file_of_another_geometry_is_refused(whole_file: tuple[Path, KVCache]) -> None:
    with pytest.raises(
        StreamingError, match=r"does not match: geometry\.layout is ft there, nhd here"
    ):
        saved_stream(schedule_of(KVLayout.NHD), whole_file[0])


def make_older(content: bytearray) -> str:
    struct.pack_into("<I", content, 8, stream_file.VERSION - 1)
    return f"is of version {stream_file.VERSION - 1}, this program reads {stream_file.VERSION}"


def remove_magic(content: bytearray) -> str:
    content[:4] = b"\0\0\0\0"
    return "is no stream's file: it does not begin with DEJAVUKV"


def damage_header(content: bytearray) -> str:
    content[20] ^= 1
    return "its header is damaged"


def damage_watermark(content: bytearray) -> str:
    content[PAGE] ^= 1
    return "the watermark is damaged, so that no step of it can be trusted"


def move_watermark_beyond(content: bytearray) -> str:
    count = struct.pack("<Q", 1000)
    content[PAGE : PAGE + 16] = count + xxhash.xxh3_64_digest(count)
    return "the watermark is damaged"


@pytest.mark.parametrize(
    "damage", [make_older, remove_magic, damage_header, damage_watermark, move_watermark_beyond]
)
def test_a_file_with_a_damaged_header_or_watermark_is_refused(
    damage: Callable[[bytearray], str], whole_file: tuple[Path, KVCache], tmp_path: Path
) -> None:
    content = bytearray(path_of(whole_file[0]).read_bytes())
    message = damage(content)
    path_of(tmp_path).write_bytes(content)
    with pytest.raises(StreamingError) as caught:
        saved_stream(schedule_of(KVLayout.FT), tmp_path)
    assert str(path_of(tmp_path)) in str(caught.value)
    assert message in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StreamingError, match=r"test-stream0\.kv: No such file"):
        saved_stream(schedule_of(KVLayout.FT), tmp_path)


# ---- whole jobs ----


def new_tokens_of(job: Job) -> list[list[int]]:
    """Return the new tokens of each request, as the run has written them."""
    return [line["tokens"] for line in read_tokens(job.folder)]


Undisturbed = dict[tuple[int, str], list[list[int]]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Return the tokens of an undisturbed run, by pipeline depth (which is the number of
    microbatches) and data type."""
    folder = tmp_path_factory.mktemp("undisturbed")
    flags = args("--rounds 1 --warmup 0")
    tokens = {}
    for depth, data_type in ((1, "fp32"), (1, "bf16"), (2, "fp32")):
        options = (*REQUEST, *flags, *TYPES[data_type], "--pipeline-para-size", depth)
        tokens[depth, data_type] = new_tokens_of(
            run(folder / f"{depth}{data_type}", depth, "run", *options)
        )
    return tokens


def kill_job(
    cwd: Path, ranks: int, place: str, *flags: object, asked: Sequence[str] = REQUEST
) -> Job:
    """Run a job that is killed at a point; see mpi/killed.py."""
    with Job(cwd, ranks, place, "run", *asked, *STREAMED, *flags, driver=KILLED) as job:
        job.wait_killed(int(place.partition(":")[0]))
    return job


def restart_job(cwd: Path, ranks: int, killed: Job, *flags: object, status: int = 0) -> Job:
    return run(cwd, ranks, "run", "--restart-request", killed.folder, *flags, status=status)


SPLITS: dict[int, list[tuple[str, ...]]] = {
    1: [()],
    2: [("--pipeline-para-size", "2"), ("--tensor-para-size", "2")],
}
DAILY_SEEDS = range(6)
"""The seeds of every day; the others are a drill."""


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(seed, marks=() if seed in DAILY_SEEDS else pytest.mark.drill)
        for seed in range(50)
    ],
)
def test_a_run_killed_at_any_moment_goes_on_with_the_same_tokens(
    seed: int, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    draw = random.Random(seed)
    ranks = 2 if seed % 5 == 0 else 1
    split = draw.choice(SPLITS[ranks])
    # Split ranks round their sums to bf16 in other places: tokens could differ.
    data_type = "bf16" if ranks == 1 and seed % 2 else "fp32"
    point = draw.choice(["step", "sync", "write"])
    number = draw.randrange(3 * (NEW_TOKENS - 1) if point == "write" else NEW_TOKENS - 1)
    place = f"{draw.randrange(ranks)}:{point}:{number}:{draw.random()}"
    options = [
        "--level",
        draw.choice(list(LEVELS)),
        "--kv-layout",
        draw.choice(["ft", "hnd", "nhd"]),
    ]
    options += ["--durability", draw.choice(DURABILITIES), *TYPES[data_type]]
    # Longer intervals write and sync less often than ``number`` says. 4 does not divide 19 steps.
    interval = 4 if point == "step" else 1
    options += ["--flush-interval", str(interval)]
    killed = kill_job(tmp_path / "killed", ranks, place, *options, *split)
    job = restart_job(tmp_path / "resumed", ranks, killed)
    depth = 2 if "--pipeline-para-size" in split else 1
    assert new_tokens_of(job) == undisturbed[depth, data_type]
    firsts = {record.first for _, record in job.run.records_of(Restart)}
    assert len(firsts) == 1
    assert firsts <= {0, *range(0, NEW_TOKENS - 1, interval), NEW_TOKENS - 1}


GPU = args("--device cuda --inference-data-type fp16 --size-per-head 32")


@pytest.mark.gpu
@needs_gpus(1)
@pytest.mark.parametrize(
    ("point", "number"), [("write", 1), ("write", 20), ("sync", 0), ("sync", 9), ("sync", 17)]
)
def test_a_run_killed_on_a_gpu_goes_on_with_the_same_tokens(
    point: str, number: int, tmp_path: Path
) -> None:
    killed = kill_job(tmp_path / "killed", 1, f"0:{point}:{number}:0.5", asked=(*REQUEST, *GPU))
    job = restart_job(tmp_path / "resumed", 1, killed)
    # A run with --verify writes the tokens of the undisturbed requests.
    verified_job = restart_job(tmp_path / "verified", 1, killed, "--verify")
    assert new_tokens_of(job) == new_tokens_of(verified_job)


@pytest.mark.parametrize(
    ("interval", "watermark"),
    [
        # Of steps 0 … 12, complete when it was killed first, the last one was computed again, and
        # then two more.
        (1, 15),
        # The same steps were streamed, but steps 13 and 14 waited for their group, 13 … 16.
        (4, 13),
    ],
)
def test_a_resumed_run_verifies_says_what_it_did_and_can_be_resumed(
    interval: int, watermark: int, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    options = ("--level", "2", "--flush-interval", interval)
    killed = kill_job(tmp_path / "1", 1, "0:step:12", *options)
    with Job(
        tmp_path / "2",
        1,
        "0:step:3",
        "run",
        "--restart-request",
        killed.folder,
        "--no-verify",
        driver=KILLED,
    ) as killed_again:
        killed_again.wait_killed(0)
    job = restart_job(tmp_path / "3", 1, killed_again, "--verify")
    (restart,) = (record for _, record in job.run.records_of(Restart))
    assert (restart.of, restart.wrong) == (killed_again.folder.name, [])
    assert restart.anew_ms is not None
    assert (restart.watermark, restart.first) == (watermark, watermark - 1)
    assert len(restart.step_ms) == NEW_TOKENS - restart.first
    check_chunks(job, restart)
    table = process_folder(job.folder)
    assert killed_again.folder.name in table
    assert "yes (1)" in table
    assert new_tokens_of(job) == undisturbed[1, "fp32"]
    message = usage_error_of("run", "--restart-request", job.folder)
    assert "finished: there is nothing to restart" in message


def check_chunks(job: Job, restart: Restart) -> None:
    """Assert that all chunks are timed, and that restored ones left before the first step began."""
    ((_, listed, times),) = read_chunk_times(job.folder)
    assert (times.arm, times.round) == (restart.arm, None)
    for chunk, ready in zip(listed.chunks, times.ready, strict=True):
        assert (ready < 0) == (chunk.step < restart.first)
    rows = make_chunk_rows(RunData(job.run))
    assert {(row.arm_phase.arm, row.samples) for row in rows} == {(restart.arm, 1)}
    assert {row.arm_phase.phase for row in rows} == {"prompt", "tokens"}


@pytest.fixture(scope="module")
def killed_late(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return kill_job(
        tmp_path_factory.mktemp("late"),
        1,
        "0:step:12",
        "--level",
        "2",
        "--durability",
        "page-cache",
    )


def copy_of(job: Job, tmp_path: Path) -> tuple[Path, Path]:
    """Copy the job's folder; return the copy and the stream's file in it."""
    folder = tmp_path / "copy"
    shutil.copytree(job.folder, folder)
    (file,) = folder.glob("*.kv")
    return folder, file


def test_damage_costs_the_steps_behind_it_and_is_reported(
    killed_late: Job, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    folder, path = copy_of(killed_late, tmp_path)
    content = bytearray(path.read_bytes())
    content[-13 * PAGE] ^= 1  # each step of a token is one page: of steps 0 … 19 the seventh
    path.write_bytes(content)
    job = run(tmp_path, 1, "run", "--restart-request", folder)
    (restart,) = (record for _, record in job.run.records_of(Restart))
    assert (restart.watermark, restart.first) == (13, 6)
    assert len(restart.wrong) == 1
    message = " ".join(job.stderr.split())  # a long folder's name may have broken the line
    assert (
        "checksum of step 7, layer 0 does not agree; of 13 steps under the watermark 7 are good"
        in message
    )
    assert new_tokens_of(job) == undisturbed[1, "fp32"]


def test_files_that_have_changed_places_are_refused(tmp_path: Path) -> None:
    """Two ranks, or two microbatches of one, have parts of the cache with one geometry."""
    killed = kill_job(
        tmp_path / "killed", 2, "0:step:8", "--level", "2", "--pipeline-para-size", "2"
    )
    for pair, message in (
        ("rank*-stream0", "rank is 1 there, 0 here"),
        ("rank0000*-stream*", "stream is 1 there, 0 here"),
    ):
        folder = tmp_path / message
        shutil.copytree(killed.folder, folder)
        path, other_path = sorted(folder.glob(f"*-{pair}.kv"))
        content = path.read_bytes()
        path.write_bytes(other_path.read_bytes())
        other_path.write_bytes(content)
        job = run(tmp_path, 2, "run", "--restart-request", folder, status=2)
        assert f"{path} does not match: {message}" in job.stderr
        assert len(job.stderr.splitlines()) == 1


def test_a_file_that_is_refused_ends_the_run_before_it_begins(
    killed_late: Job, tmp_path: Path
) -> None:
    folder, path = copy_of(killed_late, tmp_path)
    path.write_bytes(path.read_bytes()[: PAGE + 3])
    job = run(tmp_path, 1, "run", "--restart-request", folder, status=2)
    assert job.stderr.startswith(
        f"Error: --restart-request: {path} ends at byte {PAGE + 3}, within its watermark"
    )
    assert len(job.stderr.splitlines()) == 1
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--seed", "1"), "does not match: requests is "),
        (("--output-len", "21"), "does not match: steps is 19 there, 20 here"),
        (("--flush-interval", "2"), "does not match: flush_interval is 1 there, 2 here"),
    ],
)
def test_flags_that_make_another_request_of_it_are_refused(
    flags: tuple[str, str], message: str, killed_late: Job, tmp_path: Path
) -> None:
    job = restart_job(tmp_path, 1, killed_late, *flags, status=2)
    assert message in job.stderr
    assert len(job.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--streaming", "host"),
            "--restart-request continues one request that was streamed to disk",
        ),
        (("--level", "1,2"), "--restart-request continues one request that was streamed to disk"),
        (
            ("--rounds", "7"),
            "--rounds 7 cannot be combined with --restart-request, which runs one request once",
        ),
    ],
)
def test_flags_that_a_restart_cannot_have_are_refused(
    flags: tuple[str, str], message: str, killed_late: Job
) -> None:
    assert message in usage_error_of("run", "--restart-request", killed_late.folder, *flags)


def test_an_experiment_that_this_program_does_not_know_is_refused_by_its_file(
    killed_late: Job, tmp_path: Path
) -> None:
    folder, _ = copy_of(killed_late, tmp_path)
    header = json.loads((folder / RUN_FILE).read_text())
    header["experiment"]["later"] = 1
    (folder / RUN_FILE).write_text(json.dumps(header))
    message = usage_error_of("run", "--restart-request", folder)
    assert message.startswith(f"--restart-request: {folder / RUN_FILE}: later: ")


def test_a_run_without_kept_files_on_disk_cannot_be_restarted(tmp_path: Path) -> None:
    for flags, message in (
        (
            ("--streaming", "disk"),
            "did not keep its streamed files: only a run with --keep can be restarted",
        ),
        (
            ("--streaming", "host", "--keep"),
            "ended in phase tokens of host@3: only a request that is streamed to disk",
        ),
    ):
        folder = tmp_path / flags[1]
        with Job(
            folder, 1, "0:step:3", "run", *REQUEST, "--no-verify", *flags, driver=KILLED
        ) as killed:
            killed.wait_killed(0)
        assert list(killed.run.records_of(PhaseMark))
        assert message in usage_error_of("run", "--restart-request", killed.folder)


def test_a_folder_that_is_no_runs_and_a_config_beside_it_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "some.toml").write_text("rounds = 1\n")
    (tmp_path / "resume.toml").write_text('resume = "empty"\n')
    for flags, message in (
        (
            ("--restart-request", "empty"),
            "--restart-request: empty is not a run's folder: it has no run.json",
        ),
        (("--resume", "empty"), "--resume is the old name of --restart-request. To go on with a "),
        (
            ("some.toml", "--restart-request", "empty"),
            "some.toml cannot be combined with --restart-request, "
            "which takes its settings from the killed run",
        ),
        (("resume.toml",), "resume.toml: resume is not allowed in a file"),
    ):
        assert message in usage_error_of("run", *flags)
