"""Compare split models with unsplit ones; test_parallel.py runs this under mpirun.

Each source runs its shard with all microbatches in flight. Rank 0 also runs the unsplit model and
prints both, one line of JSON per case.
"""

from __future__ import annotations

import json
import sys

import torch
from mpi4py import MPI

from dejavubench.dejavulib.kv_cache import KVCache, KVLayout
from dejavubench.models.gpt import GPT
from dejavubench.models.hub.model_spec import ModelSpec
from dejavubench.models.hub.shard import Shard
from dejavubench.models.weights import make_random_weights
from dejavubench.parallel.collectives import (
    MPICollectives,
    sleeping_barrier,
    sleeping_bcast,
    sleeping_gather,
)
from dejavubench.parallel.topology import Topology

SPECS = {
    "gpt2": ModelSpec(
        "tiny-gpt2",
        layer_num=3,
        head_num=4,
        size_per_head=8,
        vocab_size=101,
        context=64,
        ffn_size=128,
    ),
    "bloom": ModelSpec(
        "tiny-bloom",
        layer_num=3,
        head_num=6,
        size_per_head=8,
        vocab_size=101,
        context=None,
        ffn_size=192,
        position="alibi",
        embed_norm=True,
    ),
    "opt-post-norm": ModelSpec(
        "tiny-opt",
        layer_num=3,
        head_num=4,
        size_per_head=8,
        vocab_size=101,
        context=64,
        ffn_size=128,
        position_offset=2,
        activation="relu",
        norm_first=False,
        embed_size=16,
    ),
}
REQUESTS, PROMPT, STEPS = 3, 7, 12


def prompt_of(microbatch: int) -> torch.Tensor:
    return torch.randint(
        101, (REQUESTS, PROMPT), generator=torch.Generator().manual_seed(microbatch)
    )


def cache_for(model: GPT, layout: KVLayout) -> KVCache:
    cache = KVCache.allocate(model.kv_geometry(REQUESTS, PROMPT + STEPS, layout), model.dtype)
    cache.fill(0xFF)
    return cache


Tokens = list[list[list[int]]]  # [microbatch][step][request]


def run_split(
    model: GPT, stages: int, mpi: MPICollectives, layout: KVLayout
) -> tuple[Tokens, list[torch.Tensor]]:
    """Return new tokens (first stage) and last logits [B, vocabulary rows] (last stage)."""
    microbatches = range(stages)
    caches = [cache_for(model, layout) for _ in microbatches]
    tokens: Tokens = [[] for _ in microbatches]
    logits: list[torch.Tensor] = []
    first, last = model.is_first_stage, model.is_last_stage
    for step in range(STEPS):
        count, position = (PROMPT, 0) if step == 0 else (1, PROMPT + step - 1)
        for microbatch in microbatches:
            if not first:
                layer_input = mpi.recv_hidden(
                    (REQUESTS, count, model.spec.hidden), model.compute_dtype, microbatch
                )
            elif step == 0:
                layer_input = prompt_of(microbatch)
            else:
                if not last:
                    tokens[microbatch].append(mpi.recv_tokens(REQUESTS, microbatch).tolist())
                layer_input = torch.tensor(tokens[microbatch][-1])[:, None]
            out = model.forward(layer_input, caches[microbatch], position)
            if not last:
                mpi.send_hidden(out, microbatch)
                continue
            logits.append(out)
            new_tokens = model.greedy(out).tokens
            if first:
                tokens[microbatch].append(new_tokens.tolist())
            else:
                mpi.send_tokens(new_tokens, microbatch)
    if first and not last:
        for microbatch in microbatches:
            tokens[microbatch].append(mpi.recv_tokens(REQUESTS, microbatch).tolist())
    mpi.finish()
    return tokens, logits[-stages:]


def run_unsplit(
    family: str, seed: int, microbatch: int, layout: KVLayout
) -> tuple[list[list[int]], list[list[float]]]:
    """Return new tokens [step][request] and last logits [request][vocabulary] of a microbatch."""
    model = GPT(SPECS[family], Shard(), torch.float32, torch.float32)
    model.load(make_random_weights(SPECS[family], seed))
    cache = cache_for(model, layout)
    logits = model.forward(prompt_of(microbatch), cache, 0)
    tokens = [model.greedy(logits).tokens]
    for step in range(1, STEPS):
        logits = model.forward(tokens[-1][:, None], cache, PROMPT + step - 1)
        tokens.append(model.greedy(logits).tokens)
    return [step.tolist() for step in tokens], logits.tolist()


def compare(family: str, layout: KVLayout, tensor_size: int, stages: int, wait: str) -> None:
    world = MPI.COMM_WORLD
    place = Topology(world.size, world.rank, tensor_size, stages)
    seed = sleeping_bcast(world, 11 if world.rank == 0 else None)
    mpi = MPICollectives(world, place, spin=wait == "spin")
    model = GPT(SPECS[family], Shard(*place.shard()), torch.float32, torch.float32, mpi)
    model.load(make_random_weights(SPECS[family], seed))
    model.compile(layout, REQUESTS, REQUESTS * PROMPT)
    sleeping_barrier(world)  # so that none spins while another compiles
    tokens, logits = run_split(model, stages, mpi, layout)
    mpi.close()
    everyone = sleeping_gather(world, (place.stage, tokens, [part.tolist() for part in logits]))
    if everyone is not None:
        expected = [run_unsplit(family, seed, microbatch, layout) for microbatch in range(stages)]
        report = {
            "family": family,
            "wait": wait,
            "tokens": [tokens for stage, tokens, _ in everyone if stage == 0],
            "logits": [logits for stage, _, logits in everyone if stage == stages - 1],
            "expected_tokens": [tokens for tokens, _ in expected],
            "expected_logits": [logits for _, logits in expected],
        }
        print(json.dumps(report))
    sleeping_barrier(world)


def main(tensor_size: int, stages: int) -> None:
    torch.set_num_threads(1)
    layouts = list(KVLayout)
    for wait in ("spin", "yield"):
        for family in SPECS:
            layouts.append(layouts.pop(0))
            compare(family, layouts[0], tensor_size, stages, wait)
        layouts.append(layouts.pop(0))  # so that no family meets the same layout twice


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
