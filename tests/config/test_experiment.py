"""Experiments: defaults, lists, files, flags, and one line for each that cannot run."""

import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from dejavubench.config.arms import Arm
from dejavubench.config.experiment import Experiment
from dejavubench.config.loading import read_experiment
from dejavubench.config.plan import Plan
from dejavubench.config.resolve import load
from dejavubench.errors import UsageError
from dejavubench.machine import cpu, gpu
from dejavubench.machine.gpu import CudaDevice
from helpers.fake_gpu import refuse_question

pytestmark = pytest.mark.usefixtures("no_gpu")  # tests of cuda give themselves a device


def make_plan(**values: Any) -> Plan:
    return load(None, values, {})


def load_error(**values: Any) -> str:
    """Return the one line that says why an experiment cannot be loaded."""
    with pytest.raises(UsageError) as caught:
        make_plan(**values)
    message = str(caught.value)
    assert "\n" not in message
    assert "pydantic" not in message
    return message


def write_sweep(folder: Path, text: str) -> Path:
    path = folder / "sweep.toml"
    path.write_text(text)
    return path


# ---- values ----


def test_defaults_are_the_original_batch_makers() -> None:
    point = make_plan().points[0]
    assert (point.spec.layer_num, point.spec.head_num, point.spec.size_per_head) == (24, 16, 64)
    assert (point.spec.vocab_size, point.ubatch_size, point.input_len, point.output_len) == (
        50304,
        1,
        1,
        32,
    )
    assert [arm.name for arm in make_plan().arms] == ["none"]


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, 'model = "gpt2"\nubatch_size = [1, 2]\ninput-len = 8\n')
    experiment = load(path, {"ubatch_size": "4,8"}, {}).experiment
    assert experiment.ubatch_size == (4, 8)
    assert experiment.input_len == (8,)
    assert experiment.output_len == (32,)
    assert experiment.name == "sweep"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("precision", "0.5%", 0.005),
        ("precision", "0.02", 0.02),
        ("precision", "none", None),
        ("target_overhead", "2%", 0.02),
        ("max_time", "10m", 600.0),
        ("max_time", "90", 90.0),
        ("max_time", "1h", 3600.0),
        ("drain_timeout", "5s", 5.0),
        ("ubatch_size", "1, 2", (1, 2)),
        ("kv_layout", "ft,nhd", ("ft", "nhd")),
    ],
)
def test_values_are_read_as_people_write_them(key: str, text: str, value: object) -> None:
    assert getattr(make_plan(**{key: text}).experiment, key) == value


def test_auto_is_bf16_only_where_the_cpu_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_native_bf16", lambda: True)
    assert make_plan().experiment.inference_data_type == ("bf16",)
    monkeypatch.setattr(cpu, "has_native_bf16", lambda: False)
    assert make_plan().experiment.inference_data_type == ("fp32",)


# ---- the device ----


def test_auto_is_the_cpu_without_a_cuda_device() -> None:
    assert make_plan().experiment.device == "cpu"


@pytest.mark.usefixtures("gpu")
def test_auto_is_cuda_and_fp16_where_there_is_a_device() -> None:
    assert (make_plan().experiment.device, make_plan().experiment.inference_data_type) == (
        "cuda",
        ("fp16",),
    )
    assert make_plan(weights_data_type="auto").weights_data_type == "fp16"
    assert make_plan(
        device="cuda", inference_data_type="auto,fp32"
    ).experiment.inference_data_type == (
        "fp16",
        "fp32",
    )


@pytest.mark.usefixtures("gpu")
def test_the_cpu_is_used_when_it_is_named() -> None:
    experiment = make_plan(device="cpu").experiment
    assert experiment.device == "cpu"
    assert experiment.inference_data_type != ("fp16",)
    assert load_error(device="cpu", streaming="nccl").endswith("it needs a CUDA device")


