"""``dejavubench plan``: what it prints in every format, whose sizes it takes, what it refuses."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from helpers.cli_calls import call, heavy_after, stdout_of, usage_error_of
from helpers.jobs import args, last_of_each
from helpers.paths import GOLDEN

TINY = [
    *args("--model gpt2 --input-len 10 --output-len 3 --ubatch-size 2"),
    *args("--layer-cuts 0,7,12 --sink-ubatch-size 1 --sink-tensor-para-size 2"),
    *("--sink-pipeline-para-size", "1"),
]
LINK = args("--link 1GB/s --latency 5us")


pytestmark = pytest.mark.usefixtures("no_launcher")


def print_plan(*arguments: str) -> str:
    return stdout_of("plan", *arguments)


def read_plan(*arguments: str) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads(print_plan(*arguments, "--format", "json"))
    return plan


EXPECTED = (GOLDEN / "plan.txt").read_text()
"""A source's K and V: 7 layers × 4 requests × 6 heads × 64 × 2 bytes are 43,008 bytes per position,
in 7 × 4 × 6 × 2 = 336 extents."""


def test_the_table_of_a_tiny_plan_has_its_known_numbers() -> None:
    lines = [line.rstrip() for line in print_plan(*TINY).splitlines()]
    assert lines == EXPECTED.splitlines()


def test_a_link_adds_lower_bounds() -> None:
    lines = print_plan(*TINY, *LINK).splitlines()
    assert (
        lines[3]
        == "link: 1 GB/s in each direction of every worker, latency 5 µs; times are lower bounds"
    )
    rows = [line.split() for line in lines]
    times = {tuple(row[:2]): row[-3:] for row in rows if len(row) > 2}
    assert times["source", "0"] == ["0.865", "0.091", "1.04"]
    assert times["sink", "1"] == ["0.742", "0.079", "0.890"]
    assert lines[-1] == (
        f"{EXPECTED.splitlines()[-1]}; lower bounds: prompt 0.865 ms, token 0.091 ms, all 1.04 ms"
    )


def test_a_narrow_terminal_gets_narrow_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = print_plan(*TINY, *LINK).splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    assert sum(line.startswith("0 (0, 0)  1 (0, 1) ") for line in lines) == 3
    assert sum(line.startswith("source 1 (1, 0) ") for line in lines) == 3


# ---- for programs ----


def test_json_has_both_sides_the_model_and_the_link() -> None:
    plan = read_plan(*TINY, *LINK)
    assert plan["sources"] == {
        "workers": 2,
        "pipeline_para_size": 2,
        "tensor_para_size": 1,
        "ubatch_size": 2,
        "layer_cuts": [0, 7, 12],
    }
    assert plan["sinks"]["layer_cuts"] == [0, 12]
    assert (plan["model"], plan["kv_head_num"], plan["requests"]) == ("gpt2", 12, 4)
    assert plan["link"] == {"bytes_per_s": 1e9, "latency_s": 5e-6}


def test_json_has_all_numbers_of_a_pair_of_workers() -> None:
    pair = read_plan(*TINY, *LINK)["pairs"][-1]
    pair.pop("regions")
    extents = 5 * 4 * 6 * 2  # layers, requests, heads, K and V
    token_nbytes = extents * 64 * 2  # head size, bytes
    bytes_per_ms, latency_ms = 1e6, 5e-3  # of LINK
    assert pair == {
        "source_worker": 1,
        "source_stage": 1,
        "source_tensor_rank": 0,
        "sink_worker": 1,
        "sink_stage": 0,
        "sink_tensor_rank": 1,
        "layer_start": 7,
        "layer_stop": 12,
        "head_start": 6,
        "head_stop": 12,
        "request_start": 0,
        "request_stop": 4,
        "source_ubatch_start": 0,
        "source_ubatch_stop": 2,
        "sink_ubatch_start": 0,
        "sink_ubatch_stop": 4,
        "transfers": 4,
        "prompt_nbytes": 10 * token_nbytes,
        "token_nbytes": token_nbytes,
        "total_nbytes": 12 * token_nbytes,
        "prompt_runs": extents,
        "token_runs": extents,
        "prompt_ms": pytest.approx(10 * token_nbytes / bytes_per_ms + latency_ms),
        "token_ms": pytest.approx(token_nbytes / bytes_per_ms + latency_ms),
        "total_ms": pytest.approx(12 * token_nbytes / bytes_per_ms + latency_ms),
    }


def test_json_says_what_each_transfer_of_a_pair_moves() -> None:
    """The second one brings the second request of a source to the first place at a sink."""
    regions = read_plan(*TINY, *LINK)["pairs"][-1]["regions"]
    assert regions[1] == {
        "source_ubatch": 0,
        "sink_ubatch": 1,
        "source_region": {
            "layers": [0, 5],
            "requests": [1, 2],
            "heads": [6, 12],
            "positions": [0, 12],
        },
        "sink_region": {
            "layers": [7, 12],
            "requests": [0, 1],
            "heads": [0, 6],
            "positions": [0, 12],
        },
    }


@pytest.mark.parametrize("link", [[], LINK])
def test_bytes_of_pairs_and_workers_in_json_add_up_to_the_total(link: list[str]) -> None:
    plan = read_plan(*TINY, *link)
    amounts = [
        "transfers",
        "prompt_nbytes",
        "token_nbytes",
        "total_nbytes",
        "prompt_runs",
        "token_runs",
    ]
    for key in amounts:
        assert sum(pair[key] for pair in plan["pairs"]) == plan["total"][key]
        for role in ("source", "sink"):
            workers = [worker for worker in plan["workers"] if worker["role"] == role]
            assert sum(worker[key] for worker in workers) == plan["total"][key]
    assert [len(pair["regions"]) for pair in plan["pairs"]] == [
        pair["transfers"] for pair in plan["pairs"]
    ]
    assert plan["total"]["total_nbytes"] == 2 * 12 * 12 * 64 * 2 * 4 * 12
    assert (plan["total"]["busiest_source"], plan["total"]["busiest_sink"]) == (0, 0)
    if link:
        for key in ("prompt_ms", "token_ms", "total_ms"):
            assert plan["total"][key] == max(worker[key] for worker in plan["workers"])
    else:
        assert plan["link"] is None
        assert not any(key.endswith("_ms") for key in plan["total"])


def test_csv_has_the_pairs_of_json() -> None:
    plan_call = call("plan", *TINY, *LINK, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(plan_call.stdout)))
    pairs = read_plan(*TINY, *LINK)["pairs"]
    for pair in pairs:
        del pair["regions"]
    assert rows == [{key: str(value) for key, value in pair.items()} for pair in pairs]
    assert plan_call.stderr == print_plan(*TINY, *LINK).splitlines()[-1] + "\n"


def test_markdown_has_the_cells_of_the_table() -> None:
    lines = print_plan(*TINY, "--format", "markdown").splitlines()
    assert lines[0].startswith("## gpt2, fp16, hnd: ")
    assert (
        "| 1 (1, 0) | 0 (0, 0) | 7–11 | 0–5 | 0–3 | 0–1 → 0–3 | 4 | 307.2 kB | 30.7 kB | 368.6 kB "
        "| 240 | 240 |" in lines
    )
    assert "| sink 0 (0, 0) | 2 | 8 | 737.3 kB | 73.7 kB | 884.7 kB | 576 | 576 |" in lines
    assert lines[-1] == EXPECTED.splitlines()[-1]


@pytest.mark.parametrize("style", ["table", "csv", "json", "markdown"])
def test_a_file_has_what_stdout_would(style: str, tmp_path: Path) -> None:
    flags = [*TINY, "--format", style]
    assert print_plan(*flags, "-o", str(tmp_path / "plan")) == ""
    assert (tmp_path / "plan").read_text() == print_plan(*flags)


def test_a_file_is_overwritten_by_force_only(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("mine")
    assert plan_error(*TINY, "-o", str(path)) == f"{path} exists. Use --force to overwrite it"
    assert path.read_text() == "mine"
    print_plan(*TINY, "--format", "json", "-o", str(path), "--force")
    assert json.loads(path.read_text())["model"] == "gpt2"
    path_in_no_folder = tmp_path / "none" / "plan.csv"
    assert f"the folder {path_in_no_folder.parent} does not exist" in plan_error(
        *TINY, "-o", str(path_in_no_folder)
    )


# ---- what is planned ----


def test_hyphens_and_underscores_in_flags_of_plan_are_one_spelling() -> None:
    underscore_flags = [flag.replace("-", "_").replace("__", "--") for flag in TINY]
    assert "--sink_tensor_para_size" in underscore_flags
    assert print_plan(*underscore_flags, "--inference_data_type", "fp32") == print_plan(
        *TINY, "--data-type", "fp32"
    )


def test_sinks_are_like_the_sources_unless_told() -> None:
    flags = args("--model opt-13b --ubatch-size 8 --tensor-para-size 2")
    plan = read_plan(*flags, "--layer-cuts", "0,30,40")
    assert plan["sinks"] == plan["sources"]
    assert plan["requests"] == 16
    worker_pairs = [(pair["source_worker"], pair["sink_worker"]) for pair in plan["pairs"]]
    assert worker_pairs == [(i, i) for i in range(4)]
    assert {pair["transfers"] for pair in plan["pairs"]} == {2}  # one for each microbatch
    even = read_plan(*flags, "--layer-cuts", "0,30,40", "--sink-pipeline-para-size", "2")
    assert even["sinks"]["layer_cuts"] == [0, 20, 40]
    cuts = read_plan(
        *flags, "--sink-layer-cuts", "0,1,40", "--sink-ubatch-size", "3", "--requests", "24"
    )
    assert (cuts["sources"]["layer_cuts"], cuts["sinks"]["layer_cuts"]) == ([0, 40], [0, 1, 40])
    assert cuts["requests"] == 24
    # 0–7 with 0–2, 3–5, 6–8; 8–15 with 6–8, 9–11, 12–14, 15–17; 16–23 with 15–17, 18–20, 21–23.
    assert {pair["transfers"] for pair in cuts["pairs"]} == {10}


@pytest.mark.parametrize(
    ("layout", "prompt", "token"), [("hnd", 48, 48), ("nhd", 80, 8), ("ft", 48, 48)]
)
def test_the_layout_gives_the_number_of_extents(layout: str, prompt: int, token: int) -> None:
    """One layer of two requests, 12 heads; nhd halves each position's row, on one side only."""
    flags = args("--model gpt2 --input-len 10 --ubatch-size 2 --sink-tensor-para-size 2")
    total = read_plan(*flags, "--kv-layout", layout)["total"]
    if layout == "ft":  # a key is 8 vectors of 16 bytes, a value one piece
        prompt, token = 24 * (8 + 1), 24 * (8 + 1)
    assert (total["prompt_runs"], total["token_runs"]) == (12 * prompt, 12 * token)


