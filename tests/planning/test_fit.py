"""Memory and time before anything starts, and what the kernel says of this machine."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dejavubench import units
from dejavubench.config.plan import Plan
from dejavubench.config.resolve import load
from dejavubench.config.rules import NO_FP32_ON_CUDA
from dejavubench.dejavulib.receiver import receiving_slots
from dejavubench.dejavulib.schedule import DEVICE_SLOT_COUNT, HOST_SLOT_COUNT
from dejavubench.errors import UsageError
from dejavubench.machine import gpu
from dejavubench.machine.cpu import BF16_FLAGS, parse_cpu_flags
from dejavubench.machine.gpu import CudaDevice
from dejavubench.machine.memory import measure_available_nbytes
from dejavubench.models.gpt import GPT
from dejavubench.models.hub.shard import Shard, count_most_parameters
from dejavubench.models.hub.specs import SPECS, make_custom_spec
from dejavubench.planning import duration, fit, memory
from dejavubench.planning.devices import DeviceNumbers, explain_too_few_devices, number_devices
from dejavubench.planning.fit import HostResources
from dejavubench.planning.memory import Memory
from dejavubench.transports.registry import find_transport
from dejavubench.units import MIB
from helpers.fake_gpu import H200, refuse_question
from helpers.machine_files import write_machine

GIB = 1 << 30


pytestmark = pytest.mark.usefixtures("no_gpu")  # tests of cuda give themselves a device


def plan_of(**values: Any) -> Plan:
    return load(None, values, {})


# ---- memory ----


@pytest.mark.parametrize("name", SPECS)
def test_one_worker_holds_the_whole_model(name: str) -> None:
    assert (
        count_most_parameters(SPECS[name], tensor_size=1, stage_count=1)
        == SPECS[name].parameter_count
    )


@pytest.mark.parametrize(("tensor_size", "stages"), [(1, 2), (2, 1), (2, 3), (4, 5)])
def test_worker_parameters_are_those_of_the_largest_shard(tensor_size: int, stages: int) -> None:
    sizes = make_custom_spec(layer_num=5, head_num=4, size_per_head=8, vocab_size=512, context=64)
    shards = [
        Shard(stage, stages, rank, tensor_size)
        for stage in range(stages)
        for rank in range(tensor_size)
    ]
    with torch.device("meta"):
        parameters = [
            GPT(sizes, shard, torch.float32, torch.float32).parameter_count for shard in shards
        ]
    assert count_most_parameters(sizes, tensor_size, stages) == max(parameters)


def test_cache_is_of_all_microbatches_in_flight() -> None:
    values = {"model": "gpt2", "ubatch_size": 4, "input_len": 256, "inference_data_type": "fp16"}
    one_stage, three = (plan_of(pipeline_para_size=depth, **values) for depth in (1, 3))
    cache_nbytes = (
        4 * 288 * 2 * 12 * 768 * 2
    )  # requests × positions × K and V × layers × hidden × bytes
    assert memory.estimate_memory(one_stage, one_stage.points[0]).cache_nbytes == cache_nbytes
    # Each rank has a third of the layers, and holds three microbatches of them.
    assert memory.estimate_memory(three, three.points[0]).cache_nbytes == 3 * cache_nbytes // 3


@pytest.mark.parametrize(("data_type", "itemsize"), [("bf16", 2), ("fp16", 2), ("fp32", 4)])
def test_weights_are_held_once_in_their_own_type(data_type: str, itemsize: int) -> None:
    plan = plan_of(model="gpt2", inference_data_type=data_type)
    assert (
        memory.estimate_memory(plan, plan.points[0]).weights_nbytes
        == itemsize * SPECS["gpt2"].parameter_count
    )


def test_each_destination_adds_what_it_takes() -> None:
    def needs_of(streaming: str) -> Memory:
        plan = plan_of(model="gpt2", ubatch_size=4, input_len=256, streaming=streaming)
        return memory.estimate_memory(plan, plan.points[0])

    streamed = plan_of(model="gpt2", ubatch_size=4, input_len=256).points[0].streamed_nbytes
    none, host, disk = needs_of("none"), needs_of("host"), needs_of("disk")
    staging = 4 * 16 * MIB
    assert disk.source.host_nbytes == none.source.host_nbytes + staging
    assert host.source.host_nbytes == none.source.host_nbytes + streamed, (
        "it is gathered straight into place"
    )
    assert {
        rank.device_nbytes for needs in (none, host, disk) for rank in (needs.source, needs.sink)
    } == {0}
    assert (none.disk_nbytes, host.disk_nbytes, disk.disk_nbytes) == (0, 0, streamed)


def test_a_sweep_skips_a_model_that_does_not_fit_and_says_both_sizes() -> None:
    sweep = plan_of(model="gpt2,opt-66b", inference_data_type="fp16")
    reasons = fit.find_skip_reasons(sweep, HostResources(20 * GIB))
    assert list(reasons) == ["p001"]
    needed = units.format_binary_nbytes(
        memory.estimate_memory(sweep, sweep.points[1]).host_nbytes(source_count=1, sink_count=0)
    )
    assert reasons["p001"] == f"opt-66b needs {needed} of memory; 20.0 GiB are available"
    fit.refuse_if_none_runs(sweep, reasons)


def test_a_run_of_one_model_that_does_not_fit_is_refused() -> None:
    plan = plan_of(model="opt-66b")
    with pytest.raises(UsageError, match=r"^opt-66b needs .* of memory; 20\.0 GiB are available$"):
        fit.refuse_if_none_runs(plan, fit.find_skip_reasons(plan, HostResources(20 * GIB)))


def test_only_the_ranks_of_this_host_count() -> None:
    plan = plan_of(model="gpt2", streaming="mpi")
    needs = memory.estimate_memory(plan, plan.points[0])
    room = needs.host_nbytes(source_count=1, sink_count=0)
    assert fit.find_skip_reasons(plan, HostResources(room)).keys() == {"p000"}
    assert not fit.find_skip_reasons(plan, HostResources(room), source_count=1, sink_count=0)


# ---- memory of a GPU ----


def cuda_needs(**values: Any) -> Memory:
    values = {"model": "opt-13b", "ubatch_size": 8, "input_len": 500, "output_len": 500, **values}
    plan = plan_of(device="cuda", **values)
    return memory.estimate_memory(plan, plan.points[0])


@pytest.mark.usefixtures("gpu")
def test_a_gpu_holds_weights_and_cache_in_the_models_type() -> None:
    needs = cuda_needs()
    cache = 8 * 1024 * 2 * 40 * 5120 * 2  # requests × positions × K and V × layers × hidden × bytes
    # Activations, and logits in fp16 and fp32.
    working = 2 * 4000 * (4 * 5120 + 4 * 5120) * 2 + 8 * 50272 * (2 + 4)
    assert (needs.weights_nbytes, needs.cache_nbytes) == (
        2 * SPECS["opt-13b"].parameter_count,
        cache,
    )
    assert (
        needs.source.device_nbytes
        == memory.CUDA_CONTEXT_NBYTES + needs.weights_nbytes + cache + working
    )
    # Weights are drawn on the GPU, so the host holds no copy.
    assert needs.source.host_nbytes == memory.CUDA_PROCESS_NBYTES
    assert cuda_needs(inference_data_type="bf16").weights_nbytes == needs.weights_nbytes


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("model", "elements"),
    [("opt-13b", 50272 * 5120), ("opt-66b", 2 * 9216 * 4 * 9216)],
    ids=["embedding", "paired"],
)
def test_a_drawn_tensor_counts_where_it_is_more_than_a_prompt(model: str, elements: int) -> None:
    needs = cuda_needs(model=model, ubatch_size=1, input_len=8)
    assert (
        needs.source.device_nbytes
        - memory.CUDA_CONTEXT_NBYTES
        - needs.weights_nbytes
        - needs.cache_nbytes
        == 2 * elements
    )


@pytest.mark.usefixtures("gpu")
def test_each_destination_adds_what_it_takes_on_host_and_gpu() -> None:
    none, host, mpi, nccl, needs_of_both = (
        cuda_needs(streaming=mode) for mode in ("none", "host", "mpi", "nccl", "none,nccl,nixl")
    )
    staging, streamed = 4 * 16 * MIB, 8 * 999 * 2 * 40 * 5120 * 2
    arriving = none.cache_nbytes + 2 * 16 * MIB
    for needs in (host, mpi, nccl):
        assert needs.source.device_nbytes == none.source.device_nbytes + staging
    assert host.source.host_nbytes == none.source.host_nbytes + memory.round_to_pinned_nbytes(
        streamed
    )
    assert mpi.source.host_nbytes == none.source.host_nbytes + staging
    assert nccl.source.host_nbytes == none.source.host_nbytes
    assert (mpi.sink.host_nbytes, mpi.sink.device_nbytes) == (memory.PROCESS_NBYTES + arriving, 0)
    assert (nccl.sink.host_nbytes, nccl.sink.device_nbytes) == (
        memory.CUDA_PROCESS_NBYTES,
        memory.CUDA_CONTEXT_NBYTES + none.cache_nbytes + DEVICE_SLOT_COUNT * 16 * MIB,
    )
    assert (needs_of_both.source, needs_of_both.sink) == (nccl.source, nccl.sink), (
        "they share caches and staging"
    )


@pytest.mark.usefixtures("gpu")
def test_naive_levels_land_a_whole_prompt() -> None:
    levels = {
        level: cuda_needs(streaming="host", level=level).source.host_nbytes
        for level in ("0", "0-batched", "1")
    }
    prompt = 8 * 500 * 2 * 40 * 5120 * 2
    assert levels["0"] == levels["0-batched"] == levels["1"] + memory.round_to_pinned_nbytes(prompt)
    both_nbytes = cuda_needs(streaming="host,disk", level="0,0-batched").source.host_nbytes
    assert both_nbytes == levels["0"] + 4 * 16 * MIB, "they share it; disk has slots too"


def test_sinks_have_the_slots_of_the_librarys_receivers() -> None:
    devices = (torch.device("cpu"), torch.device("cuda"))
    assert tuple(map(receiving_slots, devices)) == (HOST_SLOT_COUNT, DEVICE_SLOT_COUNT)


def test_torch_takes_powers_of_two_of_pinned_memory() -> None:
    assert [memory.round_to_pinned_nbytes(nbytes) for nbytes in (0, 1, 4096, 4097)] == [
        0,
        1,
        4096,
        8192,
    ]


@pytest.mark.usefixtures("gpu")
def test_fp32_is_skipped_on_a_gpu() -> None:
    points = plan_of(inference_data_type="fp32,fp16", model="gpt2")
    assert fit.find_skip_reasons(points, HostResources(64 * GIB, (H200,))) == {
        "p000": NO_FP32_ON_CUDA
    }
    with pytest.raises(UsageError, match="fp32 does not run on a GPU"):
        plan_of(inference_data_type="fp32", model="gpt2")


@pytest.mark.usefixtures("gpu")
def test_ranks_take_gpus_in_turn_and_sinks_of_a_loopback_share_with_their_sources() -> None:
    host_plan, mpi_plan, nccl_plan = (
        plan_of(streaming=mode, tensor_para_size=2) for mode in ("host", "mpi", "nccl")
    )
    loopback_plan = plan_of(streaming="nccl", tensor_para_size=2, nccl_loopback=True)
    assert (
        number_devices(host_plan, source_count=2, sink_count=0, device_count=4)
        == number_devices(mpi_plan, source_count=2, sink_count=2, device_count=4)
        == DeviceNumbers((0, 1))
    )
    assert number_devices(nccl_plan, source_count=2, sink_count=2, device_count=4) == DeviceNumbers(
        (0, 1), (2, 3)
    )
    # Sinks on a host of their own.
    assert number_devices(nccl_plan, source_count=0, sink_count=2, device_count=4) == DeviceNumbers(
        (), (0, 1)
    )
    assert number_devices(
        loopback_plan, source_count=2, sink_count=2, device_count=4
    ) == DeviceNumbers((0, 1), (0, 1))
    assert number_devices(host_plan, source_count=2, sink_count=0, device_count=1) == DeviceNumbers(
        (0, 0)
    )


@pytest.mark.usefixtures("gpu")
def test_ranks_on_one_gpu_add_up() -> None:
    values = {"model": "opt-13b", "streaming": "nccl", "nccl_loopback": True}
    plan = plan_of(**values)
    needs = memory.estimate_memory(plan, plan.points[0])
    both_nbytes = needs.source.device_nbytes + needs.sink.device_nbytes
    assert needs.nbytes_by_device(
        number_devices(plan, source_count=1, sink_count=1, device_count=1)
    ) == {0: both_nbytes}
    enough, too_small = (
        CudaDevice("GPU", nbytes, "GPU-x") for nbytes in (both_nbytes, both_nbytes - 1)
    )
    assert not fit.find_skip_reasons(plan, HostResources(64 * GIB, (enough,)))
    assert fit.find_skip_reasons(plan, HostResources(64 * GIB, (too_small,))).keys() == {"p000"}


@pytest.mark.usefixtures("gpu")
def test_a_sweep_skips_what_does_not_fit_the_gpu_and_says_both_sizes() -> None:
    sweep = plan_of(model="opt-13b,opt-66b", ubatch_size=16, input_len=1000)
    reasons = fit.find_skip_reasons(sweep, HostResources(64 * GIB, (H200,)))
    needed = units.format_binary_nbytes(
        memory.estimate_memory(sweep, sweep.points[1]).source.device_nbytes
    )
    assert reasons == {"p001": f"opt-66b needs {needed} of GPU memory; NVIDIA H200 has 140 GiB"}


@pytest.mark.usefixtures("gpu")
def test_host_memory_counts_on_cuda_too() -> None:
    plan = plan_of(model="opt-13b", streaming="host")
    (reason,) = fit.find_skip_reasons(plan, HostResources(GIB, (H200,))).values()
    assert reason.endswith("of memory; 1.00 GiB are available")


@pytest.mark.usefixtures("gpu")
def test_a_host_without_devices_can_have_sinks_of_host_memory_only() -> None:
    plan = plan_of(model="gpt2", streaming="mpi")
    room = HostResources(64 * GIB)
    assert fit.find_skip_reasons(plan, room, source_count=0, sink_count=1) == {}
    assert fit.find_skip_reasons(plan, room, source_count=1, sink_count=0) == {
        "p000": "gpt2 needs a CUDA device; none is found on this host"
    }


@pytest.mark.usefixtures("gpu")
def test_nccl_needs_a_gpu_for_each_rank_of_a_host_or_leave_to_share() -> None:
    nccl = plan_of(streaming="none,nccl")
    assert explain_too_few_devices(nccl, (H200,)) == (
        "--streaming nccl needs one GPU per rank: this host has 2 ranks and 1 GPU. "
        "--nccl-loopback lets a source and its sink share one"
    )
    assert explain_too_few_devices(nccl, (H200, H200)) is None
    assert explain_too_few_devices(nccl, (H200,), source_count=1, sink_count=0) is None
    for values in ({"streaming": "none,nccl", "nccl_loopback": True}, {"streaming": "mpi"}):
        assert explain_too_few_devices(plan_of(**values), (H200,)) is None


@pytest.mark.usefixtures("gpu")
def test_a_hand_over_needs_a_gpu_for_each_rank_of_a_host_or_leave_to_share() -> None:
    values = {"model": "opt-13b", "streaming": "mpi", "handoff": True}
    plan, shared = plan_of(**values), plan_of(**values, nccl_loopback=True)
    assert explain_too_few_devices(plan, (H200,)) == (
        "--handoff needs one GPU per rank: this host has 2 ranks and 1 GPU. --nccl-loopback lets "
        "ranks share one"
    )
    assert explain_too_few_devices(plan, (H200, H200)) is None
    assert explain_too_few_devices(shared, (H200,)) is None
    assert number_devices(plan, 1, 1, 2) == number_devices(shared, 1, 1, 2)
    assert number_devices(plan, 1, 1, 2) == DeviceNumbers((0,), (1,))
    assert number_devices(shared, 1, 1, 1) == DeviceNumbers((0,), (0,))


@pytest.mark.usefixtures("gpu")
def test_a_sink_that_goes_on_has_model_and_cache_on_its_gpu() -> None:
    values = {"model": "opt-13b", "streaming": "mpi", "output_len": 8}
    receiving, going_on = plan_of(**values), plan_of(**values, handoff=True)
    needs = memory.estimate_memory(going_on, going_on.points[0])
    assert memory.estimate_memory(receiving, receiving.points[0]).sink.device_nbytes == 0
    model_nbytes = 2 * count_most_parameters(going_on.points[0].spec, 1, 1)
    assert needs.sink.device_nbytes > model_nbytes + memory.count_arriving_nbytes(
        going_on.points[0]
    )
    assert needs.sink.device_nbytes < 1.2 * needs.source.device_nbytes


def test_the_driver_is_not_asked_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(model="gpt2", streaming="none,nccl")
    monkeypatch.setattr(gpu, "list_cuda_devices", refuse_question)
    assert fit.find_skip_reasons(plan, HostResources.here(plan)) == {}
    assert explain_too_few_devices(plan, ()) is None


# ---- time ----

RATES = duration.Rates(matmul=100e9, read=20e9)


def test_prompt_takes_its_flops_and_a_token_its_bytes() -> None:
    point = plan_of(model="gpt2", ubatch_size=4, input_len=256, inference_data_type="fp32").points[
        0
    ]
    prompt, token = duration.estimate_compute_s(point, RATES, thread_count=1)
    layers = 12 * 12 * 768 * 768
    attended = 256 + 16  # the prompt, and half of the 32 new tokens
    head = 50257 * 768
    flops = 2 * 4 * (256 * layers + head) + 2 * 4 * 12 * 768 * 256**2
    assert prompt == pytest.approx(flops / 75e9)
    assert token == pytest.approx((4 * (layers + head) + 4 * attended * 2 * 12 * 768 * 4) / 12e9)
    assert duration.estimate_compute_s(point, RATES, thread_count=2)[0] == pytest.approx(prompt / 2)


def test_naive_levels_pay_for_every_extent() -> None:
    plan = plan_of(
        model="gpt2",
        kv_layout="ft",
        inference_data_type="fp16",
        streaming="mpi,disk",
        level="0,3",
        output_len=3,
    )
    point = plan.points[0]
    seconds = {arm.name: duration.estimate_naive_s(point, arm) for arm in plan.arms}
    extents = (
        3 * 12 * (12 * 64 * 2 // 16 + 12)
    )  # steps × layers × (16-byte pieces of K + heads of V)
    assert seconds["mpi@0"] == pytest.approx(extents * find_transport("mpi").copy_s)
    assert seconds["disk@0"] == pytest.approx(extents * find_transport("disk").sync_s)
    assert seconds["none"] == seconds["mpi@3"] == 0


def test_time_counts_every_arm_and_iteration() -> None:
    one_arm, three_arms = (
        plan_of(model="gpt2", streaming=streaming, rounds=4, warmup=1)
        for streaming in ("host", "none,host")
    )
    one_arm_s = duration.estimate_point_s(one_arm, one_arm.points[0], RATES)
    assert duration.estimate_point_s(three_arms, three_arms.points[0], RATES) == pytest.approx(
        3 * one_arm_s
    )
    assert one_arm_s == pytest.approx(
        5 * duration.estimate_iteration_s(one_arm, one_arm.points[0], one_arm.arms[0], RATES)
    )


def test_the_probe_finds_rates_that_a_computer_can_have() -> None:
    rates = duration.probe_core()
    assert 1e8 < rates.matmul < 1e14
    assert 1e8 < rates.read < 1e13


# ---- machine ----


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("flags\t\t: fpu avx2 avx512f\nbugs\t\t: avx512_bf16\n", False),
        ("", False),
    ],
)
def test_bf16_is_found_among_the_flags_of_cpuinfo(cpuinfo: str, expected: bool) -> None:
    assert bool(parse_cpu_flags(cpuinfo) & BF16_FLAGS) is expected


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
    meminfo = {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    1000 kB\n"}
    assert measure_available_nbytes(write_machine(tmp_path, cgroup, meminfo | files)) == available


# ---- units ----


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.50 KiB"),
        (3_538_944_000, "3.30 GiB"),
        (2**50, "1024 TiB"),
    ],
)
def test_bytes_are_printed_in_binary_units(nbytes: int, text: str) -> None:
    assert units.format_binary_nbytes(nbytes) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.35, "350 ms"),
        (3.46, "3.5 s"),
        (45, "45 s"),
        (600, "10 min"),
        (9000, "2.5 h"),
        (864000, "10.0 days"),
    ],
)
def test_durations_are_printed_in_the_unit_that_suits_them(value: float, text: str) -> None:
    assert units.format_duration(value) == text


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("25GB/s", 25e9),
        (" 1.5 MB/s ", 1.5e6),
        ("64kB/s", 64e3),
        ("2GiB/s", 2**31),
        ("200Gbit/s", 25e9),
        ("200Gb/s", 25e9),
        ("400Gbps", 50e9),
        ("8B/s", 8),
    ],
)
def test_rates_are_read_as_people_write_them(text: str, rate: float) -> None:
    assert units.parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["25", "GB/s", "25GB", "-1GB/s", "0GB/s", "1..5GB/s", "25gB/s", "1iB/s", 25, ""]
)
def test_a_malformed_rate_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="is not a rate such as"):
        units.parse_rate(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5us", 5e-6),
        ("5 µs", 5e-6),
        ("5μs", 5e-6),
        ("0.1ms", 1e-4),
        ("800ns", 8e-7),
        ("1s", 1),
        ("0", 0),
        ("0us", 0),
    ],
)
def test_latencies_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert units.parse_latency(text) == seconds


@pytest.mark.parametrize("text", ["5", "us", "-5us", "1h", "1.2.3us", 5, ""])
def test_a_malformed_latency_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="is not a latency such as"):
        units.parse_latency(text)