def test_cuda_without_a_device_is_refused_naming_where_it_was_asked_for(tmp_path: Path) -> None:
    problem = "no CUDA device is found here: there is no NVIDIA driver, or it lists none"
    assert load_error(device="cuda", streaming="nccl") == f"--device cuda: {problem}"
    path = write_sweep(tmp_path, 'device = "cuda"\n')
    with pytest.raises(UsageError) as caught:
        load(path, {}, {})
    assert str(caught.value) == f"{path}: device cuda: {problem}"
    assert load(path, {"device": "cpu"}, {}).experiment.device == "cpu"


def test_a_driver_that_does_not_work_is_no_silent_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> tuple[CudaDevice, ...]:
        raise RuntimeError("the CUDA driver does not work: cuInit returned error 803")

    monkeypatch.setattr(gpu, "list_cuda_devices", broken)
    description = (
        "the CUDA driver does not work: cuInit returned error 803. "
        "Use --device cpu to run without a GPU"
    )
    assert load_error(device="cuda") == f"--device: {description}"
    assert load_error(device="auto") == f"--device: {description}"
    assert load_error() == f"device: {description}"
    assert make_plan(device="cpu").experiment.device == "cpu"


def test_weights_may_be_rounded_through_another_type() -> None:
    plan = make_plan(weights_data_type="fp16", inference_data_type="fp32")
    assert plan.points[0].data_type == "fp32"
    assert plan.hash() != make_plan(inference_data_type="fp32").hash()


# ---- the level and its environment variable ----


def test_level_comes_from_flag_then_environment_then_file(tmp_path: Path) -> None:
    environment = {"DEJAVULIB_BASELINE": "0"}
    path = write_sweep(tmp_path, 'streaming = "mpi"\nlevel = [1, 2]\n')
    assert load(None, {"streaming": "mpi"}, environment).experiment.level == ("0",)
    assert load(path, {}, {}).experiment.level == ("1", "2")
    assert load(path, {}, environment).experiment.level == ("0",)
    assert load(path, {"level": "3"}, environment).experiment.level == ("3",)
    assert load(None, {}, {}).experiment.level == ("3",)


def test_bad_level_in_the_environment_names_the_variable() -> None:
    with pytest.raises(
        UsageError,
        match=r"^DEJAVULIB_BASELINE: there is no level '4'; levels are 0, 0-batched, 1, 2, 3$",
    ):
        load(None, {"streaming": "mpi"}, {"DEJAVULIB_BASELINE": "4"})


# ---- points ----


def test_points_are_the_product_of_the_lists_in_a_stable_order() -> None:
    points = make_plan(
        model="gpt2,opt-125m", kv_layout="ft,hnd", ubatch_size="1,4", input_len="32,64"
    ).points
    assert [point.id for point in points] == [f"p{number:03d}" for number in range(16)]
    # The model changes slowest: each is loaded once.
    assert [point.spec.name for point in points] == ["gpt2"] * 8 + ["opt-125m"] * 8
    first_points = [
        (swept_point.kv_layout, swept_point.ubatch_size, swept_point.input_len)
        for swept_point in points[:5]
    ]
    assert first_points == [
        ("ft", 1, 32),
        ("ft", 1, 64),
        ("ft", 4, 32),
        ("ft", 4, 64),
        ("hnd", 1, 32),
    ]


@pytest.mark.parametrize(
    ("values", "positions"),
    [
        ({"model": "gpt2", "input_len": 256, "output_len": 32}, 288),
        ({"model": "gpt2", "input_len": 250, "output_len": 32}, 288),
        ({"model": "gpt2", "input_len": 1000, "output_len": 25}, 1024),  # never beyond the context
        ({"model": "bloom-560m", "input_len": 3000, "output_len": 1}, 3008),  # ALiBi: unbounded
        ({"model": "gpt2", "input_len": 8, "output_len": 8, "max_seq_len": 15}, 15),
    ],
)
def test_a_cache_has_positions_for_all_that_is_written(
    values: dict[str, Any], positions: int
) -> None:
    point = make_plan(**values).points[0]
    assert point.positions == positions
    assert point.written_position_count == point.input_len + point.output_len - 1 <= positions


