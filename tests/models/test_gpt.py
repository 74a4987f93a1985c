"""The GPT against the Hugging Face models of its families, and its promises about the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dejavubench.dejavulib.kv_cache import KVLayout
from dejavubench.models.attention import QUERIES_PER_BLOCK, alibi_slopes
from dejavubench.models.backends.cpu.backend import find_largest
from dejavubench.models.dtypes import compute_dtype, dtype_of, name_of
from dejavubench.models.gpt import GPT
from dejavubench.models.hub.model_spec import ModelSpec
from dejavubench.models.hub.shard import Shard
from dejavubench.models.weights import make_random_weights
from helpers.reference_models import (
    BATCH,
    BLOOM,
    FAMILIES,
    GPT2,
    OPT_POST,
    PROMPT,
    STEPS,
    VOCAB,
    Gathered,
    build,
    cache_of_nan,
    prompts,
    require_close,
)

pytestmark = pytest.mark.usefixtures("one_thread")

# ---- the same model twice: ours, and Hugging Face's with ours' names ----


@pytest.mark.parametrize("layout", list(KVLayout))
@pytest.mark.parametrize("family", FAMILIES)
def test_our_model_equals_that_of_hugging_face(family: str, layout: KVLayout) -> None:
    spec, theirs, weights = FAMILIES[family]()
    ours = build(spec, weights)
    cache = cache_of_nan(ours, BATCH, PROMPT + STEPS, layout)
    tokens = prompts()
    assert (
        ours.parameter_count == spec.parameter_count == sum(p.numel() for p in theirs.parameters())
    )

    logits = ours.forward(tokens, cache, 0)
    for step in range(STEPS):
        with torch.inference_mode():
            output = theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        expected = output.logits[:, -1]
        require_close(logits, expected)
        token = ours.greedy(logits).tokens
        assert torch.equal(token, expected.argmax(-1))
        tokens = torch.cat([tokens, token[:, None]], dim=1)
        if step + 1 < STEPS:
            logits = ours.forward(token[:, None], cache, PROMPT + step)
    assert cache.keys(0, PROMPT + STEPS)[:, :, -1].isnan().all()  # the last token is never run


# ---- the cache ----

SPECS = [GPT2, BLOOM, OPT_POST]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_prompt_in_pieces_has_the_logits_and_cache_of_the_whole(spec: ModelSpec) -> None:
    """Also longer than one block of biases, and with pieces that begin in the middle."""
    length = QUERIES_PER_BLOCK + 45
    model = build(spec, make_random_weights(spec, 0))
    tokens = prompts(length=length)
    whole_cache, pieces_cache = (
        cache_of_nan(model, BATCH, length + 7),
        cache_of_nan(model, BATCH, length + 7),
    )
    expected = model.forward(tokens, whole_cache, 0)
    for start, stop in ((0, 20), (20, 21), (21, length)):
        logits = model.forward(tokens[:, start:stop], pieces_cache, start)
    require_close(logits, expected)
    for kv in ("k", "v"):
        require_close(
            pieces_cache.tensor(kv)[..., :length, :], whole_cache.tensor(kv)[..., :length, :]
        )


@pytest.mark.parametrize("layout", list(KVLayout))
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_on_layer_comes_when_keys_and_values_are_final(spec: ModelSpec, layout: KVLayout) -> None:
    model = build(spec, make_random_weights(spec, 0))
    cache = cache_of_nan(model, BATCH, PROMPT + 1, layout)
    for tokens, position in ((prompts(), 0), (prompts(length=1), PROMPT)):
        copies: dict[int, tuple[Tensor, Tensor]] = {}

        def copy_layer(layer: int, copies: dict[int, tuple[Tensor, Tensor]] = copies) -> None:
            copies[layer] = (cache.k[layer].clone(), cache.v[layer].clone())

        model.forward(tokens, cache, position, copy_layer)
        assert list(copies) == [0, 1, 2]
        for layer, (k, v) in copies.items():
            assert torch.equal(k.nan_to_num(7), cache.k[layer].nan_to_num(7))
            assert torch.equal(v.nan_to_num(7), cache.v[layer].nan_to_num(7))
        stop = position + tokens.shape[1]
        assert not cache.keys(2, stop).isnan().any()
        assert not cache.values(2, stop).isnan().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_and_cache_of_a_half_type_are_multiplied_in_fp32(dtype: torch.dtype) -> None:
    weights = make_random_weights(GPT2, 0)
    full, half = build(GPT2, weights), build(GPT2, weights, dtype=dtype)
    assert torch.equal(half.layers[0].up.weight, full.layers[0].up.weight.to(dtype))
    assert half.layers[0].up.bias is not None
    assert half.layers[0].up.bias.dtype == torch.float32
    caches = [cache_of_nan(model, BATCH, PROMPT) for model in (full, half)]
    assert caches[1].k.dtype == dtype
    assert half.kv_geometry(requests=1, positions=8, layout=KVLayout.HND).itemsize == 2
    full_logits, half_logits = (
        model.forward(prompts(), cache, 0)
        for model, cache in zip((full, half), caches, strict=True)
    )
    assert full_logits.dtype == half_logits.dtype == torch.float32
    assert not torch.equal(full_logits, half_logits)
    require_close(half_logits, full_logits, within=0.1)


def test_a_model_computes_in_bf16_where_asked() -> None:
    model = GPT(BLOOM, Shard(), torch.bfloat16, torch.bfloat16)
    model.load(make_random_weights(BLOOM, 0))
    cache = cache_of_nan(model, BATCH, PROMPT + 1)
    prompt = model.forward(prompts(), cache, 0)
    token = model.forward(prompts(length=1), cache, PROMPT)
    exact = build(BLOOM, make_random_weights(BLOOM, 0))
    exact_cache = cache_of_nan(exact, BATCH, PROMPT + 1)
    assert prompt.dtype == token.dtype == torch.bfloat16
    require_close(prompt.float(), exact.forward(prompts(), exact_cache, 0), within=0.1)
    require_close(token.float(), exact.forward(prompts(length=1), exact_cache, PROMPT), within=0.1)


def test_a_stage_does_not_change_its_input() -> None:
    stage = build(GPT2, make_random_weights(GPT2, 0), Shard(stage=1, stage_count=2))
    hidden = torch.randn(BATCH, PROMPT, GPT2.hidden)
    hidden_copy = hidden.clone()
    stage.forward(hidden, cache_of_nan(stage, BATCH, PROMPT), 0)
    assert torch.equal(hidden, hidden_copy)


# ---- splits; the collectives are tested under MPI in test_parallel.py ----


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_stages_in_a_row_compute_what_the_whole_model_does(spec: ModelSpec) -> None:
    weights = make_random_weights(spec, 3)
    full_model = build(spec, weights)
    expected = full_model.forward(prompts(), cache_of_nan(full_model, BATCH, PROMPT), 0)
    stage_output = prompts()
    for stage in range(2):
        stage_model = build(spec, weights, Shard(stage=stage, stage_count=2))
        stage_output = stage_model.forward(
            stage_output, cache_of_nan(stage_model, BATCH, PROMPT), 0
        )
    assert torch.equal(stage_output, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 255, 256, 257, 512, 1000])
def test_the_largest_is_the_first_of_equals(size: int, dtype: torch.dtype) -> None:
    logits = torch.randint(-20, 20, (50, size), generator=torch.Generator().manual_seed(size)).to(
        dtype
    )
    value, place = find_largest(logits)
    assert torch.equal(value, logits.amax(-1))
    assert place.tolist() == [row.index(max(row)) for row in logits.tolist()]


def test_greedy_takes_the_lowest_of_equals_over_all_tensor_ranks() -> None:
    logits = torch.zeros(3, VOCAB)
    logits[0, [50, 51, 99]] = 4.0  # equal on two ranks and twice on one of them
    logits[1, 100] = 1.0
    logits[2, [3, 4]] = -0.5  # below the rest, which is equal: token 0
    gathered = Gathered()
    spec = replace(GPT2, head_num=6, ffn_size=192)
    for rank in range(3):
        model = GPT(
            spec, Shard(tensor_rank=rank, tensor_size=3), torch.float32, torch.float32, gathered
        )
        tokens = model.greedy(logits[:, model.vocab_rows.slice]).tokens
    assert tokens.tolist() == logits.argmax(-1).tolist() == [50, 100, 0]
    assert tokens.dtype == torch.long


def test_shards_cover_everything_once() -> None:
    for stages, tensor_size in ((1, 1), (3, 2), (2, 4)):
        shards = [
            Shard(stage, stages, tensor_rank, tensor_size)
            for stage in range(stages)
            for tensor_rank in range(tensor_size)
        ]
        for split in (Shard.heads, Shard.ffn, Shard.vocab):
            covered = [
                i for shard in shards if shard.is_first_stage for i in range(*split(shard, GPT2))
            ]
            assert covered == list(range({"heads": 4, "ffn": 128, "vocab": VOCAB}[split.__name__]))
        layers = [
            i for shard in shards if shard.tensor_rank == 0 for i in range(*shard.layers(GPT2))
        ]
        assert layers == [0, 1, 2]
        assert (
            sum(shard.is_first_stage for shard in shards)
            == sum(shard.is_last_stage for shard in shards)
            == tensor_size
        )
    # The shards are those of torch.tensor_split.
    assert [
        Shard(stage=0, stage_count=1, tensor_rank=tensor_rank, tensor_size=4).vocab(GPT2).size
        for tensor_rank in range(4)
    ] == [26, 25, 25, 25]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shard(stage=1), "not a part of 1 stages"),
        (lambda: Shard(tensor_rank=2, tensor_size=2), "not a part of"),
        (lambda: Shard(stage_count=4).layers(GPT2), "3 layers"),
        (
            lambda: Shard(tensor_size=3).heads(GPT2),
            "4 heads of small cannot be divided evenly over 3",
        ),
        (
            lambda: Shard(tensor_size=4).ffn(replace(GPT2, ffn_size=130)),
            "130 wide, cannot be divided evenly over 4",
        ),
        (lambda: Shard(tensor_size=102).vocab(GPT2), "vocabulary of 101"),
        (lambda: GPT(GPT2, Shard(tensor_size=3), torch.float32, torch.float32), "4 heads"),
    ],
    ids=["stage", "tensor rank", "layers", "heads", "ffn", "vocabulary", "heads of a model"],
)
def test_impossible_splits_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_positions_that_do_not_fit_are_refused() -> None:
    model = build(GPT2, make_random_weights(GPT2, 0))
    with pytest.raises(ValueError, match="attends to 256 positions at most, not 257"):
        model.kv_geometry(requests=1, positions=257, layout=KVLayout.HND)
    cache = cache_of_nan(model, BATCH, PROMPT)
    model.forward(prompts(), cache, 0)
    with pytest.raises(ValueError, match=r"positions \[9, 10\) are beyond the 9"):
        model.forward(prompts(length=1), cache, PROMPT)


# ---- data types and slopes ----


def test_alibi_slopes_are_those_of_the_paper() -> None:
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    # 12 heads: the 8 above, then 4 of the series of 16, every other one.
    torch.testing.assert_close(
        alibi_slopes(12)[8:], torch.tensor([2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])
    )
    assert alibi_slopes(112).shape == (112,)


def test_a_data_type_has_one_name() -> None:
    assert [name_of(dtype_of(name)) for name in ("fp32", "bf16", "fp16")] == [
        "fp32",
        "bf16",
        "fp16",
    ]
    with pytest.raises(ValueError, match="unknown data type 'int8'"):
        dtype_of("int8")
    with pytest.raises(ValueError, match="float64"):
        name_of(torch.float64)


@pytest.mark.parametrize(
    ("native", "bf16_runs_in"), [(False, torch.float32), (True, torch.bfloat16)]
)
def test_bf16_is_computed_as_such_only_where_the_cpu_does(
    monkeypatch: pytest.MonkeyPatch, native: bool, bf16_runs_in: torch.dtype
) -> None:
    monkeypatch.setattr("dejavubench.machine.cpu.has_native_bf16", lambda: native)
    assert compute_dtype(torch.bfloat16) == bf16_runs_in
    assert compute_dtype(torch.float16) == compute_dtype(torch.float32) == torch.float32
    assert compute_dtype(torch.float16, "cuda") == torch.float16
