"""Which cut of the GPU's decode kernels is the fastest: whole steps with other cuts, in turns.

Every round replays a captured step of every arm once, in an order of its own. Ratios to the cuts in
use are paired within rounds, so that the clocks of the card cancel. A step has a compute-bound
kernel beside a memory-bound one, and each prefetches while the one before it runs: a cut that is
fast alone can be slow in a step.

The weights are random, so a folder needs no more than its config.json.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from dejavubench.analysis.numbers import stats
from dejavubench.dejavulib.kv_cache import KVCache, KVLayout
from dejavubench.models.backends.cuda import attention, linear
from dejavubench.models.backends.cuda.linear import GpuTiling
from dejavubench.models.backends.cuda.position_split import PositionSplit, count_splits
from dejavubench.models.gpt import GPT
from dejavubench.models.hub.checkpoint import read_spec
from dejavubench.models.hub.model_spec import ModelSpec
from dejavubench.models.hub.shard import Shard
from dejavubench.models.hub.specs import find_spec as named_spec

REPLAYS = 20
"""Steps of one arm in one round."""

Patches = dict[tuple[Any, str], Any]
"""Attributes of modules, and what replaces them."""


@dataclass
class Arm:
    """One way to cut the kernels of a step."""

    name: str
    patches: Patches
    step_ms: dict[int, float] = field(default_factory=dict)


@contextmanager
def patched(patches: Patches) -> Iterator[None]:
    """Put the patches in force inside the context."""
    originals = {(owner, name): getattr(owner, name) for owner, name in patches}
    for (owner, name), replacement in patches.items():
        setattr(owner, name, replacement)
    try:
        yield
    finally:
        for (owner, name), original in originals.items():
            setattr(owner, name, original)


# ---- arms ----


def with_tiling(outs: int, ins: int, cut: GpuTiling) -> Patches:
    """Return patches by which weights [outs, ins] have another tiling."""
    tiling_in_use = linear.choose_tiling

    def choose_tiling(weight_outs: int, weight_ins: int, multiprocessors: int) -> GpuTiling:
        if (weight_outs, weight_ins) == (outs, ins):
            return cut
        return tiling_in_use(weight_outs, weight_ins, multiprocessors)

    return {(linear, "choose_tiling"): choose_tiling}


def with_splits(block: int, warps: int, stages: int, blocks_per_processor: int) -> Patches:
    """Return patches by which attention cuts positions in another way."""

    def cut_positions(
        pairs: int, head_size: int, positions: int, multiprocessors: int, grouped_vectors: bool
    ) -> PositionSplit:
        return PositionSplit(
            block=block,
            split_count=count_splits(
                pairs, positions, block, blocks_per_processor * multiprocessors
            ),
            warp_count=warps,
            stage_count=stages,
        )

    return {(attention, "cut_positions"): cut_positions}


def make_arms(model: GPT) -> list[Arm]:
    """Return the cuts in use, and then others."""
    arms = [Arm("in use", {})]
    for block, warps, stages, blocks in ((32, 4, 3, 4), (64, 4, 2, 4), (128, 4, 2, 2)):
        name = f"attention: block {block}, {warps} warps, {stages} stages, {blocks} blocks"
        arms.append(Arm(name, with_splits(block, warps, stages, blocks)))
    layer = model.layers[0]
    shapes = {tuple(part.weight.shape) for part in (layer.qkv, layer.out, layer.down)}
    if model.spec.gated:
        for ins, stages in ((128, 2), (128, 4), (256, 2)):
            cut = GpuTiling(
                block_outs=64,
                block_ins=ins,
                split_count=1,
                warp_count=4,
                stage_count=stages,
                ahead_columns=256,
            )
            name = f"gated linear: {ins} columns, {stages} stages"
            arms.append(Arm(name, {(linear, "GATED_TILING"): cut}))
    else:
        shapes.add(tuple(layer.up.weight.shape))
    for outs, ins in sorted(shapes):
        for columns, splits, stages in ((256, 1, 4), (256, 2, 4), (128, 2, 5), (128, 4, 5)):
            cut = GpuTiling(
                block_outs=64,
                block_ins=columns,
                split_count=splits,
                warp_count=4,
                stage_count=stages,
                ahead_columns=256,
            )
            name = f"[{outs}, {ins}]: {columns} columns, {splits} splits, {stages} stages"
            arms.append(Arm(name, with_tiling(outs, ins, cut)))
    return arms


# ---- steps ----


def capture(step: Callable[[], Tensor]) -> torch.cuda.CUDAGraph:
    """Return a captured step, whose kernels are compiled first."""
    for _ in range(2):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def replay_ms(graph: torch.cuda.CUDAGraph) -> float:
    """Return the time of one replay, of several in a row."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    graph.replay()
    begin.record()
    for _ in range(REPLAYS):
        graph.replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / REPLAYS


