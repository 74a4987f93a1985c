"""The nixl destination: real jobs if NIXL is installed; without it, the messages."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import sys
from itertools import product
from pathlib import Path

import pytest

from dejavubench.config.resolve import load
from dejavubench.dejavulib.extents import BaseAddresses, ExtentAddresses
from dejavubench.dejavulib.kv_cache import Span
from dejavubench.errors import UsageError
from dejavubench.planning.devices import DeviceNumbers, explain_too_few_devices, number_devices
from dejavubench.records import Ceiling, RankInfo, SinkActivity, Skipped
from dejavubench.transports import nixl as transport
from dejavubench.transports.nixl import NOT_INSTALLED as NO_NIXL
from helpers.caches import random_cache
from helpers.fake_destination import schedule_of, small_geometry
from helpers.fake_gpu import H200
from helpers.faults import FAULTY, has_struck, require_failure, start_faulty
from helpers.gpu_marks import needs_gpus
from helpers.jobs import GONE_WITHIN, QUICK, TINY, args, process_folder, run
from helpers.nixl_mark import needs_nixl
from helpers.paths import DRIVERS
from helpers.verifications import count_verified

PAIR = ("-m", "mpi4py", str(DRIVERS / "nixl_pair.py"))
LEVELS = ("0", "0-batched", "1", "2", "3")
ONCE = args("--rounds 1 --warmup 0")


# ---- every byte ----


@needs_nixl
@pytest.mark.mpi
def test_every_byte_arrives_over_nixl_in_every_layout_at_every_level(tmp_path: Path) -> None:
    flags = (
        "--kv-layout",
        "ft,hnd,nhd",
        "--level",
        ",".join(LEVELS),
        *args("--rounds 2 --warmup 0"),
    )
    job = run(tmp_path, 2, "run", *QUICK, *flags, "--streaming", "none,nixl,mpi")
    arms = ["none", "none#2", *(f"{mode}@{level}" for mode in ("nixl", "mpi") for level in LEVELS)]
    assert count_verified(job) == {(f"p{point:03d}", arm): 2 for point in range(3) for arm in arms}
    counts_by_arm = {
        (activity.point, activity.arm): (activity.nbytes, activity.messages)
        for _, activity in job.run.records_of(SinkActivity)
    }
    for point, level in product(("p000", "p001", "p002"), LEVELS):
        nixl_counts = counts_by_arm[point, f"nixl@{level}"]
        assert nixl_counts == counts_by_arm[point, f"mpi@{level}"], f"{point}, level {level}"
    assert "NIXL" not in job.stderr, "it says nothing of its own"


@needs_nixl
@pytest.mark.mpi
@pytest.mark.parametrize(
    ("ranks", "flags", "peers"),
    [
        pytest.param(
            3,
            args("--kv-layout nhd --pipeline-para-size 2 --sink-pipeline-para-size 1"),
            [[2], [2], [0, 1]],
            id="stages-to-one",
        ),
        pytest.param(
            3,
            args("--tensor-para-size 2 --sink-tensor-para-size 1"),
            [[2], [2], [0, 1]],
            id="heads-to-one",
        ),
        pytest.param(
            3,
            args("--kv-layout ft --ubatch-size 3 --sink-tensor-para-size 2 --sink-ubatch-size 1"),
            [[1, 2], [0], [0]],
            id="one-to-heads",
        ),
    ],
)
def test_every_byte_arrives_in_sinks_of_another_setup(
    ranks: int, flags: tuple[str, ...], peers: list[list[int]], tmp_path: Path
) -> None:
    levels = ("--inference-data-type", "fp32", "--level", ",".join(LEVELS))
    job = run(tmp_path, ranks, "run", *QUICK, *ONCE, *levels, "--streaming", "nixl", *flags)
    each_arm_once = {
        ("p000", arm): 1 for arm in ("none", "none#2", *(f"nixl@{level}" for level in LEVELS))
    }
    assert count_verified(job) == each_arm_once
    infos = {info.rank: info for _, info in job.run.records_of(RankInfo)}
    assert [infos[rank].peers for rank in range(ranks)] == peers


@needs_nixl
@pytest.mark.mpi
def test_a_cache_larger_than_its_slots_arrives_and_has_a_ceiling(tmp_path: Path) -> None:
    """4 MB of cache through slots of 1 MB; and the ceiling that the arm's rate is compared with."""
    sizes = args("--device cpu --layer-num 2 --head-num 8 --size-per-head 64 --vocab-size 101")
    lengths = args(
        "--ubatch-size 4 --input-len 120 --output-len 4 --staging-mib 1 --staging-slots 2"
    )
    job = run(
        tmp_path,
        2,
        "run",
        *sizes,
        *lengths,
        *ONCE,
        *args("--inference-data-type fp32 --streaming none,nixl"),
    )
    assert count_verified(job) == {("p000", arm): 1 for arm in ("none", "none#2", "nixl@3")}
    ceiling_names = {ceiling.name for _, ceiling in job.run.records_of(Ceiling)}
    assert {"nixl-raw", "nixl-destination", "mpi-windowed"} <= ceiling_names
    rows = {row["arm"]: row for row in json.loads(process_folder(job.folder, "json"))[0]["rows"]}
    assert rows["nixl@3"]["ceiling"] == "nixl-raw"
    assert rows["nixl@3"]["alone_gb_per_s"] > 0
    assert rows["nixl@3"]["hosts"] == "same host"
    assert "nixl-destination / nixl-raw" in process_folder(job.folder, long=True)