def test_custom_model_has_one_context_for_all_lengths() -> None:
    points = make_plan(
        layer_num=2, head_num=4, size_per_head=8, input_len="4,100", output_len=10
    ).points
    assert {point.spec.context for point in points} == {128}
    assert [point.positions for point in points] == [32, 128]


def test_a_request_of_opt_66b_streams_the_bytes_of_the_reference() -> None:
    point = make_plan(
        model="opt-66b", inference_data_type="fp16", input_len=1500, output_len=1
    ).points[0]
    assert point.streamed_nbytes == 3_538_944_000  # REFERENCE: 64 layers, hidden 9216, 1500 tokens


def test_a_sweep_keeps_points_that_cannot_run_and_says_why() -> None:
    gpt2, opt = make_plan(model="gpt2,opt-125m", input_len=1500).points
    assert (
        gpt2.problem
        == "--input-len 1500 and --output-len 32 take 1531 positions, but gpt2 has 1024"
    )
    assert opt.problem is None


# ---- arms ----


def read_arm_names(**values: Any) -> list[str]:
    return [arm.name for arm in make_plan(**values).arms]


def test_one_destination_at_one_level_is_the_only_arm() -> None:
    assert make_plan(streaming="mpi").arms == (Arm("mpi@3", "mpi", "3"),)


def test_several_destinations_are_compared_with_two_baselines() -> None:
    arm_names = read_arm_names(streaming="none,host,disk,mpi")
    assert arm_names == ["none", "none#2", "host@3", "disk@3", "mpi@3"]
    roles = [arm.role for arm in make_plan(streaming="none,host").arms]
    assert roles == ["baseline", "repeat", "streaming"]


@pytest.mark.parametrize("values", [{"compare": True}, {"level": "0,3"}, {"streaming": "none,mpi"}])
def test_a_comparison_or_a_second_arm_adds_two_baselines(values: dict[str, Any]) -> None:
    assert read_arm_names(**{"streaming": "mpi", **values})[:2] == ["none", "none#2"]


def test_levels_belong_to_destinations_and_durability_to_disk() -> None:
    arm_names = read_arm_names(streaming="disk,mpi", level="0,3", durability="fdatasync,page-cache")
    assert arm_names == [
        *("none", "none#2"),
        *("disk@0", "disk@0/page-cache", "disk@3", "disk@3/page-cache"),
        *("mpi@0", "mpi@3"),
    ]


def test_nccl_is_skipped_in_a_sweep_and_refused_alone() -> None:
    skipped = {arm.name: arm.skipped for arm in make_plan(streaming="none,nccl,host").arms}
    assert skipped == {"none": None, "none#2": None, "nccl@3": "no CUDA device", "host@3": None}
    assert (
        load_error(streaming="nccl")
        == "--streaming nccl moves the cache from GPU to GPU: it needs a CUDA device"
    )


@pytest.mark.usefixtures("gpu")
def test_nccl_is_an_arm_like_others_on_cuda() -> None:
    assert make_plan(streaming="nccl").arms == (Arm("nccl@3", "nccl", "3"),)
    assert read_arm_names(streaming="nccl,host", level="0,3")[2:] == [
        "nccl@0",
        "nccl@3",
        "host@0",
        "host@3",
    ]
    assert make_plan(streaming="none,nccl").rank_counts == (2,)


@pytest.mark.usefixtures("gpu")
def test_the_arm_of_a_loopback_is_named_nccl_loopback() -> None:
    plan = make_plan(streaming="none,host,nccl", nccl_loopback=True)
    assert [(arm.name, arm.mode, arm.is_loopback) for arm in plan.arms[2:]] == [
        ("host@3", "host", False),
        ("nccl-loopback@3", "nccl", True),
    ]
    assert plan.hash() != make_plan(streaming="none,host,nccl").hash()