def step_nbytes(model: GPT, cache: KVCache, position: int) -> int:
    """Return the bytes that a step reads: all weights but the embedding's, and the cache."""
    weights = sum(part.memory.nbytes for part in model.weight_slices)
    if model.embedding is not None and not model.spec.tied:
        weights -= model.embedding.table.nbytes
    geometry = cache.geometry
    positions = geometry.layers * geometry.requests * geometry.heads * position
    return weights + 2 * positions * geometry.head_size * geometry.itemsize


def read_model(name: str) -> ModelSpec:
    """Return the sizes of a model by its name, or by the config.json of a folder."""
    folder = Path(name)
    return read_spec(folder) if folder.is_dir() else named_spec(name)


@click.command()
@click.option("--model", "model_name", default="opt-13b", help="Name, or a Hugging Face folder.")
@click.option("--layout", type=click.Choice([layout.value for layout in KVLayout]), default="hnd")
@click.option("--data-type", type=click.Choice(["fp16", "bf16"]), default="bf16")
@click.option("--batch", default=8, show_default=True, help="Requests of a step.")
@click.option("--position", default=1000, show_default=True, help="Position of the step.")
@click.option("--rounds", default=15, show_default=True, help="Rounds of all arms.")
def main(
    model_name: str, layout: str, data_type: str, batch: int, position: int, rounds: int
) -> None:
    """Print each arm's step, and its ratio to the cuts in use with a 95 % interval."""
    dtype = torch.float16 if data_type == "fp16" else torch.bfloat16
    model = GPT(read_model(model_name), Shard(), dtype, dtype, device="cuda")
    for part in model.weight_slices:
        part.memory.normal_(0, 0.02)
    geometry = model.kv_geometry(batch, position + 1, KVLayout(layout))
    cache = KVCache.allocate(geometry, dtype, "cuda")
    on_device = torch.full((1,), position, device="cuda")
    tokens = torch.zeros((batch, 1), dtype=torch.long, device="cuda")
    arms = make_arms(model)
    graphs = {}
    for arm in arms:
        with patched(arm.patches):
            graphs[arm.name] = capture(lambda: model.forward(tokens, cache, on_device))
    for round_number in range(rounds):
        for arm in random.sample(arms, len(arms)):
            arm.step_ms[round_number] = replay_ms(graphs[arm.name])
    nbytes = step_nbytes(model, cache, position)
    for arm in arms:
        ratio = stats.estimate(stats.compute_paired_ratios(arm.step_ms, [arms[0].step_ms]))
        step_ms = stats.estimate(arm.step_ms.values()).median
        click.echo(
            f"{step_ms:7.3f} ms  {nbytes / step_ms / 1e6:5.0f} GB/s  {ratio.median:.4f} "
            f"[{ratio.low:.4f}, {ratio.high:.4f}]  {arm.name}"
        )


if __name__ == "__main__":
    main()
