"""Measure this project's model beside transformers and llama.cpp on a CPU, with the same weights.

Each engine has a process of its own, which sleeps while another engine is measured, so that their
thread pools never compete. A round measures every engine once, in an order of its own. Ratios are
paired within rounds, so that drift cancels. Before anything is timed, all engines must give our
logits, up to rounding: after a prompt, and after the decode steps that follow.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import click
import numpy as np
from rich.table import Table

from dejavubench import __version__
from dejavubench.analysis.number_texts import format_ms
from dejavubench.analysis.numbers.stats import Estimate, compute_paired_ratios, estimate
from dejavubench.cli.console import make_console
from dejavubench.cli.errors import fail_usage
from dejavubench.models.hub import specs
from dejavubench.models.hub.model_spec import ModelSpec

OURS = "ours"
"""Name of this project's engine."""

STD = 0.02
"""Standard deviation of random weights."""

GGUF = "model.gguf"
"""File of llama.cpp's weights."""

FLASH = {"off": 0, "on": 1, "auto": -1}
"""llama.cpp's numbers. On a CPU ``auto`` is on; off was faster per token on a CPU with AVX2."""

DECODED = 3
"""Decode steps whose logits are compared: enough to notice misplaced keys or values."""

TOLERANCE = {"bf16": 0.2, "fp16": 0.05, "fp32": 0.01}
"""The largest difference between logits that is still rounding, in standard deviations of ours.

48 layers in bf16 were 0.07 off when ours computed in fp32. llama.cpp in fp32 is 0.002 off, because
its GELU is a table in fp16. With these weights, losing a layer's cache gives 0.9, losing all keys
0.5, and mixing up heads or layers 5.
"""


@dataclass(frozen=True)
class Settings:
    """Settings of an engine's process."""

    folder: Path
    spec: ModelSpec
    ubatch_size: int
    input_len: int
    output_len: int
    threads: int
    data_type: str
    llama_flash: str = "off"
    llama_cache: str | None = None

    @property
    def positions(self) -> int:
        """Positions of the cache that a request fills."""
        return self.input_len + self.output_len - 1  # the last token is not fed again


# ---- the same weights for all ----


def write_weights(settings: Settings, seed: int, with_gguf: bool) -> None:
    """Write a Hugging Face folder, and the same weights for llama.cpp.

    No bias is 0 and no norm is 1, so that an engine that drops one is noticed.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils.logging import disable_progress_bar

    from dejavubench.models.dtypes import dtype_of

    disable_progress_bar()
    spec = settings.spec
    sizes: dict[str, Any] = {
        "vocab_size": spec.vocab_size,
        "n_positions": spec.context,
        "n_layer": spec.layer_num,
    }
    sizes |= {
        "n_embd": spec.hidden,
        "n_inner": spec.ffn_size,
        "n_head": spec.head_num,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    model: Any = GPT2LMHeadModel(GPT2Config(**sizes))
    model.to(dtype_of(settings.data_type))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        norm = ".ln_" in name and name.endswith(".weight")
        parameter.data.copy_(
            torch.empty(parameter.shape).normal_(1.0 if norm else 0.0, STD, generator=generator)
        )
    model.save_pretrained(settings.folder)
    if with_gguf:
        write_gguf(settings, {name: parameter.data for name, parameter in model.named_parameters()})


def write_gguf(settings: Settings, tensors: dict[str, Any]) -> None:
    """Write a GGUF file as llama.cpp's own converter does, without a tokenizer.

    Linears are [out, in]; vectors and positions are fp32.
    """
    import torch

    gguf = import_module("gguf")
    spec = settings.spec
    writer = gguf.GGUFWriter(settings.folder / GGUF, "gpt2")
    writer.add_block_count(spec.layer_num)
    writer.add_context_length(spec.context)
    writer.add_embedding_length(spec.hidden)
    writer.add_feed_forward_length(spec.ffn_size)
    writer.add_head_count(spec.head_num)
    writer.add_layer_norm_eps(spec.eps)
    writer.add_vocab_size(spec.vocab_size)
    writer.add_tokenizer_model("none")
    tensor_names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, spec.layer_num)
    for name, tensor in tensors.items():
        keeps_fp32 = tensor.ndim == 1 or ".wpe." in name
        kept_tensor = tensor.float() if keeps_fp32 else tensor.T if ".c_" in name else tensor
        kind = gguf.GGMLQuantizationType["F32" if keeps_fp32 else ggml_type(settings.data_type)]
        octets = kept_tensor.contiguous().view(torch.uint8).numpy()  # numpy has no bf16
        writer.add_tensor(tensor_names.get_name(name, (".weight", ".bias")), octets, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ggml_type(data_type: str) -> str:
    """Return GGML's name of a data type."""
    return data_type.upper().replace("FP", "F")


