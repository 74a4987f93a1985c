"""Random weights: the same for every split, of published sizes, and a wrong cache shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dejavubench.dejavulib.kv_cache import KVCache, KVLayout
from dejavubench.models.gpt import GPT
from dejavubench.models.hub.model_spec import ModelSpec, RopeSpec
from dejavubench.models.hub.shard import Shard
from dejavubench.models.weights import identify_weights, list_recipes, make_random_weights

GPT2 = ModelSpec(
    "small", layer_num=6, head_num=8, size_per_head=16, vocab_size=1000, context=128, ffn_size=512
)
OPT = replace(GPT2, name="small-opt", position_offset=2, activation="relu")
OPT_POST = replace(OPT, name="small-post-norm", norm_first=False, embed_size=64)
BLOOM = replace(GPT2, name="small-alibi", context=None, position="alibi", embed_norm=True)
LLAMA = replace(
    GPT2,
    name="small-llama",
    position="rope",
    rope=RopeSpec(),
    activation="silu",
    kv_head_num=4,
    rms=True,
    gated=True,
    qkv_bias=False,
    bias=False,
    tied=False,
)
QWEN3 = replace(LLAMA, name="small-qwen3", width=96, qk_norm=True, tied=True)
FAMILIES = [GPT2, OPT, OPT_POST, BLOOM, LLAMA, QWEN3]
PROMPT, STEPS, BATCH = 64, 24, 4

GOLDEN = {
    "embedding": ["-0x1.ef1d0e0000000p-7", "-0x1.002f1e0000000p-5"],
    "layers.0.query.weight": ["-0x1.e32d940000000p-4", "-0x1.6d9a200000000p-3"],
    "layers.5.down.weight": ["-0x1.ca0d2c0000000p-6", "0x1.ca0d2c0000000p-6"],
}
GOLDEN_IDENTITY = "73d6819febb7129f"

pytestmark = pytest.mark.usefixtures("one_thread")
each_family = pytest.mark.parametrize("spec", FAMILIES, ids=lambda spec: spec.name)


def build(
    spec: ModelSpec,
    shard: Shard = Shard(),  # noqa: B008
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> GPT:
    model = GPT(spec, shard, dtype, torch.float32)
    model.load(make_random_weights(spec, seed))
    return model


@each_family
def test_every_tensor_is_used_once_and_counts_as_published(spec: ModelSpec) -> None:
    model = build(spec)
    assert sorted(place.name for place in model.weight_slices) == sorted(list_recipes(spec))
    held_shapes = {place.name: tuple(place.memory.shape) for place in model.weight_slices}
    recipe_shapes = {name: recipe.shape for name, recipe in list_recipes(spec).items()}
    assert held_shapes == recipe_shapes
    assert model.parameter_count == spec.parameter_count


def test_gpt2_has_its_published_124_million_parameters() -> None:
    assert (
        ModelSpec(
            "gpt2",
            layer_num=12,
            head_num=12,
            size_per_head=64,
            vocab_size=50257,
            context=1024,
            ffn_size=3072,
        ).parameter_count
        == 124_439_808
    )


@each_family
@pytest.mark.parametrize(("stages", "tensor_size"), [(1, 2), (2, 1), (3, 4)])
def test_shards_are_cuts_of_the_same_full_tensors(
    spec: ModelSpec, stages: int, tensor_size: int
) -> None:
    full = make_random_weights(spec, 5)
    covered = {
        name: torch.zeros(recipe.shape, dtype=torch.int)
        for name, recipe in list_recipes(spec).items()
    }
    for stage in range(stages):
        for tensor_rank in range(tensor_size):
            model = build(
                spec, Shard(stage, stages, tensor_rank, tensor_size), torch.bfloat16, seed=5
            )
            for place in model.weight_slices:
                assert torch.equal(place.memory, full(place.name)[place.cut].bfloat16().float())
                covered[place.name][place.cut] += 1
    assert all((count > 0).all() for count in covered.values())
    split = [
        name
        for name in covered
        if any(part in name for part in (".query.", ".up.", ".out.", ".down."))
    ]
    assert split
    assert all((covered[name] == 1).all() for name in split)  # row-split biases too: added once


def test_weights_are_drawn_by_seed_and_name_alone() -> None:
    name = "layers.1.up.weight"
    draw = make_random_weights(GPT2, 7)
    weight = draw(name)
    assert torch.equal(weight, make_random_weights(GPT2, 7)(name))
    draw("layers.0.up.weight")
    assert torch.equal(weight, draw(name))
    assert not torch.equal(weight, draw("layers.0.up.weight"))
    assert not torch.equal(weight, make_random_weights(GPT2, 8)(name))
    assert weight.std().item() == pytest.approx(list_recipes(GPT2)[name].std, rel=0.02)
    with pytest.raises(KeyError):
        draw("layers.99.up.weight")


def test_weights_have_the_same_bits_on_every_machine() -> None:
    """Golden values: records and cache files name the weights by them."""
    draw = make_random_weights(GPT2, 0)
    for name, golden in GOLDEN.items():
        assert [value.hex() for value in draw(name)[0, :2].tolist()] == golden
    assert identify_weights(GPT2, 0, torch.float32) == GOLDEN_IDENTITY


def test_identity_tells_weights_apart() -> None:
    mine = identify_weights(GPT2, 0, torch.float32)
    assert mine == identify_weights(replace(GPT2, name="another name"), 0, torch.float32)
    other_identities = [
        identify_weights(GPT2, 1, torch.float32),
        identify_weights(GPT2, 0, torch.bfloat16),
        identify_weights(replace(GPT2, layer_num=7), 0, torch.float32),
        identify_weights(OPT, 0, torch.float32),
    ]
    assert len({mine, *other_identities}) == 5
    assert all(
        len(identity) == 16 and int(identity, 16) >= 0 for identity in (mine, *other_identities)
    )


# ---- a wrong cache must show ----


def generate(model: GPT, prompts: Tensor, cache: KVCache) -> Tensor:
    """Return new tokens [B, STEPS], and fill the cache but for the last token's position."""
    tokens = [model.greedy(model.forward(prompts, cache, 0)).tokens]
    for step in range(STEPS - 1):
        tokens.append(model.greedy(model.forward(tokens[-1][:, None], cache, PROMPT + step)).tokens)
    return torch.stack(tokens, dim=1)


