"""contrib/compare_engines.py on a tiny GPT-2: agreement, a changed weight, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from dejavubench.models.hub import specs
from dejavubench.models.hub.checkpoint import open_checkpoint
from dejavubench.models.hub.model_spec import ModelSpec
from helpers.jobs import args
from helpers.paths import CONTRIB

if TYPE_CHECKING:
    from compare_engines import Settings

TINY = ModelSpec(
    "gpt2-tiny", layer_num=3, head_num=4, size_per_head=8, vocab_size=101, context=32, ffn_size=128
)
BOTH_ENGINES = ("ours", "transformers")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(CONTRIB))  # the engines' processes look there, too
    monkeypatch.setitem(specs.SPECS, TINY.name, TINY)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def make_settings(folder: Path, data_type: str = "bf16") -> Settings:
    import compare_engines as script

    return script.Settings(
        folder, TINY, ubatch_size=3, input_len=9, output_len=4, threads=1, data_type=data_type
    )


def compute_logits(folder: Path, data_type: str) -> dict[str, np.ndarray]:
    """Logits of both engines, in this process."""
    import compare_engines as script

    tokens = np.random.default_rng(1).integers(TINY.vocab_size, size=(3, 12))
    logits_by_engine = {}
    for name in BOTH_ENGINES:
        script.start(name, make_settings(folder, data_type))
        logits_by_engine[name] = script.logits_along(tokens, 9)
    return logits_by_engine


def roll_tensor(folder: Path, name: str) -> None:
    """A tensor's second half is rolled by one."""
    tensors = load_file(folder / "model.safetensors")
    tensor = tensors[name]
    tensor[len(tensor) // 2 :] = tensor[len(tensor) // 2 :].roll(1, -1)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def run_script(*flags: object) -> Result:
    from compare_engines import main

    sizes = ("--model", TINY.name, *args("--ubatch-size 3 --input-len 9 --output-len 4"))
    return CliRunner().invoke(main, [str(arg) for arg in (*sizes, *flags)])


def script_error(*flags: object) -> str:
    """Return what the script says of arguments that it cannot take."""
    script_call = run_script(*flags)
    assert script_call.exit_code == 2
    return script_call.stderr


@pytest.mark.parametrize(
    "data_type", ["fp32", "bf16", pytest.param("fp16", marks=pytest.mark.drill)]
)
def test_engines_agree_and_a_changed_weight_is_found(data_type: str, tmp_path: Path) -> None:
    """Changed for one of them only, and after the checkpoint was looked at."""
    import compare_engines as script

    script.write_weights(make_settings(tmp_path, data_type), seed=0, with_gguf=False)
    agreed = compute_logits(tmp_path, data_type)
    assert agreed["ours"].shape == (4, 3, TINY.vocab_size)
    largest_errors = script.check(agreed, script.TOLERANCE[data_type])
    assert largest_errors["ours"] == [0.0] * 4
    assert 0 < max(largest_errors["transformers"]) <= script.TOLERANCE[data_type]
    roll_tensor(tmp_path, "transformer.h.1.mlp.c_fc.weight")
    open_checkpoint.cache_clear()
    logits_of_rolled_weights = compute_logits(tmp_path, data_type)
    with pytest.raises(click.ClickException, match="transformers does not compute what ours does"):
        script.check(
            agreed | {"transformers": logits_of_rolled_weights["transformers"]},
            script.TOLERANCE[data_type],
        )


def test_logits_of_nan_do_not_agree() -> None:
    import compare_engines as script

    ours = np.random.default_rng(0).normal(size=(2, 3, 4))
    with pytest.raises(click.ClickException, match="differ by up to nan, nan"):
        script.check({"ours": ours, "transformers": np.full_like(ours, np.nan)}, 1.0)


class WorkerInThisProcess:
    """A worker without a process, which would take seconds to import what this one has."""

    def __init__(self, name: str, settings: Settings) -> None:
        import compare_engines as script

        self.name, self.about = name, script.start(name, settings)
        self._engine = script._engine

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        import compare_engines as script

        script._engine = self._engine
        return function(*arguments)

    def close(self) -> None:
        pass


def test_a_comparison_leaves_the_folder_and_every_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import compare_engines as script

    monkeypatch.setattr(script, "Worker", WorkerInThisProcess)
    script_call = run_script(
        "--engines",
        ",".join(BOTH_ENGINES),
        "--rounds",
        2,
        "--folder",
        tmp_path / "new",
        "--json",
        tmp_path / "json",
    )
    assert script_call.exit_code == 0, script_call.output
    assert "engine / ours" in script_call.stdout
    record = json.loads((tmp_path / "json").read_text())
    for name in BOTH_ENGINES:
        assert [len(times) for times in record["times_ms"][name]] == [4, 4]
    assert record["estimates"]["ours"]["token ratio"]["median"] == pytest.approx(1.0)
    assert record["estimates"]["transformers"]["prompt ratio"]["samples"] == 2
    assert open_checkpoint(tmp_path / "new").spec.layer_num == TINY.layer_num


def test_an_engine_that_fails_is_one_message(tmp_path: Path) -> None:
    """There is no model, and perhaps no llama.cpp."""
    import compare_engines as script

    with pytest.raises(
        click.ClickException, match=r"^llama\.cpp: (ModuleNotFound|Runtime)Error: "
    ) as raised:
        script.Worker("llama.cpp", make_settings(tmp_path))
    assert raised.value.exit_code == 1


BOTH = ("--engines", ",".join(BOTH_ENGINES))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((*BOTH, "--model", "gpt"), "did you mean gpt2"),
        ((*BOTH, "--model", "opt-125m"), "--model opt-125m: only sizes of GPT-2"),
        ((*BOTH, "--output-len", 25), "gpt2-tiny attends to 32 positions at most, not 33"),
        (("--engines", "ours,vllm"), "'vllm' is none of ours, transformers, llama.cpp"),
        (("--engines", "ours"), "something to compare it with"),
    ],
    ids=["misspelt-model", "other-family", "too-long", "unknown-engine", "one-engine"],
)
def test_arguments_that_cannot_be_compared_are_refused(
    flags: tuple[object, ...], message: str
) -> None:
    assert message in script_error(*flags)


def test_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    assert "is not empty" in script_error(*BOTH, "--folder", tmp_path)


def test_an_engine_that_is_not_installed_is_refused_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import compare_engines as script

    monkeypatch.setattr(
        script, "find_spec", lambda name: None if name == "llama_cpp" else find_spec(name)
    )
    monkeypatch.setitem(script.ENGINES, "llama.cpp", (script.LlamaCpp, ["llama_cpp"]))
    message = "Error: not installed: llama_cpp: pip install -r contrib/requirements-compare.txt\n"
    assert script_error("--engines", "ours,llama.cpp") == message