# ---- engines ----


class Engine:
    """A model with room for one batch of requests. ``about`` describes engine and settings."""

    about: str
    _logits: Any

    def __init__(self, settings: Settings) -> None:
        raise NotImplementedError

    def begin(self) -> None:
        """Forget the batch before."""

    def step(self, tokens: np.ndarray, position: int) -> np.ndarray:
        """Compute tokens [B, n] from ``position`` on; return the likeliest next ones, [B]."""
        raise NotImplementedError

    def logits(self) -> np.ndarray:
        """Return the logits of the step before at its last position: [B, vocabulary], fp32."""
        return self._logits.float().numpy()


class Ours(Engine):
    """This project's model, run as the suite runs it."""

    def __init__(self, settings: Settings) -> None:
        import torch

        from dejavubench.dejavulib.kv_cache import KVCache, KVLayout
        from dejavubench.machine.memory import prefer_huge_pages
        from dejavubench.models.dtypes import compute_dtype, dtype_of, name_of
        from dejavubench.models.gpt import GPT
        from dejavubench.models.hub.checkpoint import open_checkpoint
        from dejavubench.models.hub.shard import Shard
        from dejavubench.models.loading import load_checkpoint

        prefer_huge_pages()  # as the suite does
        torch.set_num_threads(settings.threads)
        checkpoint, dtype = open_checkpoint(settings.folder), dtype_of(settings.data_type)
        self._model = GPT(checkpoint.spec, Shard(), dtype, compute_dtype(dtype))
        load_checkpoint(self._model, checkpoint)
        self._model.compile(
            KVLayout.HND, settings.ubatch_size, settings.ubatch_size * settings.input_len
        )
        geometry = self._model.kv_geometry(settings.ubatch_size, settings.positions, KVLayout.HND)
        self._cache, self._tensor = KVCache.allocate(geometry, dtype), torch.from_numpy
        dtype_text = f"multiplied in {name_of(self._model.compute_dtype)}"
        storage_text = f"weights and cache {settings.data_type}, hnd"
        self.about = (
            f"dejavubench {__version__}, torch {torch.__version__}: {storage_text}, {dtype_text}"
        )

    def step(self, tokens: np.ndarray, position: int) -> np.ndarray:
        """Compute one step; return the most likely tokens [B]."""
        self._logits = self._model.forward(self._tensor(tokens), self._cache, position)
        return self._model.greedy(self._logits).tokens.numpy()


