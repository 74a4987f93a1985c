"""Reports of runs on a GPU, and how much of the machine the model uses, there and on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dejavubench.analysis.breakdown.least_work import compute_work, find_weights_itemsize
from dejavubench.analysis.facts import raw_loops, source_ranks
from dejavubench.analysis.figures import captions, fig25, files
from dejavubench.analysis.figures.drawings import make_drawings
from dejavubench.analysis.reports.formats import as_markdown
from dejavubench.analysis.reports.report import make_report
from dejavubench.bench.recording.infos import describe_point
from dejavubench.config.points import Point
from dejavubench.models.hub.specs import SPECS
from dejavubench.records import (
    ArmInfo,
    Ceiling,
    CopyWays,
    PointInfo,
    Run,
    StreamAlone,
    read_run,
    to_line,
)
from helpers.synthetic_runs import (
    AGAIN,
    GPU,
    GPU_ENVIRONMENT,
    NONE,
    arm_of,
    flat_rows,
    on_gpu,
    point_of,
    write_run,
)

LOOPBACK = ArmInfo(name="nccl-loopback@3", mode="nccl", level="3")


def make_gpu_run(
    folder: Path, *args: Any, uuids: tuple[str, str] = ("aaaa", "bbbb"), **changes: Any
) -> Run:
    changes = {"environment": GPU_ENVIRONMENT, "infos": list(map(on_gpu, uuids)), **changes}
    written = write_run(folder, *args, **changes)
    with (written / "rank-0000.jsonl").open("a") as file:
        file.write(
            to_line(
                CopyWays(point="p000", ways={"prompt": "strided DMA (0.97 of the kernel's time)"})
            )
        )
    return read_run(written)


def add_ceiling(
    folder: Path, name: str, unit: str, value: float, samples: list[float] | None = None
) -> None:
    ceiling = Ceiling(
        name=name, unit=unit, value=value, samples=samples or [value], shape="x", point="p000"
    )
    with (folder / "rank-0000.jsonl").open("a") as file:
        file.write(to_line(ceiling))


def info_of(model: str, **changes: Any) -> PointInfo:
    sizes = {"input_len": 500, "output_len": 500, "ubatch_size": 8, "positions": 999} | changes
    environment: dict[str, Any] = {
        "data_type": "fp16",
        "kv_layout": "hnd",
        "tensor_para_size": 1,
        "pipeline_para_size": 1,
    }
    return describe_point(Point(id="p000", spec=SPECS[model], **(environment | sizes)))


@pytest.mark.parametrize("model", SPECS)
def test_work_is_counted_from_sizes_as_from_the_specification(model: str, tmp_path: Path) -> None:
    run = make_gpu_run(tmp_path / "r", [NONE], rounds=1)
    spec, info = SPECS[model], info_of(model)
    queries, keys = (heads * spec.size_per_head for heads in (spec.head_num, spec.kv_heads))
    # Queries and output; keys and values; the matrices of the MLP.
    mlp = (3 if spec.gated else 2) * spec.ffn_size
    layers = spec.layer_num * spec.hidden * (2 * queries + 2 * keys + mlp)
    head = spec.vocab_size * (spec.embed_size or spec.hidden)
    work = compute_work(run, info)
    flop = 2 * 8 * (500 * layers + head) + 2 * 8 * spec.layer_num * queries * 500**2
    assert work.prompt_flop == pytest.approx(flop, rel=1e-3)
    assert work.token_nbytes == pytest.approx(
        2 * (layers + head) + 8 * 750 * 4 * spec.layer_num * keys, rel=0.02
    )


@pytest.mark.parametrize(
    ("data_type", "bf16_by_rank", "itemsize"),
    [
        ("fp32", (True, True), 4),
        ("bf16", (True, True), 2),
        ("bf16", (True, False), 4),
        ("fp16", (True, True), 4),
    ],
)
def test_weights_of_older_records_are_as_wide_as_the_cpu_multiplies(
    data_type: str, bf16_by_rank: tuple[bool, bool], itemsize: int, tmp_path: Path
) -> None:
    infos = [{"environment": {"native_bf16": has_bf16}} for has_bf16 in bf16_by_rank]
    run = read_run(write_run(tmp_path / "r", [NONE], rounds=1, infos=infos))
    assert find_weights_itemsize(run, make_older_point(data_type)) == itemsize


def make_older_point(data_type: str) -> PointInfo:
    return info_of("gpt2").model_copy(update={"weight_nbytes": None, "data_type": data_type})


def test_weights_are_as_wide_as_the_record_says(tmp_path: Path) -> None:
    run = read_run(
        write_run(
            tmp_path / "r", [NONE], rounds=1, infos=[{"environment": {"native_bf16": False}}] * 2
        )
    )
    for data_type, itemsize in (("bf16", 2), ("fp16", 2), ("fp32", 4)):
        assert find_weights_itemsize(run, info_of("gpt2", data_type=data_type)) == itemsize


def test_weights_of_a_gpu_are_of_the_type_and_unknown_ones_are_not_guessed(tmp_path: Path) -> None:
    assert (
        find_weights_itemsize(
            make_gpu_run(tmp_path / "gpu", [NONE], rounds=1), make_older_point("fp16")
        )
        == 2
    )
    cpu = read_run(write_run(tmp_path / "cpu", [NONE], rounds=1))  # whose ranks say nothing of bf16
    assert find_weights_itemsize(cpu, make_older_point("bf16")) is None
    assert flat_rows(cpu)[0]["token_gb_per_s"] is None


def test_the_model_is_held_against_what_the_machine_can_do(tmp_path: Path) -> None:
    make_gpu_run(tmp_path / "r", [NONE, AGAIN], noise=0.0, events=True)
    add_ceiling(tmp_path / "r", "matmul", "GFLOP/s", 1000.0)
    add_ceiling(tmp_path / "r", "memory-read", "GB/s", 100.0)
    run = read_run(tmp_path / "r")
    row, work = flat_rows(run)[0], compute_work(run, point_of())
    assert row["prompt_tflop_per_s"] == pytest.approx(work.prompt_flop / row["prompt_ms"] / 1e9)
    assert row["prompt_share_pct"] == pytest.approx(100 * row["prompt_tflop_per_s"])
    assert work.token_nbytes is not None
    assert row["token_gb_per_s"] == pytest.approx(work.token_nbytes / row["token_ms"] / 1e6)
    assert row["token_share_pct"] == pytest.approx(row["token_gb_per_s"])
    assert row["token_event_ms"] == pytest.approx(0.99 * row["token_ms"])
    text = as_markdown(make_report(run))
    assert "**the model against the machine**" in text
    assert (
        "| arm | prompt ms by events | token ms by events | prompt TFLOP/s | % of matmul |" in text
    )


def test_of_a_pipeline_and_of_unmeasured_ceilings_no_share_is_said(tmp_path: Path) -> None:
    points = [point_of(0), point_of(1, input_len=512, pipeline_para_size=2)]
    one_stage_row, _, two_stage_row, _ = flat_rows(
        make_gpu_run(tmp_path / "r", [NONE, AGAIN], points, rounds=3)
    )
    assert one_stage_row["prompt_tflop_per_s"] > 0
    assert one_stage_row["prompt_share_pct"] is None
    assert two_stage_row["prompt_tflop_per_s"] is None


def test_the_gpu_stands_in_the_place_of_the_cpu(tmp_path: Path) -> None:
    run = make_gpu_run(tmp_path / "r", [NONE, AGAIN, arm_of("host")], rounds=6)
    assert (
        "NVIDIA H200, 2 CPU cores, 1 host, torch 2.13.0, CUDA 13.0, MPICH"
        in captions.describe_machine(run)
    )
    assert "EPYC" not in captions.describe_machine(run)
    run_report = make_report(run)
    assert "NVIDIA H200, 2 CPU cores" in run_report.title
    assert (
        "GPU: driver 580.1, CUDA 13.0, NCCL 2.28.9, PCIe 5.0 × 16, MPS runs, "
        "MPI takes host memory only" in run_report.note_texts
    )
    assert (
        "how chunks leave the GPU: hnd prompt: strided DMA, which took 0.97 times as long as the "
        "packing kernel" in run_report.note_texts
    )


def test_several_gpus_are_counted_by_their_identity(tmp_path: Path) -> None:
    run = make_gpu_run(tmp_path / "r", [NONE], rounds=1)
    info = next(iter(source_ranks.list_sources(run)))
    rank_of_another_gpu = info.model_copy(
        update={"rank": 2, "environment": {"gpu": GPU | {"uuid": "cccc"}}}
    )
    (tmp_path / "r" / "rank-0002.jsonl").write_text(to_line(rank_of_another_gpu))
    assert source_ranks.name_processor(read_run(tmp_path / "r")) == "2 × NVIDIA H200"
    rank_of_the_same_gpu = rank_of_another_gpu.model_copy(update={"environment": info.environment})
    (tmp_path / "r" / "rank-0002.jsonl").write_text(to_line(rank_of_the_same_gpu))
    assert source_ranks.name_processor(read_run(tmp_path / "r")) == "NVIDIA H200"


def test_the_local_copy_is_bound_by_the_way_to_the_host(tmp_path: Path) -> None:
    make_gpu_run(tmp_path / "r", [NONE, AGAIN, arm_of("host")])
    add_ceiling(tmp_path / "r", "pcie-d2h", "GB/s", 50.0, [50.0, 40.0])
    add_ceiling(tmp_path / "r", "pcie-destination", "GB/s", 48.0, [48.0, 40.0])
    run = read_run(tmp_path / "r")
    row = flat_rows(run)[2]
    assert (row["ceiling"], row["ceiling_gb_per_s"]) == ("pcie-d2h", 50.0)
    assert raw_loops.compare_with_raw_loops(run)["pcie-destination / pcie-d2h"].sample_count == 2


def test_the_share_of_python_in_the_naive_loop_is_said(tmp_path: Path) -> None:
    make_gpu_run(tmp_path / "r", [NONE])
    add_ceiling(tmp_path / "r", "run-copy", "us", 8.0)
    add_ceiling(tmp_path / "r", "run-copy-overhead", "us", 0.4)
    run = read_run(tmp_path / "r")
    assert raw_loops.compute_own_shares(run) == {"run-copy": pytest.approx(5.0)}
    assert any(note.endswith("naive levels: run-copy 5 %") for note in make_report(run).note_texts)


@pytest.mark.parametrize(
    ("arm", "uuids", "hosts", "shown"),
    [
        (arm_of("nccl"), ("aaaa", "bbbb"), "same host", "nccl"),
        (arm_of("nccl"), ("aaaa", "aaaa"), "loopback on one GPU", "nccl-loopback"),
        (LOOPBACK, ("aaaa", "bbbb"), "loopback on one GPU", "nccl-loopback"),
        (arm_of("nccl-loopback"), ("aaaa", "bbbb"), "loopback on one GPU", "nccl-loopback"),
        (arm_of("mpi"), ("aaaa", "aaaa"), "same host", "mpi"),
    ],
)
def test_ranks_that_share_a_gpu_are_no_remote_gpu(
    arm: ArmInfo, uuids: tuple[str, str], hosts: str, shown: str, tmp_path: Path
) -> None:
    run = make_gpu_run(tmp_path / "r", [NONE, AGAIN, arm], rounds=2, uuids=uuids)
    assert flat_rows(run)[2]["hosts"] == hosts
    ((drawing,), _) = make_drawings([run])
    row = drawing.frame.iloc[2]
    assert (row["mode"], row["hosts"]) == (shown, hosts)
    label = fig25._label_row(row, False, drawing.destinations)
    loopback = shown == "nccl-loopback"
    assert ("remote GPU" in label) == (shown == "nccl")
    assert ("loopback on one GPU" in label) == loopback
    assert ("Both ranks share the GPU" in drawing.caption) == loopback
    assert (
        any("no rate of a remote GPU" in note for note in make_report(run).note_texts) == loopback
    )


def test_parts_of_a_model_that_share_a_gpu_are_named(tmp_path: Path) -> None:
    facts = {"way": "fake hosts", "version": 22809, "ranks": [[0, 2], [1, 3]]}
    infos = [{"environment": {"gpu": GPU, "nccl_loopback": facts}}, on_gpu()]
    run = make_gpu_run(tmp_path / "r", [NONE, AGAIN, arm_of("mpi")], rounds=2, infos=infos)
    (note,) = (text for text in make_report(run).note_texts if "loopback" in text)
    assert note.startswith("loopback: ranks 0, 2 and ranks 1, 3 share a GPU, ")


def test_a_stream_that_needs_the_whole_request_is_said_to_have_no_time_to_spare(
    tmp_path: Path,
) -> None:
    run = make_gpu_run(tmp_path / "r", [NONE, AGAIN, arm_of("host"), arm_of("disk")], noise=0.0)
    request = flat_rows(run)[0]["total_ms"]
    path = tmp_path / "r" / "rank-0000.jsonl"
    other_lines = [
        line for line in path.read_text().splitlines(keepends=True) if '"alone"' not in line
    ]
    parts = {"host@3": 0.5, "disk@3": 0.97}
    times = [
        StreamAlone(point="p000", arm=name, ms=part * request, nbytes=10**9)
        for name, part in parts.items()
    ]
    path.write_text("".join([*other_lines, *map(to_line, times)]))
    (note,) = (
        note
        for note in make_report(read_run(tmp_path / "r")).note_texts
        if "hardly fits behind the model" in note
    )
    assert note.startswith("disk@3 ")


def test_large_rates_are_written_in_tflop_and_staging_is_stated_for_host_and_device(
    tmp_path: Path,
) -> None:
    infos = [on_gpu() | {"staging_nbytes": 10**6, "staging_device_nbytes": 2 * 10**6}, on_gpu()]
    write_run(tmp_path / "r", [NONE], rounds=1, infos=infos, environment=GPU_ENVIRONMENT)
    add_ceiling(tmp_path / "r", "matmul", "GFLOP/s", 750_300.0)
    notes = make_report(read_run(tmp_path / "r")).note_texts
    assert any("matmul 750.3 TFLOP/s" in note for note in notes)
    assert "staging memory, at most: 1.0 MB per source, 2.0 MB per source on its device" in notes


def test_a_shared_gpu_without_mps_is_warned_of(tmp_path: Path) -> None:
    environment = GPU_ENVIRONMENT | {"gpu": GPU | {"mps": False}}
    run = make_gpu_run(tmp_path / "r", [NONE, LOOPBACK], rounds=1, environment=environment)
    assert any(note.startswith("NO MPS") for note in make_report(run).note_texts)


def test_fig7_of_a_gpu_says_second_hand_what_the_paper_has(tmp_path: Path) -> None:
    arms = [NONE, AGAIN, *(arm_of("host", level) for level in ("0", "0-batched", "1", "3"))]
    factors = {"host@0": 110.0, "host@0-batched": 30.0, "host@1": 1.5}
    points = [point_of(0, kv_layout="ft"), point_of(1, kv_layout="hnd")]
    run = make_gpu_run(tmp_path / "r", arms, points, factors, rounds=3, figure="fig7")
    ((drawing,), _) = make_drawings([run])
    assert "Second-hand, of the paper's figure" in drawing.description
    assert "69 to 131× (second-hand, A100)" in drawing.caption
    assert set(drawing.frame["run"]) == {"r"}  # nothing of it is drawn
    (tmp_path / "out").mkdir()
    files.save(drawing, tmp_path / "out")
    one_layout = make_gpu_run(tmp_path / "hnd", arms, points[1:], factors, rounds=3, figure="fig7")
    cpu = read_run(write_run(tmp_path / "cpu", arms, points, factors, rounds=3, figure="fig7"))
    for run_without_paper in (one_layout, cpu):
        ((drawing,), _) = make_drawings([run_without_paper])
        assert "econd-hand" not in drawing.caption + drawing.description


def test_figures_of_loopback_are_drawn(tmp_path: Path) -> None:
    run = make_gpu_run(
        tmp_path / "r", [NONE, AGAIN, arm_of("host"), LOOPBACK], rounds=3, figure="fig25"
    )
    ((drawing,), _) = make_drawings([run])
    (tmp_path / "out").mkdir()
    files.save(drawing, tmp_path / "out")
    assert all(path.stat().st_size > 1000 for path in files.list_paths(drawing, tmp_path / "out"))