def write_llama_folder(folder: Path, **changes: object) -> Path:
    """Write a folder with a configuration and no weights: 32 query heads, 8 KV heads."""
    folder.mkdir()
    config = {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_needs_its_configuration_alone(tmp_path: Path) -> None:
    folder = write_llama_folder(tmp_path / "llama-8b")
    plan = read_plan(
        "--ckpt_path", str(folder), "--tensor-para-size", "8", "--sink-tensor-para-size", "4"
    )
    assert (plan["model"], plan["layer_num"], plan["kv_head_num"], plan["size_per_head"]) == (
        "llama-8b",
        32,
        8,
        128,
    )
    assert plan["total"]["token_nbytes"] == 2 * 32 * 8 * 128 * 2
    sinks_and_heads = [(pair["sink_worker"], pair["head_start"]) for pair in plan["pairs"]]
    assert sinks_and_heads == [(i // 2, i) for i in range(8)]


# ---- refusals ----


def plan_error(*flags: object) -> str:
    return usage_error_of("plan", *flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--tensor-para-size 5",
            "sources: --tensor-para-size 5 does not divide the 12 heads of gpt2",
        ),
        (
            "--sink-tensor-para-size 8",
            "sinks: --sink-tensor-para-size 8 does not divide the 12 heads of gpt2",
        ),
        (
            "--pipeline-para-size 13",
            "--pipeline-para-size 13: gpt2 has 12 layers; they cannot be cut into 13 stages",
        ),
        (
            "--sink-pipeline-para-size 13",
            "--sink-pipeline-para-size 13: gpt2 has 12 layers; they cannot be cut into 13 stages",
        ),
        ("--layer-cuts 0,7,7,12", "sources: layer cuts must rise from 0: (0, 7, 7, 12)"),
        ("--layer-cuts 0,-7,12", "sources: layer cuts must rise from 0: (0, -7, 12)"),
        ("--sink-layer-cuts 3,12", "sinks: layer cuts must rise from 0: (3, 12)"),
        (
            "--layer-cuts 0,7,13",
            "--layer-cuts 0,7,13: gpt2 has 12 layers, so the last cut must be 12",
        ),
        (
            "--sink-layer-cuts 0",
            "--sink-layer-cuts 0: gpt2 has 12 layers, so the last cut must be 12",
        ),
        (
            "--layer-cuts 0,7,12 --pipeline-para-size 3",
            "--layer-cuts 0,7,12 makes 2 stages, but --pipeline-para-size is 3",
        ),
        (
            "--ubatch-size 8 --requests 12",
            "12 requests do not fill the sources' microbatches of 8. Give --requests a multiple of "
            "both sides' microbatches",
        ),
        (
            "--ubatch-size 8 --sink-ubatch-size 3",
            "8 requests do not fill the sinks' microbatches of 3. Give --requests a multiple of "
            "both sides' microbatches",
        ),
        (
            "--input-len 1024",
            "sources: --input-len 1024 and --output-len 32 take 1055 positions, but gpt2 has 1024",
        ),
        (
            "--latency 5us",
            "--latency needs --link, the rate of each link. Add it, such as --link 25GB/s",
        ),
    ],
)
def test_an_impossible_plan_is_one_line_and_exit_2(flags: str, message: str) -> None:
    assert plan_error("--model", "gpt2", *flags.split()) == message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--layer-cuts 0,x",
            "Invalid value for '--layer-cuts': '0,x' is not a list of layers such as 0,7,13",
        ),
        ("--ubatch-size 0", "Invalid value for '--ubatch-size': must be greater than 0, not '0'"),
        ("--requests 1.5", "Invalid value for '--requests': must be a whole number, not '1.5'"),
        (
            "--link 25",
            "Invalid value for '--link': '25' is not a rate such as 25GB/s, 23.3GiB/s or 200Gbit/s",
        ),
        (
            "--link 1GB/s --latency 5",
            "Invalid value for '--latency': '5' is not a latency such as 5us, 0.1ms or 0",
        ),
        ("--model gpt3", "Invalid value for '--model': unknown model 'gpt3'; did you mean gpt2?"),
        (
            "--kv-layout dnh",
            "Invalid value for '--kv-layout': 'dnh' is not one of 'ft', 'hnd', 'nhd'.",
        ),
    ],
)
def test_values_that_cannot_be_read_point_to_the_help(flags: str, message: str) -> None:
    words = last_of_each(("--model", "gpt2", *flags.split()))
    assert plan_error(*words) == f"{message} (see dejavubench plan --help)"


