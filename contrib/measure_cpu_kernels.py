"""What each piece of the CPU's decode kernels gains: a token with the piece against one without it.

Every round measures every arm once, in an order of its own, and ratios are paired within rounds,
so that drift cancels. With one thread the clock is the thread's CPU time, which other processes
hardly disturb. With more threads it is the wall clock, and each arm's fastest step of a round
counts.

The pieces: products of pairs of bf16, AMX tiles, torch's own threads (against one thread, and
against numba's OpenMP layer, a pool of its own), the linear and the attention kernel themselves
(against torch's). A piece that this CPU cannot run is left out.
"""

from __future__ import annotations

import ctypes
import functools
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import click
import numpy as np

os.environ["DEJAVUBENCH_KERNEL_CACHE"] = ""  # kernels of arms are nobody else's

import torch
import torch.nn.functional as F
from llvmlite import binding, ir
from numba import config, njit, prange, set_num_threads, types
from numba.extending import intrinsic
from torch import Tensor

from dejavubench.dejavulib.kv_cache import KVCache, KVLayout
from dejavubench.models.backends.cpu import (
    amx,
    attention_kernel,
    backend,
    dot_kernels,
    linear_kernel,
    threads,
)
from dejavubench.models.backends.cpu import linear as linear_ways
from dejavubench.models.backends.protocol import ACTIVATIONS, Activation
from dejavubench.models.dtypes import compute_dtype, dtype_of
from dejavubench.models.gpt import GPT
from dejavubench.models.hub.shard import Shard
from dejavubench.models.hub.specs import find_spec
from dejavubench.models.weights import make_random_weights

WARM_UP = 2
"""Rounds that are not counted."""

Symbols = dict[str, int]
"""Addresses of functions that compiled code calls by name."""


def symbols_of(library: ctypes.CDLL) -> Symbols:
    """Return the addresses of the OpenMP functions that kernels call."""
    functions = ("omp_get_thread_num", "omp_get_num_threads")
    addresses = {
        name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in functions
    }
    return {name: address for name, address in addresses.items() if address is not None}


def no_kernels() -> dict[tuple[Any, str], Any]:
    """Return empty caches of kernels, so that each arm compiles its own."""
    kernels: dict[tuple[Any, str], Any] = {
        (module, name): functools.cache(getattr(module, name).__wrapped__)
        for module, name in (
            (linear_kernel, "_make_kernel"),
            (linear_kernel, "_make_product"),
            (attention_kernel, "_make_kernel"),
        )
    }
    tiling = linear_kernel.CpuTiling
    kernels[tiling, "choose"] = staticmethod(functools.cache(tiling.choose.__wrapped__))
    return kernels


@dataclass
class Arm:
    """One way to compute a token: the attributes that it replaces while it runs."""

    name: str
    patches: dict[tuple[Any, str], Any] = field(default_factory=dict)
    symbols: Symbols = field(default_factory=lambda: symbols_of(threads.OPENMP))
    ms: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.patches = {**no_kernels(), **self.patches}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Put the arm's patches and symbols in force inside the context."""
        values_before = {(owner, name): vars(owner)[name] for owner, name in self.patches}
        for (owner, name), value in self.patches.items():
            setattr(owner, name, value)
        for name, address in self.symbols.items():
            binding.add_symbol(name, address)
        try:
            yield
        finally:
            for (owner, name), value in values_before.items():
                setattr(owner, name, value)


# ---- arms ----


def torch_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: Activation = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """Compute a linear by torch alone, with weights widened to the type of ``x``."""
    out = ACTIVATIONS[activation](F.linear(x, weight.to(x.dtype), bias))
    return out if residual is None else out.add_(residual)


def packed_linear() -> Callable[..., Tensor]:
    """Return a linear by oneDNN, whose weights are put in its own order once."""
    packed: dict[int, Tensor] = {}

    def linear(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: Activation = "none",
        residual: Tensor | None = None,
    ) -> Tensor:
        key = weight.data_ptr()
        if key not in packed:
            rows = x.numel() // x.shape[-1]
            packed[key] = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        product: Any = torch.ops.mkldnn._linear_pointwise
        if residual is not None:
            return product.binary(x, residual, packed[key], bias, "add")
        name, formula = linear_ways.ONEDNN_NAMES[activation]
        return product(x, packed[key], bias, name, [], formula)

    return linear


def read_cache(q: Tensor, cache: KVCache, layer: int, stop: int) -> tuple[Tensor, Tensor]:
    """Return keys and values [B, G, stop, D] of a layer, in the type of ``q``."""
    return cache.keys(layer, stop).to(q.dtype), cache.values(layer, stop).to(q.dtype)


def sdpa(self: Any, q: Tensor, cache: KVCache, layer: int, stop: int, *rest: Any) -> Tensor:
    """Attend by torch's fused kernel."""
    k, v = read_cache(q, cache, layer, stop)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def matmuls(self: Any, q: Tensor, cache: KVCache, layer: int, stop: int, *rest: Any) -> Tensor:
    """Attend by two matrix products and a softmax."""
    k, v = read_cache(q, cache, layer, stop)
    shares = torch.matmul(q * q.shape[-1] ** -0.5, k.mT).softmax(-1)
    return torch.matmul(shares, v).transpose(1, 2).flatten(2)


def on_one_thread(kernel: threads.LoadedCode, job: ctypes.Structure) -> None:
    """Run a kernel on the calling thread alone."""
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(kernel.address)(ctypes.addressof(job))