@needs_nixl
@pytest.mark.mpi
def test_a_sink_without_free_slots_stops_its_source_and_both_wait_asleep(tmp_path: Path) -> None:
    """A sink that takes nothing stops the source at its slots; a buffer of another size is refused.

    Neither side waits on a core.
    """
    lines = run(tmp_path, 2, driver=PAIR).stdout.splitlines()
    # The script sends 5 chunks and its sink has 2 slots.
    assert lines == ["2 of 5 begun, 0 complete", "all 5 complete", "refused", "idle"]


@needs_nixl
@pytest.mark.gpu
@pytest.mark.mpi
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        pytest.param("nixl", (), marks=needs_gpus(2), id="the-other"),
        pytest.param("nixl-loopback", ("--nccl-loopback",), marks=needs_gpus(1), id="the-same"),
    ],
)
def test_every_byte_arrives_over_nixl_on_a_gpu(
    name: str, flags: tuple[str, ...], tmp_path: Path
) -> None:
    sizes = args("--layer-num 2 --head-num 4 --size-per-head 64 --vocab-size 512 --ubatch-size 2")
    lengths = args("--input-len 8 --output-len 6 --kv-layout ft,hnd,nhd")
    modes = ("--level", ",".join(LEVELS), *args("--device cuda --streaming nixl"), *flags)
    job = run(tmp_path, 2, "run", *sizes, *lengths, *modes, *ONCE)
    arms = ("none", "none#2", *(f"{name}@{level}" for level in LEVELS))
    assert count_verified(job) == {(f"p{point:03d}", arm): 1 for point in range(3) for arm in arms}


# ---- faults ----


@needs_nixl
@pytest.mark.mpi
@pytest.mark.parametrize("level", ["0", "3"])
def test_a_sink_that_fails_ends_every_rank(tmp_path: Path, level: str) -> None:
    with start_faulty(tmp_path, "throw:sink:receive", "--level", level, streaming="nixl") as job:
        require_failure(job, 1, "receive", "RuntimeError: injected")


@needs_nixl
@pytest.mark.mpi
@pytest.mark.parametrize("level", ["0", "3"])
def test_a_nixl_sink_that_takes_nothing_is_given_up(tmp_path: Path, level: str) -> None:
    with start_faulty(
        tmp_path, "stuck-sink", "--drain-timeout", "2", "--level", level, streaming="nixl"
    ) as job:
        phase = "drain" if level == "3" else "prompt"
        missing_chunk = "the first missing is chunk 0 (step 0)"
        error = f"StreamingError: no chunk became complete within 2 s; {missing_chunk}"
        require_failure(job, 0, phase, error)


@needs_nixl
@pytest.mark.mpi
def test_a_killed_sink_takes_the_job_along(tmp_path: Path) -> None:
    with start_faulty(tmp_path, "linger:tokens", streaming="nixl") as job:
        job.until(lambda: has_struck(job), "the phase")
        os.kill(job.pid(1), signal.SIGKILL)
        assert job.wait(GONE_WITHIN) not in (0, None)
        job.all_gone()
        assert re.search(
            r"INCOMPLETE: rank 1 \(sink on .*\) was the first to stop,", process_folder(job.folder)
        )


# ---- where it is not installed ----


@pytest.fixture
def no_nixl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nixl", None)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that NIXL is installed."""
    monkeypatch.setattr(transport, "has_nixl", lambda: True)