def test_a_plan_of_no_model_or_of_two_is_refused(tmp_path: Path) -> None:
    assert plan_error() == (
        "no model is given. Add --model NAME or --ckpt-path DIR, or predict from a measured run "
        "with --from RUN --link RATE"
    )
    assert plan_error(
        "--model", "gpt2", "--ckpt-path", str(write_llama_folder(tmp_path / "llama"))
    ) == ("--model and --ckpt-path are both given, and each names a model. Drop one")
    assert plan_error("--model", "custom").startswith(
        "Invalid value for '--model': custom has no sizes of its own"
    )


def test_heads_of_keys_and_values_are_what_is_shared(tmp_path: Path) -> None:
    folder = write_llama_folder(tmp_path / "llama-8b")
    for side, flag in (("sources", "--tensor-para-size"), ("sinks", "--sink-tensor-para-size")):
        message = f"{side}: {flag} 16 does not divide the 8 KV heads of llama-8b"
        assert plan_error("--ckpt-path", str(folder), flag, "16") == message


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    assert plan_error("--ckpt-path", "nowhere") == "--ckpt-path: nowhere is not a folder"
    t5_folder = write_llama_folder(tmp_path / "other", model_type="t5")
    assert "models of type 't5' are not supported" in plan_error("--ckpt-path", str(t5_folder))


def test_a_layout_that_cannot_hold_the_heads_is_refused(tmp_path: Path) -> None:
    folder = write_llama_folder(tmp_path / "odd", head_dim=6)
    assert plan_error("--ckpt-path", str(folder), "--kv-layout", "ft").startswith(
        "sources: --kv-layout ft needs heads of a multiple of 16 bytes"
    )


def test_neither_mpi_nor_torch_is_imported() -> None:
    printed = heavy_after(
        {"torch", "mpi4py", "pandas", "matplotlib"}, "plan", "--model", "gpt2", "--link", "1GB/s"
    )
    assert printed.endswith("HEAVY []\n")