@intrinsic
def call_at(typing: Any, address: Any, job: Any) -> Any:
    """Call the code at an address with the address of a job."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        function = ir.FunctionType(ir.VoidType(), [ir.IntType(64)])
        builder.call(builder.inttoptr(values[0], function.as_pointer()), [values[1]])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), emit


@njit(parallel=True)
def on_all_threads(address, job, count):  # type: ignore[no-untyped-def]
    """Call a kernel ``count`` times, on as many of numba's threads."""
    for _ in prange(count):
        call_at(address, job)


def by_numba(kernel: threads.LoadedCode, job: ctypes.Structure) -> None:
    """Run a kernel on numba's threads in place of torch's."""
    count = torch.get_num_threads()
    set_num_threads(count)
    on_all_threads(kernel.address, ctypes.addressof(job), count)


def arms_of(thread_count: int, rows: int, dtype: torch.dtype) -> list[Arm]:
    """Return the arms that this CPU and these sizes can run, first the program as it is."""
    arms = [Arm("as it is"), Arm("as it is, again")]
    pairs = dot_kernels.MULTIPLIES_BF16_PAIRS and compute_dtype(dtype) == torch.bfloat16
    if amx.is_usable() and rows > linear_kernel.TILE_ROWS:
        arms.append(
            Arm("without AMX tiles", {(amx, "can_multiply"): lambda rows, in_features: False})
        )
    if pairs:
        arms.append(Arm("without pairs of bf16", {(dot_kernels, "MULTIPLIES_BF16_PAIRS"): False}))
    arms.append(Arm("linears by torch", {(linear_ways, "linear"): torch_linear}))
    if compute_dtype(dtype) == torch.bfloat16 and linear_ways.can_fuse():
        arms.append(Arm("linears by oneDNN, packed", {(linear_ways, "linear"): packed_linear()}))
    one_query = (backend.CpuBackend, "attend_one")
    arms.append(Arm("attention by SDPA", {one_query: sdpa}))
    arms.append(Arm("attention by two matmuls", {one_query: matmuls}))
    if thread_count > 1:
        runs = [(module, "run_on_all_threads") for module in (linear_kernel, attention_kernel)]
        arms.append(Arm("kernels on one thread", dict.fromkeys(runs, on_one_thread)))
        try:
            # The library that Numba is linked to.
            library = symbols_of(ctypes.CDLL("libgomp.so.1.0.0"))
        except OSError:
            return arms
        config.THREADING_LAYER = "omp"
        arms.append(Arm("kernels on numba's threads", dict.fromkeys(runs, by_numba), library))
    return arms


# ---- measuring ----


def measure(
    model: GPT, cache: KVCache, arms: Sequence[Arm], position: int, rounds: int, steps: int
) -> None:
    """Time a token of each arm ``steps`` times in each round."""
    is_single_thread = torch.get_num_threads() == 1
    clock: Callable[[], float] = time.thread_time if is_single_thread else time.perf_counter
    of_round: Callable[[list[float]], float] = statistics.median if is_single_thread else min
    tokens = torch.zeros(cache.geometry.requests, 1, dtype=torch.long)
    for round_number in range(rounds + 1):
        for arm in random.Random(round_number).sample(list(arms), len(arms)):
            times = []
            with arm.active():
                for step in range(WARM_UP + steps):
                    began_s = clock()
                    logits = model.forward(tokens, cache, position + step)
                    tokens = model.greedy(logits).tokens.unsqueeze(1)
                    times.append(clock() - began_s)
            if round_number:  # the first round compiles
                arm.ms.append(1e3 * of_round(times[WARM_UP:]))


def row_of(arm: Arm, base: Arm) -> str:
    """Return a row of the table: median milliseconds, and the quartiles of the paired ratio."""
    ratios = np.percentile(np.array(arm.ms) / np.array(base.ms), [25, 50, 75])
    return (
        f"{arm.name} | {statistics.median(arm.ms):.2f} | {ratios[1]:.3f} | "
        f"[{ratios[0]:.3f}, {ratios[2]:.3f}]"
    )


@click.command()
@click.option("--model", "name", default="gpt2", show_default=True, help="Name of the model.")
@click.option("--data-type", default="bf16", show_default=True, help="Type of weights and cache.")
@click.option("--kv-layout", default="hnd", show_default=True, help="Layout of the cache.")
@click.option("--threads", "thread_count", default=1, show_default=True, help="Torch's threads.")
@click.option("--batch", default="1,4,8,16", show_default=True, help="Numbers of requests.")
@click.option("--position", default=256, show_default=True, help="Positions in the cache.")
@click.option("--rounds", default=12, show_default=True, help="Rounds that count.")
@click.option("--steps", default=10, show_default=True, help="Tokens of each arm in a round.")
def main(
    name: str,
    data_type: str,
    kv_layout: str,
    thread_count: int,
    batch: str,
    position: int,
    rounds: int,
    steps: int,
) -> None:
    """Print a Markdown table: each piece's median token, and its ratio to the program as it is."""
    torch.set_num_threads(thread_count)
    dtype, sizes = dtype_of(data_type), find_spec(name)
    model = GPT(sizes, Shard(), dtype, compute_dtype(dtype))
    model.load(make_random_weights(sizes, 0))
    print("| threads | batch | arm | token ms | ratio | quartiles |")
    print("| ---: | ---: | --- | ---: | ---: | --- |")
    for requests in map(int, batch.split(",")):
        positions = position + WARM_UP + steps
        geometry = model.kv_geometry(requests, positions, KVLayout(kv_layout))
        cache = KVCache.allocate(geometry, dtype)
        cache.k.normal_()
        cache.v.normal_()
        arms = arms_of(thread_count, requests, dtype)
        measure(model, cache, arms, position, rounds, steps)
        for arm in arms:
            print(f"| {thread_count} | {requests} | {row_of(arm, arms[0])} |", flush=True)


if __name__ == "__main__":
    main()