class Transformers(Engine):
    """The model of the ``transformers`` package, with SDPA and its dynamic cache."""

    def __init__(self, settings: Settings) -> None:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar

        from dejavubench.models.dtypes import dtype_of

        torch.set_num_threads(settings.threads)
        disable_progress_bar()
        load_options: dict[str, Any] = {
            "dtype": dtype_of(settings.data_type),
            "attn_implementation": "sdpa",
        }
        self._model = AutoModelForCausalLM.from_pretrained(settings.folder, **load_options).eval()
        self._cache = None
        self._torch = torch
        versions = f"transformers {version('transformers')}, torch {torch.__version__}"
        self.about = f"{versions}: {self._model.dtype}, sdpa, dynamic cache".replace("torch.", "")

    def begin(self) -> None:
        """Forget the cache of the last request."""
        self._cache = None

    def step(self, tokens: np.ndarray, position: int) -> np.ndarray:
        """Compute one step; return the most likely tokens [B]."""
        with self._torch.inference_mode():
            x = self._torch.from_numpy(tokens)
            out = self._model(x, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            self._cache, self._logits = out.past_key_values, out.logits[:, -1]
            return self._logits.argmax(-1).numpy()


class LlamaCpp(Engine):
    """llama.cpp by its C interface: one batch, in which each request is a sequence."""

    def __init__(self, settings: Settings) -> None:
        llama_cpp = import_module("llama_cpp")
        self._library = llama_cpp
        self._log_lines = [""]
        # Kept: the library goes on calling it.
        self._log = llama_cpp.llama_log_callback(
            lambda _, text, __: self._log_lines.append(text.decode(errors="replace"))
        )
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        path = str(settings.folder / GGUF).encode()
        model = llama_cpp.llama_model_load_from_file(path, llama_cpp.llama_model_default_params())
        batch = settings.ubatch_size
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = batch * settings.positions
        parameters.n_seq_max = batch
        parameters.kv_unified = False
        parameters.n_batch = parameters.n_ubatch = batch * settings.input_len
        parameters.n_threads = parameters.n_threads_batch = settings.threads
        parameters.flash_attn_type = FLASH[settings.llama_flash]
        cache = ggml_type(settings.llama_cache or settings.data_type)
        parameters.type_k = parameters.type_v = import_module("gguf").GGMLQuantizationType[cache]
        self._context = llama_cpp.llama_init_from_model(model, parameters) if model else None
        if not self._context:
            raise RuntimeError(
                "it does not take the model: " + "".join(self._log_lines[-3:]).strip()
            )
        self._shape = batch, settings.spec.vocab_size
        self._batches = {n: self._batch(batch, n) for n in (settings.input_len, 1)}
        kinds = (
            f"weights {settings.data_type}, cache {cache.lower()}, "
            f"flash attention {settings.llama_flash}"
        )
        self.about = f"llama-cpp-python {version('llama-cpp-python')}: {kinds}"

    def _batch(self, requests: int, n: int) -> tuple[Any, np.ndarray, np.ndarray]:
        """Return a batch of n tokens per request, and its tokens and positions, [B, n]."""
        count = requests * n
        llama_batch = self._library.llama_batch_init(count, 0, 1)
        llama_batch.n_tokens = count
        fields = (llama_batch.token, llama_batch.pos, llama_batch.n_seq_id, llama_batch.logits)
        tokens, positions, owners, with_logits = (
            np.ctypeslib.as_array(field, (requests, n)) for field in fields
        )
        owners[:] = 1
        with_logits[:] = np.arange(n) == n - 1
        for token_number in range(count):
            llama_batch.seq_id[token_number][0] = token_number // n
        return llama_batch, tokens, positions

    def begin(self) -> None:
        """Clear the context's cache, without its memory."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), False)

    def step(self, tokens: np.ndarray, position: int) -> np.ndarray:
        """Decode one batch; return the most likely tokens [B]."""
        batch, batch_tokens, batch_positions = self._batches[tokens.shape[1]]
        batch_tokens[:] = tokens
        batch_positions[:] = np.arange(position, position + tokens.shape[1])
        if status := self._library.llama_decode(self._context, batch):
            raise RuntimeError(
                f"llama_decode gives {status}: " + "".join(self._log_lines[-3:]).strip()
            )
        return self.logits().argmax(-1)

    def logits(self) -> np.ndarray:
        """Return a view of the newest logits, fp32 [B, vocabulary]."""
        return np.ctypeslib.as_array(self._library.llama_get_logits(self._context), self._shape)


ENGINES: dict[str, tuple[type[Engine], list[str]]] = {
    OURS: (Ours, []),
    "transformers": (Transformers, []),
    "llama.cpp": (LlamaCpp, ["gguf", "llama_cpp"]),
}
"""And the modules each needs beside transformers, which makes the weights of all."""


# ---- in a process of its own ----

_engine: Engine
"""The engine of this process."""


def end_with_parent() -> None:
    """End this process when its parent ends: asleep in its queue, it would not notice."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


def start(name: str, settings: Settings) -> str:
    """Make the engine of this process; return its description."""
    global _engine
    _engine = ENGINES[name][0](settings)
    return _engine.about


def logits_along(tokens: np.ndarray, prompt: int) -> np.ndarray:
    """Return logits after the prompt and after each of the given tokens."""
    _engine.begin()
    logits = []
    for begin, end in pairwise([0, *range(prompt, tokens.shape[1] + 1)]):
        _engine.step(np.ascontiguousarray(tokens[:, begin:end]), begin)
        logits.append(_engine.logits().copy())
    return np.stack(logits)


def time_request(prompt: np.ndarray, steps: int) -> list[float]:
    """Milliseconds of the prompt and of each decode step, each until its tokens are known."""
    _engine.begin()
    gc.collect()
    gc.disable()  # it would stop a step, for nothing of the engine's doing
    tokens = prompt
    position = 0
    times: list[float] = []
    for _ in range(steps):
        began_s = time.perf_counter()
        new_tokens = _engine.step(tokens, position)
        times.append(1000 * (time.perf_counter() - began_s))
        position += tokens.shape[1]
        tokens = new_tokens[:, None]
    gc.enable()
    return times


class Worker:
    """An engine's process: asleep unless something is asked."""

    def __init__(self, name: str, settings: Settings) -> None:
        # Spawned, so that it has nothing of what this process has loaded, threads included.
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent)
        self.name = name
        self.about = ""
        self.about = self.ask(start, name, settings)

    def ask(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return the result of a call in the process.

        Raises:
            ClickException: the engine failed, or its process has ended.
        """
        try:
            return self._pool.submit(function, *args).result()
        except Exception as error:  # noqa: BLE001 (whatever it is, the command ends with one message)
            self.close()
            raise click.ClickException(f"{self.name}: {type(error).__name__}: {error}") from None

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


# ---- the comparison ----


def check(logits: dict[str, np.ndarray], allowed_difference: float) -> dict[str, list[float]]:
    """Return the largest difference of each engine from our logits, by step, in our deviations.

    Raises:
        ClickException: a difference is larger than rounding explains.
    """
    own_logits = logits[OURS]
    far_differences: dict[str, list[float]] = {}
    for name, engine_logits in logits.items():
        far_differences[name] = (
            abs(engine_logits - own_logits).max((1, 2)) / own_logits.std((1, 2))
        ).tolist()
        # Written so that NaN counts as a difference.
        if not all(difference <= allowed_difference for difference in far_differences[name]):
            difference_list = ", ".join(f"{difference:.3g}" for difference in far_differences[name])
            raise click.ClickException(
                f"{name} does not compute what {OURS} does: logits differ by up to "
                f"{difference_list} of their standard deviation, after the prompt and the next "
                f"tokens. Rounding explains {allowed_difference}"
            )
    return far_differences


def phases(rounds: list[list[float]]) -> dict[str, dict[int, float]]:
    """Return one engine's times: phase → round → ms; of a token the median of the round."""
    return {
        "prompt": {number: times[0] for number, times in enumerate(rounds)},
        "token": {number: float(np.median(times[1:])) for number, times in enumerate(rounds)},
    }


def estimates(times: dict[str, list[list[float]]]) -> dict[str, dict[str, Estimate]]:
    """Return by engine both phases in ms, and as ratios to ours, paired by round."""
    own_phases = phases(times[OURS])
    estimates_by_engine: dict[str, dict[str, Estimate]] = {}
    for name, rounds in times.items():
        estimates_by_engine[name] = {
            phase: estimate(series.values()) for phase, series in phases(rounds).items()
        }
        for phase, series in phases(rounds).items():
            estimates_by_engine[name][f"{phase} ratio"] = estimate(
                compute_paired_ratios(series, [own_phases[phase]])
            )
    return estimates_by_engine


def table(estimates_by_engine: dict[str, dict[str, Estimate]], title: str) -> Table:
    """Return the table of medians and paired ratios, one row per engine."""
    shown_table = Table(
        title=title,
        caption="medians over rounds; ratios are paired by round; [ ]: 95 % bootstrap interval",
    )
    shown_table.add_column("engine")
    for column in ("prompt ms", "engine / ours", "token ms", "engine / ours"):
        shown_table.add_column(column, justify="right")
    for name, estimates_of_engine in estimates_by_engine.items():
        ratios = [
            f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
            for ratio in (estimates_of_engine["prompt ratio"], estimates_of_engine["token ratio"])
        ]
        prompt, token = ("", "") if name == OURS else ratios
        shown_table.add_row(
            name,
            format_ms(estimates_of_engine["prompt"].median),
            prompt,
            format_ms(estimates_of_engine["token"].median),
            token,
        )
    return shown_table


def parse_engines(_: click.Context, __: click.Parameter, value: str) -> list[str]:
    """Read the engines' names, without repeats; raise BadParameter for an unknown one."""
    engine_names = list(dict.fromkeys(value.split(",")))
    if unknown_names := [name for name in engine_names if name not in ENGINES]:
        raise click.BadParameter(f"{unknown_names[0]!r} is none of {', '.join(ENGINES)}")
    if OURS not in engine_names or len(engine_names) == 1:
        raise click.BadParameter(f"it takes {OURS} and something to compare it with")
    return engine_names


def refuse(settings: Settings, engines: list[str]) -> None:
    """End with one message and status 2 if the settings cannot be compared."""
    spec = settings.spec
    needed_modules = ["transformers", *(module for name in engines for module in ENGINES[name][1])]
    if missing_modules := [module for module in needed_modules if find_spec(module) is None]:
        fail_usage(
            f"not installed: {', '.join(missing_modules)}: pip install -r "
            "contrib/requirements-compare.txt"
        )
    if not spec.name.startswith("gpt2"):
        fail_usage(f"--model {spec.name}: only sizes of GPT-2 are written for all engines")
    if spec.context is not None and settings.positions > spec.context:
        fail_usage(
            f"{spec.name} attends to {spec.context} positions at most, not {settings.positions}"
        )
    if settings.folder.exists() and any(settings.folder.iterdir()):
        fail_usage(f"--folder {settings.folder} is not empty, and nothing there is overwritten")


@click.command(context_settings={"show_default": True})
@click.option("--model", default="gpt2", help="A size of GPT-2 by name.")
@click.option(
    "--ubatch-size", default=4, type=click.IntRange(1), help="Requests that go through together."
)
@click.option("--input-len", default=256, type=click.IntRange(2), help="Tokens of a prompt.")
@click.option("--output-len", default=32, type=click.IntRange(2), help="New tokens.")
@click.option("--threads", default=1, type=click.IntRange(1), help="Threads of each engine.")
@click.option(
    "--rounds",
    default=7,
    type=click.IntRange(1),
    help="Rounds, each of which measures every engine once.",
)
@click.option(
    "--data-type",
    default="bf16",
    type=click.Choice(list(TOLERANCE)),
    help="Data type of weights and cache.",
)
@click.option(
    "--engines",
    default=",".join(ENGINES),
    callback=parse_engines,
    help="Engines to compare, with commas between.",
)
@click.option(
    "--llama-flash",
    default="off",
    type=click.Choice(list(FLASH)),
    help="llama.cpp's flash attention.",
)
@click.option(
    "--llama-cache",
    type=click.Choice(list(TOLERANCE)),
    help="llama.cpp's cache, if not of the data type.",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to keep the weights in. [default: a temporary one]",
)
@click.option(
    "--seed",
    default=0,
    type=click.IntRange(0),
    help="Seed of weights, prompts and the order of engines.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write every sample to.",
)
def main(
    model: str,
    engines: list[str],
    rounds: int,
    folder: Path | None,
    seed: int,
    json_file: Path | None,
    **sizes: Any,
) -> None:
    """Measure this project's model beside transformers and llama.cpp on this CPU.

    Exit status: 1 if an engine fails or computes something else, 2 if nothing can be compared.
    """
    try:
        spec = specs.find_spec(model)
    except ValueError as error:
        fail_usage(f"--model: {error}")
    with tempfile.TemporaryDirectory() as temporary_folder, ExitStack() as stack:
        settings = Settings(folder or Path(temporary_folder), spec, **sizes)
        refuse(settings, engines)
        write_weights(settings, seed, "llama.cpp" in engines)
        out, rng = make_console(), np.random.default_rng(seed)
        workers = [stack.enter_context(closing(Worker(name, settings))) for name in engines]
        # A few tokens beside the prompt, for decode steps that are the same for all.
        tokens = rng.integers(
            spec.vocab_size, size=(settings.ubatch_size, settings.input_len + DECODED)
        )
        checked_tokens = tokens[:, : settings.positions]
        logits = {
            worker.name: worker.ask(logits_along, checked_tokens, settings.input_len)
            for worker in workers
        }
        far_differences = check(logits, TOLERANCE[settings.data_type])
        for worker in workers:
            gap = max(far_differences[worker.name])
            out.print(
                f"{worker.name}: {worker.about}; logits differ by {gap:.2g} standard deviations",
                soft_wrap=True,
            )
        times = time_rounds(workers, tokens[:, : settings.input_len], settings, rounds, rng)
    estimates_by_engine = estimates(times)
    size = f"{settings.ubatch_size} × {settings.input_len} + {settings.output_len} tokens"
    title = f"{model} {settings.data_type}, {size}, threads {settings.threads}, rounds {rounds}"
    out.print(table(estimates_by_engine, title))
    if json_file:
        texts_by_engine = {worker.name: worker.about for worker in workers}
        record = {
            "settings": settings,
            "about": texts_by_engine,
            "differences": far_differences,
            "estimates": estimates_by_engine,
            "times_ms": times,
        }
        json_file.write_text(json.dumps(record, indent=2, default=plain))


def time_rounds(
    workers: list[Worker],
    prompt: np.ndarray,
    settings: Settings,
    rounds: int,
    rng: np.random.Generator,
) -> dict[str, list[list[float]]]:
    """Return the times of each engine's requests, in rounds of random order."""
    times: dict[str, list[list[float]]] = {worker.name: [] for worker in workers}
    for round_number in range(-1, rounds):  # the one before the first warms up
        for worker_index in rng.permutation(len(workers)):
            worker = workers[worker_index]
            sample = worker.ask(time_request, prompt, settings.output_len)
            if round_number >= 0:
                times[worker.name].append(sample)
    return times


def plain(value: Any) -> Any:
    """Return a value that JSON can hold, for paths and dataclasses."""
    if isinstance(value, Path):
        return str(value)
    json_object = asdict(value)
    if isinstance(value, Estimate):
        json_object["samples"] = json_object.pop("sample_count")
    return json_object


if __name__ == "__main__":
    main()