def test_loopback_is_for_nccl() -> None:
    message = load_error(streaming="none,mpi", nccl_loopback=True)
    assert re.fullmatch("--nccl-loopback needs --streaming nccl( or [a-z-]+)*", message)
    skipped = {
        arm.name: arm.skipped for arm in make_plan(streaming="none,nccl", nccl_loopback=True).arms
    }
    assert skipped["nccl-loopback@3"] == "no CUDA device"


@pytest.mark.usefixtures("gpu")
def test_parts_of_one_model_may_share_a_gpu_whatever_the_destination() -> None:
    shared = make_plan(streaming="mpi", pipeline_para_size=2, nccl_loopback=True, device="cuda")
    assert shared.experiment.nccl_loopback
    message = "--nccl-loopback needs --streaming nccl"
    one_part = {"streaming": "mpi", "nccl_loopback": True, "device": "cuda"}
    assert load_error(**one_part).startswith(message)
    on_cpu = {"streaming": "mpi", "pipeline_para_size": 2, "nccl_loopback": True, "device": "cpu"}
    assert load_error(**on_cpu).startswith(message)


# ---- ranks ----


@pytest.mark.parametrize(
    ("values", "ranks"),
    [
        ({"streaming": "none"}, (1, 2)),
        ({"streaming": "host", "tensor_para_size": 2}, (2, 4)),
        ({"streaming": "mpi"}, (2,)),
        ({"streaming": "none,nccl"}, (1, 2)),  # skipped, so nobody needs its sinks
        ({"streaming": "none,mpi", "tensor_para_size": 2, "pipeline_para_size": 2}, (8,)),
    ],
)
def test_the_rank_counts_that_the_arms_need_are_accepted(
    values: dict[str, Any], ranks: tuple[int, ...]
) -> None:
    plan = make_plan(**values)
    assert plan.rank_counts == ranks
    for size in ranks:
        plan.check_ranks(size)
    with pytest.raises(UsageError, match=f"Start it with: mpirun -n {ranks[0]} "):
        plan.check_ranks(3)


def test_wrong_rank_count_says_what_is_accepted_and_why() -> None:
    with pytest.raises(UsageError) as caught:
        make_plan(streaming="mpi", tensor_para_size=2).check_ranks(2)
    assert str(caught.value) == (
        "mpi needs 4 ranks here (2 sources by --tensor-para-size 2 × --pipeline-para-size 1, and "
        "2 sinks), but 2 were started. Start it with: mpirun -n 4 dejavubench run …"
    )
    with pytest.raises(UsageError) as caught:
        make_plan(streaming="none").check_ranks(3)
    assert str(caught.value) == (
        "this run needs 1 or 2 ranks (1 source, with or without 1 sink), but 3 were started. "
        "Start it with: mpirun -n 1 dejavubench run …"
    )


# ---- identity ----


HASHES: dict[str, dict[str, Any]] = {
    "6e205b2be5869a9c": {},
    "4f4a47f8aba88198": {
        "model": "gpt2",
        "ubatch_size": "4",
        "input_len": "256",
        "streaming": "none,host,disk,mpi",
        "level": "0,3",
        "precision": "1%",
        "max_time": "10m",
    },
    "b70f6eb2c245ab81": {
        "model": "gpt2,opt-125m",
        "kv_layout": "ft,nhd",
        "streaming": "disk",
        "durability": "fdatasync,page-cache",
        "keep": True,
        "stream_dir": "/tmp",
        "seed": 7,
    },
    "e6452e9abcc5aaa2": {
        "streaming": "mpi",
        "handoff": True,
        "output_len": "9",
        "ubatch_size": "4",
        "sink_ubatch_size": "2",
        "weights_data_type": "fp16",
    },
    "dc710a9870442e9e": {
        "model": "gpt2",
        "swap": "host,disk",
        "pipeline_para_size": "4",
        "resident": "3",
        "temperature": "0.5",
        "top_k": "40",
        "top_p": "0.9",
    },
    "861f87f5f01da2e7": {
        "streaming": "none,tcp",
        "peer": "127.0.0.1:7601",
        "tcp_checksums": True,
        "threads": "2",
        "link": "500Mbit/s",
        "rank_timeout": "0",
        "note": "n",
        "name": "x",
        "log_dir": "elsewhere",
    },
}
"""Hashes of experiments as records of earlier versions have them."""


