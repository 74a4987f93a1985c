"""Run by test_parallel.py under mpirun: a split model against the unsplit one, all microbatches in flight.

Each source runs its shard; rank 0 also runs the unsplit model by itself and prints both as one line of JSON.
"""

from __future__ import annotations

import json
import sys

import torch
from mpi4py import MPI

from dejavubench.kvcache import KVCache, KVLayout
from dejavubench.models.gpt import GPT
from dejavubench.models.sharding import Shard
from dejavubench.models.weights import random_weights
from dejavubench.parallel.collectives import MPICollectives, polite_barrier, polite_bcast, polite_gather
from dejavubench.parallel.topology import Topology
from dejavubench.specs import ModelSpec

SPECS = {
    "gpt2": ModelSpec("tiny-gpt2", 3, 4, 8, 101, 64, 128),
    "bloom": ModelSpec("tiny-bloom", 3, 6, 8, 101, None, 192, position="alibi", embed_norm=True),
    "opt-post-norm": ModelSpec(
        "tiny-opt", 3, 4, 8, 101, 64, 128, position_offset=2, activation="relu", norm_first=False, embed_size=16
    ),
}
REQUESTS, PROMPT, STEPS = 3, 7, 12


def prompt_of(ubatch: int) -> torch.Tensor:
    return torch.randint(101, (REQUESTS, PROMPT), generator=torch.Generator().manual_seed(ubatch))


def cache_for(model: GPT, layout: KVLayout) -> KVCache:
    cache = KVCache.allocate(model.kv_geometry(REQUESTS, PROMPT + STEPS, layout), model.dtype)
    cache.fill(0xFF)
    return cache


def split(model: GPT, place: Topology, mpi: MPICollectives, layout: KVLayout) -> tuple[list[object], list[torch.Tensor]]:
    """Tokens [ubatch][step][request] (first stage) and last logits by microbatch (last stage)."""
    ubatches = range(place.stages)
    caches = [cache_for(model, layout) for _ in ubatches]
    tokens: list[list[list[int]]] = [[] for _ in ubatches]
    logits: list[torch.Tensor] = []
    first, last = model.shard.first, model.shard.last
    for step in range(STEPS):
        n, position = (PROMPT, 0) if step == 0 else (1, PROMPT + step - 1)
        for ubatch in ubatches:
            if not first:
                x = mpi.recv_hidden((REQUESTS, n, model.spec.hidden), model.compute_dtype, ubatch)
            elif step == 0:
                x = prompt_of(ubatch)
            else:
                x = (mpi.recv_tokens(REQUESTS, ubatch) if not last else torch.tensor(tokens[ubatch][-1]))[:, None]
                if not last:
                    tokens[ubatch].append(x[:, 0].tolist())
            out = model.forward(x, caches[ubatch], position)
            if not last:
                mpi.send_hidden(out, ubatch)
                continue
            logits.append(out)
            new = model.greedy(out)
            if first:
                tokens[ubatch].append(new.tolist())
            else:
                mpi.send_tokens(new, ubatch)
    if first and not last:
        for ubatch in ubatches:
            tokens[ubatch].append(mpi.recv_tokens(REQUESTS, ubatch).tolist())
    mpi.finish()
    return tokens, logits[-place.stages :]  # type: ignore[return-value]


def main(family: str, layout: str, tensor_size: int, stages: int, spin: bool) -> None:
    torch.set_num_threads(1)
    world = MPI.COMM_WORLD
    spec, kv_layout = SPECS[family], KVLayout(layout)
    place = Topology(world.size, world.rank, tensor_size, stages)
    seed = polite_bcast(world, 11 if world.rank == 0 else None)
    mpi = MPICollectives(world, place, spin)
    model = GPT(spec, Shard(*place.shard()), torch.float32, torch.float32, mpi)
    model.load(random_weights(spec, seed))
    tokens, logits = split(model, place, mpi, kv_layout)
    mpi.close()

    everyone = polite_gather(world, (place, tokens, [x.tolist() for x in logits]))
    if everyone is not None:
        whole = GPT(spec, Shard(), torch.float32, torch.float32)
        whole.load(random_weights(spec, seed))
        alone = Topology(1, 0)
        expected_tokens, expected_logits = [], []
        for ubatch in range(stages):
            cache = cache_for(whole, kv_layout)
            out = whole.forward(prompt_of(ubatch), cache, 0)
            steps = [whole.greedy(out)]
            for step in range(1, STEPS):
                out = whole.forward(steps[-1][:, None], cache, PROMPT + step - 1)
                steps.append(whole.greedy(out))
            expected_tokens.append([step.tolist() for step in steps])
            expected_logits.append(out.tolist())
        assert alone.workers == 1
        print(
            json.dumps(
                {
                    "tokens": [tokens for place, tokens, _ in everyone if place.stage == 0],
                    "logits": [logits for place, _, logits in everyone if place.stage == stages - 1],
                    "expected_tokens": expected_tokens,
                    "expected_logits": expected_logits,
                }
            )
        )
    polite_barrier(world)


if __name__ == "__main__":
    family, layout, tensor_size, stages, wait = sys.argv[1:]
    main(family, layout, int(tensor_size), int(stages), wait == "spin")