def generate_with_cache(spec: ModelSpec) -> tuple[GPT, KVCache, Tensor]:
    model = build(spec)
    cache = KVCache.allocate(model.kv_geometry(BATCH, PROMPT + STEPS, KVLayout.HND), torch.float32)
    prompts = torch.randint(
        spec.vocab_size, (BATCH, PROMPT), generator=torch.Generator().manual_seed(1)
    )
    return model, cache, generate(model, prompts, cache)


@each_family
def test_sequences_differ_and_do_not_echo(spec: ModelSpec) -> None:
    _, _, tokens = generate_with_cache(spec)
    assert len({tuple(row) for row in tokens.tolist()}) == BATCH
    for row in tokens:
        assert len(row.unique()) >= STEPS // 2
        assert (row[1:] == row[:-1]).float().mean() < 0.25


@each_family
def test_a_wrong_cache_shows_in_the_logits(spec: ModelSpec) -> None:
    model, cache, tokens = generate_with_cache(spec)

    def logits() -> Tensor:
        return model.forward(tokens[:, -1:], cache, PROMPT + STEPS - 1)

    right_logits = logits()
    assert torch.equal(logits(), right_logits)
    # ALiBi: a steep head sees only its neighbours, so the flattest one is asked.
    head, position = spec.kv_heads - 1, 3
    damages: dict[str, Callable[[], object]] = {
        f"{kind} of layer {layer}": damage
        for layer in range(spec.layer_num)
        for kind, damage in (
            ("one head's keys", lambda layer=layer: cache.k[layer, :, head, position].zero_()),
            ("one position's values", lambda layer=layer: cache.v[layer, :, :, position].zero_()),
            ("values", lambda layer=layer: cache.v[layer].zero_()),
        )
    }
    for problem, damage in damages.items():
        k, v = cache.k.clone(), cache.v.clone()
        damage()
        change = ((logits() - right_logits).abs().amax(1) / right_logits.std(1)).min().item()
        assert change > {"one head's keys": 1e-5, "one position's values": 1e-4}.get(
            problem.split(" of ")[0], 0.1
        ), problem
        cache.k.copy_(k)
        cache.v.copy_(v)


@each_family
def test_a_wrong_cache_shows_in_the_tokens(spec: ModelSpec) -> None:
    """Losing one layer's values of the prompt changes what is generated."""
    model, cache, right_tokens = generate_with_cache(spec)
    for layer in range(spec.layer_num):
        prompts = torch.randint(
            spec.vocab_size, (BATCH, PROMPT), generator=torch.Generator().manual_seed(1)
        )
        token = model.greedy(model.forward(prompts, cache, 0)).tokens
        cache.v[layer, :, :, :PROMPT] = 0
        tokens = [token]
        for step in range(STEPS - 1):
            tokens.append(
                model.greedy(model.forward(tokens[-1][:, None], cache, PROMPT + step)).tokens
            )
        assert not torch.equal(torch.stack(tokens, dim=1), right_tokens)
