"""Memory and time before anything starts, and what the kernel says of this machine."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dejavubench import fit, units
from dejavubench.experiment import Experiment, UsageError, load
from dejavubench.machine import available_nbytes, has_bf16
from dejavubench.models.gpt import GPT
from dejavubench.models.sharding import Shard
from dejavubench.specs import SPECS, custom

GIB = 1 << 30


def flags(**values: Any) -> Experiment:
    return load(None, values, {})


# ---- memory ----


@pytest.mark.parametrize("name", SPECS)
def test_one_worker_holds_the_whole_model(name: str) -> None:
    assert fit.worker_parameters(SPECS[name], 1, 1) == SPECS[name].parameters


@pytest.mark.parametrize(("tensor_size", "stages"), [(1, 2), (2, 1), (2, 3), (4, 5)])
def test_worker_parameters_are_those_of_the_largest_shard(tensor_size: int, stages: int) -> None:
    sizes = custom(5, 4, 8, 512, context=64)
    shards = [Shard(stage, stages, rank, tensor_size) for stage in range(stages) for rank in range(tensor_size)]
    with torch.device("meta"):
        held = [GPT(sizes, shard, torch.float32, torch.float32).parameters for shard in shards]
    assert fit.worker_parameters(sizes, tensor_size, stages) == max(held)


def test_cache_is_of_all_microbatches_in_flight() -> None:
    values = {"model": "gpt2", "ubatch_size": 4, "input_len": 256, "inference_data_type": "fp16"}
    one, three = (flags(pipeline_para_size=depth, **values) for depth in (1, 3))
    whole = 4 * 288 * 2 * 12 * 768 * 2  # requests × positions × K and V × layers × hidden × bytes
    assert fit.memory(one, one.points()[0]).cache == whole
    assert fit.memory(three, three.points()[0]).cache == 3 * whole // 3  # a third of the layers, three times


def test_half_weights_are_held_in_fp32_where_the_cpu_lacks_them(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = SPECS["gpt2"].parameters
    for native, data_type, itemsize in [(False, "bf16", 4), (True, "bf16", 2), (True, "fp16", 4), (True, "fp32", 4)]:
        monkeypatch.setattr(fit, "native_bf16", lambda native=native: native)
        experiment = flags(model="gpt2", inference_data_type=data_type)
        assert fit.memory(experiment, experiment.points()[0]).weights == itemsize * parameters


def test_each_destination_adds_what_it_takes() -> None:
    def needs(streaming: str) -> fit.Memory:
        experiment = flags(model="gpt2", ubatch_size=4, input_len=256, streaming=streaming)
        return fit.memory(experiment, experiment.points()[0])

    streamed = flags(model="gpt2", ubatch_size=4, input_len=256).points()[0].streamed_nbytes
    none, host, disk, staging = needs("none"), needs("host"), needs("disk"), 4 * 16 * fit.MIB
    assert disk.source == none.source + staging
    assert host.source == none.source + staging + streamed
    assert (none.disk, host.disk, disk.disk) == (0, 0, streamed)


def test_what_does_not_fit_is_skipped_in_a_sweep_with_needed_and_available() -> None:
    sweep = flags(model="gpt2,opt-66b", inference_data_type="fp16")
    reasons = fit.reasons(sweep, available=lambda: 20 * GIB)
    assert list(reasons) == ["p001"]
    needed = units.nbytes_text(fit.memory(sweep, sweep.points()[1]).host(1, 0))
    assert reasons["p001"] == f"opt-66b needs {needed} of memory, 20.0 GiB are available"
    fit.refuse_if_none_runs(sweep, reasons)


def test_what_does_not_fit_is_refused_when_it_is_all_there_is() -> None:
    alone = flags(model="opt-66b")
    with pytest.raises(UsageError, match=r"^opt-66b needs .* of memory, 20\.0 GiB are available$"):
        fit.refuse_if_none_runs(alone, fit.reasons(alone, available=lambda: 20 * GIB))


def test_only_the_ranks_of_this_host_count() -> None:
    experiment = flags(model="gpt2", streaming="mpi")
    needs = fit.memory(experiment, experiment.points()[0])
    room = needs.host(1, 0)
    assert fit.reasons(experiment, available=lambda: room).keys() == {"p000"}
    assert not fit.reasons(experiment, sources=1, sinks=0, available=lambda: room)


# ---- time ----

RATES = fit.Rates(matmul=100e9, read=20e9)


def test_prompt_takes_its_flops_and_a_token_its_bytes() -> None:
    point = flags(model="gpt2", ubatch_size=4, input_len=256, inference_data_type="fp32").points()[0]
    prompt, token = fit.compute_seconds(point, RATES, threads=1)
    layers, seen = 12 * 12 * 768 * 768, 256 + 16
    head = 50257 * 768
    flops = 2 * 4 * (256 * layers + head) + 2 * 4 * 12 * 768 * 256**2
    assert prompt == pytest.approx(flops / 75e9)
    assert token == pytest.approx((4 * (layers + head) + 4 * seen * 2 * 12 * 768 * 4) / 12e9)
    assert fit.compute_seconds(point, RATES, threads=2)[0] == pytest.approx(prompt / 2)


def test_naive_levels_pay_for_every_run() -> None:
    experiment = flags(
        model="gpt2", kv_layout="ft", inference_data_type="fp16", streaming="mpi,disk", level="0,3", output_len=3
    )
    point = experiment.points()[0]
    seconds = {arm.name: fit.naive_seconds(point, arm) for arm in experiment.arms()}
    runs = 3 * 12 * (12 * 64 * 2 // 16 + 12)  # steps × layers × (16-byte pieces of K + heads of V)
    assert seconds["mpi@0"] == pytest.approx(runs * fit.COPY_S["mpi"])
    assert seconds["disk@0"] == pytest.approx(runs * fit.FSYNC_S)
    assert seconds["none"] == seconds["mpi@3"] == 0


def test_time_counts_every_arm_and_iteration() -> None:
    few, many = (flags(model="gpt2", streaming=s, rounds=4, warmup=1) for s in ("host", "none,host"))
    alone = fit.point_seconds(few, few.points()[0], RATES)
    assert fit.point_seconds(many, many.points()[0], RATES) == pytest.approx(3 * alone)
    assert alone == pytest.approx(5 * fit.iteration_seconds(few, few.points()[0], few.arms()[0], RATES))


def test_probe_finds_rates_of_a_computer() -> None:
    rates = fit.probe()
    assert 1e8 < rates.matmul < 1e14
    assert 1e8 < rates.read < 1e13


# ---- machine ----


@pytest.mark.parametrize(
    ("cpuinfo", "found"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("flags\t\t: fpu avx2 avx512f\nbugs\t\t: avx512_bf16\n", False),
        ("", False),
    ],
)
def test_bf16_is_read_from_the_flags(cpuinfo: str, found: bool) -> None:
    assert has_bf16(cpuinfo) is found


def machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    files = {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    1000 kB\n", "proc/self/cgroup": cgroup, **files}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "available"),
    [
        ("0::/\n", {}, 1000 * 1024),
        ("0::/a/b\n", {"sys/fs/cgroup/a/b/memory.max": "max\n"}, 1000 * 1024),
        (
            "0::/a/b\n",  # a limit of a group above counts too
            {"sys/fs/cgroup/a/memory.max": "5000\n", "sys/fs/cgroup/a/memory.current": "2000\n"},
            3000,
        ),
        (
            "4:cpu,memory:/job\n0::/\n",
            {
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "700\n",
                "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "900\n",
            },
            0,
        ),
        ("4:memory:/of/the/host\n", {"sys/fs/cgroup/memory/memory.limit_in_bytes": "600\n"}, 600),
    ],
)
def test_memory_is_what_the_tightest_bound_leaves(
    tmp_path: Path, cgroup: str, files: dict[str, str], available: int
) -> None:
    assert available_nbytes(machine(tmp_path, cgroup, files)) == available


# ---- units ----


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (3_538_944_000, "3.30 GiB"), (2**50, "1024 TiB")],
)
def test_bytes_for_people(nbytes: int, text: str) -> None:
    assert units.nbytes_text(nbytes) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.35, "350 ms"), (3.46, "3.5 s"), (45, "45 s"), (600, "10 min"), (9000, "2.5 h"), (864000, "10.0 days")],
)
def test_durations_for_people(value: float, text: str) -> None:
    assert units.seconds_text(value) == text