@pytest.mark.usefixtures("no_nixl")
def test_nixl_is_skipped_in_a_sweep_and_refused_alone() -> None:
    arms = load(None, {"streaming": "none,nixl,host", "device": "cpu"}, {}).arms
    assert {arm.name: arm.skipped for arm in arms[2:]} == {"nixl@3": NO_NIXL, "host@3": None}
    with pytest.raises(UsageError, match=r"^--streaming nixl: nixl is not installed: pip install"):
        load(None, {"streaming": "nixl", "device": "cpu"}, {})


@pytest.mark.mpi
def test_the_row_of_a_skipped_nixl_says_what_is_missing(tmp_path: Path) -> None:
    job = run(
        tmp_path,
        1,
        "no-nixl:0",
        "run",
        *QUICK,
        *ONCE,
        "--streaming",
        "none,nixl,host",
        driver=FAULTY,
    )
    assert count_verified(job) == {("p000", arm): 1 for arm in ("none", "none#2", "host@3")}
    assert {(skipped.arm, skipped.reason) for _, skipped in job.run.records_of(Skipped)} == {
        ("nixl@3", NO_NIXL)
    }
    rows = {row["arm"]: row for row in json.loads(process_folder(job.folder, "json"))[0]["rows"]}
    assert (rows["nixl@3"]["status"], rows["nixl@3"]["reason"]) == ("SKIPPED", NO_NIXL)


@needs_nixl
@pytest.mark.mpi
def test_a_rank_that_lacks_nixl_is_named_in_one_message(tmp_path: Path) -> None:
    job = run(
        tmp_path,
        2,
        "no-nixl:1",
        "run",
        *TINY,
        *ONCE,
        "--streaming",
        "none,nixl",
        driver=FAULTY,
        status=2,
    )
    (line,) = job.stderr.splitlines()
    assert line.startswith("Error: streaming nixl: rank 1 on ")
    assert ": NIXL cannot be loaded: " in line
    assert not (tmp_path / "logs").exists()


# ---- on a GPU ----


@pytest.mark.usefixtures("gpu", "installed")
def test_nixl_needs_a_gpu_for_each_rank_without_a_loopback() -> None:
    plan = load(None, {"model": "gpt2", "device": "cuda", "streaming": "none,nixl"}, {})
    message = (
        "--streaming nixl needs one GPU per rank: this host has 2 ranks and 1 GPU. "
        "--nccl-loopback lets a source and its sink share one"
    )
    assert explain_too_few_devices(plan, (H200,)) == message
    assert explain_too_few_devices(plan, (H200, H200)) is None
    assert number_devices(plan, source_count=1, sink_count=1, device_count=2) == DeviceNumbers(
        (0,), (1,)
    )
    on_cpu = load(None, {"model": "gpt2", "device": "cpu", "streaming": "none,nixl"}, {})
    assert explain_too_few_devices(on_cpu, (H200,)) is None


@pytest.mark.usefixtures("gpu", "installed")
def test_a_loopback_of_nixl_is_labelled_on_a_gpu_and_refused_on_a_cpu() -> None:
    flags = {"model": "gpt2", "streaming": "nixl", "nccl_loopback": "true"}
    plan = load(None, {**flags, "device": "cuda"}, {})
    assert [(arm.name, arm.is_loopback) for arm in plan.arms] == [("nixl-loopback@3", True)]
    assert explain_too_few_devices(plan, (H200,)) is None
    with pytest.raises(UsageError, match="--nccl-loopback with --streaming nixl needs --device cu"):
        load(None, {**flags, "device": "cpu"}, {})
    sweep = load(None, {**flags, "device": "cpu", "streaming": "none,nccl,nixl"}, {})
    assert [arm.name for arm in sweep.unskipped_arms] == ["none", "none#2", "nixl@3"]


# ---- what both sides must agree on ----


def test_a_pickled_schedule_gives_the_same_addresses_elsewhere() -> None:
    cache = random_cache(small_geometry())
    schedule = schedule_of(cache.geometry)
    unpickled_schedule, bases = pickle.loads(
        pickle.dumps((schedule, BaseAddresses.of_cache(cache)))
    )
    source_addresses = ExtentAddresses(cache, schedule)
    sink_addresses = ExtentAddresses(bases, unpickled_schedule)
    for step in range(schedule.steps + 1):
        assert sink_addresses.of_step(step) == source_addresses.of_step(step)
    assert pickle.loads(pickle.dumps(Span(2, 5))) == Span(2, 5)
