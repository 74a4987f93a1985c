"""The model on a CUDA device gives the CPU's numbers; a captured step serves every position."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dejavubench.bench.engine.prompts import Prompts
from dejavubench.bench.engine.steps import make_steps
from dejavubench.dejavulib.kv_cache import KVCache, KVLayout, Span
from dejavubench.models.gpt import GPT
from dejavubench.models.hub.model_spec import ModelSpec, RopeSpec
from dejavubench.models.hub.shard import Shard
from dejavubench.models.sampling import Sampler
from dejavubench.models.sampling_options import SamplingOptions
from dejavubench.models.weights import make_random_weights
from helpers.gpu_marks import needs_gpus

pytestmark = [
    pytest.mark.gpu,
    needs_gpus(1),
]

BATCH, PROMPT, STEPS = 3, 37, 12

GPT2 = ModelSpec(
    "small-gpt2",
    layer_num=3,
    head_num=4,
    size_per_head=64,
    vocab_size=1003,
    context=128,
    ffn_size=1024,
)
OPT = ModelSpec(
    "small-opt",
    layer_num=3,
    head_num=4,
    size_per_head=64,
    vocab_size=1003,
    context=128,
    ffn_size=1024,
    position_offset=2,
    activation="relu",
)
SPECS = {
    "gpt2": GPT2,
    "narrow-heads": ModelSpec(
        "narrow-heads",
        layer_num=3,
        head_num=4,
        size_per_head=32,
        vocab_size=1003,
        context=128,
        ffn_size=512,
    ),
    "opt": OPT,
    "opt-post-norm": replace(OPT, norm_first=False, embed_size=128),
    "llama": replace(
        GPT2,
        position="rope",
        rope=RopeSpec(),
        activation="silu",
        kv_head_num=2,
        width=96,
        rms=True,
        gated=True,
        qkv_bias=False,
        bias=False,
        qk_norm=True,
        tied=False,
    ),
    "bloom": replace(GPT2, context=None, position="alibi", embed_norm=True),
}


def build(spec: ModelSpec, dtype: torch.dtype) -> GPT:
    model = GPT(spec, Shard(), dtype, dtype, device="cuda")
    model.load(make_random_weights(spec, 0))  # the CPU's values
    return model


def prompt(spec: ModelSpec) -> torch.Tensor:
    return torch.randint(
        spec.vocab_size, (BATCH, PROMPT), generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("layout", list(KVLayout))
@pytest.mark.parametrize("family", SPECS)
def test_the_prompt_gives_what_the_cpu_gives(family: str, layout: KVLayout) -> None:
    spec, tokens = SPECS[family], prompt(SPECS[family])
    theirs = GPT(spec, Shard(), torch.float32, torch.float32)
    theirs.load(make_random_weights(spec, 0))
    ours = build(spec, torch.float32)
    logits, caches = [], []
    for model, device in ((theirs, "cpu"), (ours, "cuda")):
        cache = KVCache.allocate(
            model.kv_geometry(requests=BATCH, positions=64, layout=layout), torch.float32, device
        )
        logits.append(model.forward(tokens.to(device), cache, 0).cpu())
        caches.append(cache.k.cpu())
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(caches[1], caches[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", list(KVLayout))
@pytest.mark.parametrize("family", SPECS)
def test_a_step_at_a_position_on_the_device_gives_what_one_from_the_host_gives(
    family: str, layout: KVLayout, dtype: torch.dtype
) -> None:
    spec = SPECS[family]
    model = build(spec, dtype)
    caches = [
        KVCache.allocate(
            model.kv_geometry(requests=BATCH, positions=64, layout=layout), dtype, "cuda"
        )
        for _ in range(2)
    ]
    for cache in caches:
        tokens = model.greedy(model.forward(prompt(spec).cuda(), cache, 0)).tokens.unsqueeze(1)
    for step in range(STEPS):
        eager = model.forward(tokens, caches[0], PROMPT + step)
        captured = model.forward(tokens, caches[1], torch.tensor([PROMPT + step], device="cuda"))
        spread = eager.float().std()
        assert (eager.float() - captured.float()).abs().max() < 0.1 * spread
        tokens = model.greedy(eager).tokens.unsqueeze(1)
    error = (caches[0].v.float() - caches[1].v.float()).abs().max()
    assert error < 0.05 * caches[0].v.float().std() + 0.02
    assert not caches[1].v.isnan().any()


@pytest.mark.parametrize("layout", list(KVLayout))
@pytest.mark.parametrize("family", SPECS)
def test_replays_give_the_tokens_of_single_steps_whatever_was_captured_over(
    family: str, layout: KVLayout
) -> None:
    spec, dtype = SPECS[family], torch.float16
    model = build(spec, dtype)
    geometry = model.kv_geometry(requests=BATCH, positions=64, layout=layout)
    cache, stepped_cache = (KVCache.allocate(geometry, dtype, "cuda") for _ in range(2))
    steps = make_steps(model, [cache], [Prompts(prompt(spec), torch.arange(BATCH))], None)
    cache.fill(0x11)
    generated = []
    assert steps.runs_ahead
    for step in range(STEPS):
        steps.run(
            0, prompt(spec) if step == 0 else torch.empty(0), PROMPT + step - 1 if step else 0, None
        )
        torch.cuda.synchronize()  # the next step is over before the last one's tokens are read
        if step:
            generated.append(steps.wait(0))
    generated.append(steps.wait(0))
    assert len(steps.take_event_ms(0)) == STEPS
    assert not steps.take_event_ms(0)
    tokens = model.greedy(model.forward(prompt(spec).cuda(), stepped_cache, 0)).tokens
    for step in range(STEPS):
        assert torch.equal(generated[step], tokens.cpu()), step
        tokens = model.greedy(
            model.forward(
                tokens.unsqueeze(1), stepped_cache, torch.tensor([PROMPT + step], device="cuda")
            )
        ).tokens
    written = geometry.index("v", geometry.region(positions=Span(0, PROMPT + STEPS - 1)))
    assert torch.equal(cache.v[written], stepped_cache.v[written])


def test_replays_draw_the_tokens_that_single_steps_draw() -> None:
    spec, sampling = SPECS["gpt2"], SamplingOptions(temperature=1.2, top_k=40, top_p=0.9, seed=3)
    model = build(spec, torch.float16)
    geometry = model.kv_geometry(requests=BATCH, positions=64, layout=KVLayout.HND)
    cache, stepped_cache = (KVCache.allocate(geometry, torch.float16, "cuda") for _ in range(2))
    request_numbers = torch.arange(BATCH)
    steps = make_steps(model, [cache], [Prompts(prompt(spec), request_numbers)], sampling)
    choose = Sampler(model, sampling, request_numbers.cuda(), PROMPT)
    tokens = prompt(spec).cuda()
    for step in range(STEPS):
        position = PROMPT + step
        steps.run(
            0, prompt(spec) if step == 0 else torch.empty(0), position - 1 if step else 0, None
        )
        tokens = choose(
            model.forward(
                tokens, stepped_cache, torch.tensor([position - 1], device="cuda") if step else 0
            ),
            position,
        ).tokens[:, None]
        assert torch.equal(steps.wait(0), tokens[:, 0].cpu()), step


@pytest.mark.parametrize("keeps_all_checks", [False, True])
@pytest.mark.parametrize(
    "sampling", [None, SamplingOptions(temperature=1.2, top_k=40, top_p=0.9, seed=3)]
)
def test_checks_tell_of_logits_that_are_no_numbers(
    sampling: SamplingOptions | None, keeps_all_checks: bool
) -> None:
    """Of the prompt's and the last step; of every step if all are kept, also of an earlier one."""
    spec = SPECS["llama"]  # whose head is not the embedding as well
    model = build(spec, torch.float16)
    cache = KVCache.allocate(
        model.kv_geometry(requests=BATCH, positions=64, layout=KVLayout.HND), torch.float16, "cuda"
    )
    steps = make_steps(model, [cache], [Prompts(prompt(spec), torch.arange(BATCH))], sampling)
    steps.keeps_all_checks = keeps_all_checks
    assert model.output_head is not None
    weight = model.output_head.linear.weight

    def run(spoilt: int | None) -> dict[int, bool]:
        for step in range(STEPS):
            weight_value = weight[7, 7].clone()
            if step == spoilt:
                weight[7, 7] = torch.nan
            position = PROMPT + step
            steps.run(
                0, prompt(spec) if step == 0 else torch.empty(0), position - 1 if step else 0, None
            )
            torch.cuda.synchronize()
            weight[7, 7] = weight_value
            steps.wait(0)
        is_finite = {
            position - PROMPT: bool(values.isfinite().all())
            for position, values in steps.take_checks(0)
        }
        assert steps.take_checks(0) == []
        return is_finite

    checked_steps = range(STEPS) if keeps_all_checks else (0, STEPS - 1)
    assert run(None) == dict.fromkeys(checked_steps, True)
    for spoilt in (0, STEPS // 2, STEPS - 1):
        assert run(spoilt) == {step: step != spoilt for step in checked_steps}


def test_weights_are_drawn_on_the_device_in_their_type_and_cut_alike_for_every_split() -> None:
    full = make_random_weights(GPT2, 3, "cuda", torch.float16)
    weight = full("layers.0.up.weight")
    assert weight.is_cuda
    assert weight.dtype == torch.float16
    assert torch.equal(
        weight, make_random_weights(GPT2, 3, "cuda", torch.float16)("layers.0.up.weight")
    )
    assert 0.9 < float(weight.float().std()) * GPT2.hidden**0.5 < 1.1
    half = GPT(
        GPT2, Shard(tensor_rank=1, tensor_size=2), torch.float16, torch.float16, device="cuda"
    )
    half.load(full)
    assert torch.equal(half.layers[0].up.weight, weight[GPT2.ffn_size // 2 :])