@pytest.mark.parametrize("expected", HASHES)
def test_an_experiment_keeps_its_hash(expected: str) -> None:
    """Records of earlier versions are told apart, and found alike, by it."""
    values = {**HASHES[expected], "device": "cpu", "inference_data_type": "fp32"}
    assert make_plan(**values).hash() == expected


def test_given_prompts_are_hashed_in_place_of_their_file(tmp_path: Path) -> None:
    (tmp_path / "ids.csv").write_text("1,2,3\n4,5\n")
    values = {"device": "cpu", "inference_data_type": "fp32", "model": "gpt2"}
    assert make_plan(prompts=tmp_path / "ids.csv", **values).hash() == "914680f3770aa5d9"


def test_every_spelling_of_the_same_values_is_the_same_experiment() -> None:
    plan = make_plan(
        model="gpt2", ubatch_size="1,2", precision="1%", streaming="none,disk", stream_dir="/tmp"
    )
    experiment = plan.experiment
    for respelt in (
        Experiment(**experiment.model_dump(mode="json")),
        Experiment.model_validate_json(experiment.model_dump_json()),
        pickle.loads(pickle.dumps(experiment)),
    ):
        assert respelt == experiment
        assert Plan(respelt).hash() == plan.hash()


def test_a_plan_reaches_other_ranks_as_it_is() -> None:
    plan = make_plan(model="gpt2,opt-125m", streaming="none,nccl,host")
    received_plan = pickle.loads(pickle.dumps(plan))
    assert (received_plan, received_plan.points, received_plan.arms) == (
        plan,
        plan.points,
        plan.arms,
    )


def test_reading_values_looks_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "list_cuda_devices", refuse_question)
    monkeypatch.setattr(cpu, "has_native_bf16", refuse_question)
    values = {"ckpt_path": "nowhere", "prompts": "nowhere", "resume": "nowhere"}
    experiment = read_experiment(None, values, {}).experiment
    assert (experiment.device, experiment.inference_data_type) == ("auto", ("auto",))


def test_hash_is_of_what_is_measured() -> None:
    plan = make_plan(model="gpt2")
    assert (
        make_plan(model="gpt2", name="other", note="x", log_dir="elsewhere").hash() == plan.hash()
    )
    assert make_plan(model="gpt2", seed=1).hash() != plan.hash()


# ---- what cannot be run ----


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "gtp2"}, "--model: unknown model 'gtp2'; did you mean gpt2?"),
        ({"ubatch_size": "two"}, "--ubatch-size: must be a whole number, not 'two'"),
        ({"ubatch_size": "0"}, "--ubatch-size: must be greater than 0, not '0'"),
        ({"ubatch_size": "4,4"}, "--ubatch-size: 4, 4: a value is given twice"),
        (
            {"ubatch_size": "1,,2"},
            "--ubatch-size: the list has an empty value; give at least one value between commas",
        ),
        (
            {"streaming": ""},
            "--streaming: no destination is given; choose one or more of none, host, disk, mpi, "
            "nccl, nixl, tcp.*",
        ),
        (
            {"streaming": "tape"},
            "--streaming: there is no destination 'tape'; choose .* none, host, disk, mpi, nccl, "
            "nixl, tcp.*",
        ),
        (
            {"level": "4", "streaming": "mpi"},
            "--level: there is no level '4'; levels are 0, 0-batched, 1, 2, 3",
        ),
        (
            {"level": "0,1"},
            "--level 0,1 needs a destination: --streaming none streams nothing at any level",
        ),
        (
            {"streaming": "none,host", "sample_extents": True},
            "--sample-extents needs a destination and --level 0 or 0-batched: other levels do not "
            "move single extents",
        ),
        (
            {"level": "0", "sample_extents": True},
            "--sample-extents needs a destination and --level 0 or 0-batched: other levels do not "
            "move single extents",
        ),
        (
            {"durability": "hope"},
            "--durability: must be 'fdatasync', 'direct' or 'page-cache', not 'hope'",
        ),
        (
            {"inference_data_type": "fp8"},
            "--inference-data-type: must be 'auto', 'fp32', 'bf16' or 'fp16', not 'fp8'",
        ),
        ({"kv_layout": "hdn"}, "--kv-layout: must be 'ft', 'hnd' or 'nhd', not 'hdn'"),
        ({"device": "tpu"}, "--device: must be 'auto', 'cpu' or 'cuda', not 'tpu'"),
        (
            {"precision": "0"},
            "--precision: '0' is neither a percentage such as 0.5% nor a fraction between 0 and 1",
        ),
        ({"max_time": "soon"}, "--max-time: 'soon' is not a time such as 90, 90s, 10m or 1h"),
        ({"rounds": "0"}, "--rounds: must be greater than 0, not '0'"),
        ({"name": "a/b"}, "--name: 'a/b' cannot name a folder: it must be printable, .*"),
        (
            {"model": "gpt2", "layer_num": 2},
            "--layer-num 2 is for --model custom; gpt2 has its own sizes. Drop the flag",
        ),
        (
            {"model": "gpt2", "tensor_para_size": 5},
            "--tensor-para-size 5 does not divide the 12 heads of gpt2",
        ),
        (
            {"model": "gpt2", "pipeline_para_size": 13},
            "--pipeline-para-size 13 is more than the 12 layers of gpt2",
        ),
        (
            {"model": "gpt2", "input_len": 1000},
            "--input-len 1000 and --output-len 32 take 1031 positions, but gpt2 has 1024",
        ),
        (
            {"model": "gpt2", "max_seq_len": 2048},
            "--max-seq-len 2048 is more than the 1024 positions of gpt2",
        ),
        (
            {"input_len": 16, "output_len": 8, "max_seq_len": 22},
            "--max-seq-len 22 is too short: .* take 23 positions .*",
        ),
        (
            {"size_per_head": 4, "kv_layout": "ft", "inference_data_type": "bf16"},
            "--kv-layout ft needs heads of a multiple of 16 bytes; 4 elements in bf16 take 8",
        ),
    ],
)
def test_wrong_value_is_one_line_naming_the_flag(values: dict[str, Any], message: str) -> None:
    assert re.fullmatch(message.replace("?", r"\?"), load_error(**values))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ubatch = 3", "unknown key 'ubatch'; did you mean ubatch_size?"),
        ("[experiment]\nrounds = 3", "unknown key 'experiment'"),
        ("model = [", "not valid TOML: Invalid value (at end of document)"),
        ("rounds = 3\nrounds = 4", "not valid TOML: Cannot overwrite a value (at end of document)"),
        ("rounds = 'x'", "rounds: must be a whole number, not 'x'"),
        ("ubatch_size = [1, true]", "ubatch_size: true and false are not allowed in this list"),
        ("input_len = 5\ninput-len = 6", "input_len is given twice"),
        (
            "model = 'gpt2'\ninput_len = 2000",
            "--input-len 2000 and --output-len 32 take 2031 positions, but gpt2 has 1024",
        ),
    ],
)
def test_bad_toml_is_one_line_naming_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = write_sweep(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        load(path, {}, {})
    assert str(caught.value) == f"{path}: {message}"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml does not exist; CONFIG is a TOML file$"):
        load(tmp_path / "none.toml", {}, {})
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\x80")
    with pytest.raises(UsageError, match=r"binary\.toml: .*can't decode"):
        load(binary, {}, {})
