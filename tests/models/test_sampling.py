"""Drawing tokens from transformers' probabilities; batch and split make no difference."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from dejavubench.config.options.option_types import LOWEST_TEMPERATURE
from dejavubench.config.resolve import load
from dejavubench.errors import UsageError
from dejavubench.models.gpt import GPT
from dejavubench.models.hub.shard import Shard
from dejavubench.models.sampling import Sampler, draw, draw_uniform, filter_probabilities
from dejavubench.models.sampling_options import SamplingOptions
from dejavubench.models.weights import make_random_weights
from helpers.jobs import QUICK, args, run
from helpers.reference_models import GPT2, VOCAB, Gathered, build, cache_of_nan, prompts

MANY = 40_000


def random_logits(requests: int = 5) -> Tensor:
    return torch.randn(requests, VOCAB, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 7, 10 * VOCAB])
@pytest.mark.parametrize("top_p", [None, 0.05, 0.6, 0.95, 1.0])
def test_tokens_are_drawn_from_the_distribution_of_transformers(
    temperature: float, top_k: int | None, top_p: float | None
) -> None:
    logits = random_logits()
    ids = torch.zeros(5, 1, dtype=torch.long)
    expected = TemperatureLogitsWarper(temperature)(ids, logits)
    if top_k is not None:
        expected = TopKLogitsWarper(top_k)(ids, expected)
    if top_p is not None:
        expected = TopPLogitsWarper(top_p)(ids, expected)
    likely = filter_probabilities(
        logits, SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p, seed=0)
    )
    torch.testing.assert_close(likely / likely.sum(-1, keepdim=True), expected.softmax(-1))


def test_the_most_likely_token_always_stays() -> None:
    logits = random_logits()
    likely = filter_probabilities(
        logits, SamplingOptions(temperature=1.0, top_k=None, top_p=1e-46, seed=0)
    )
    assert (likely > 0).sum(-1).tolist() == [1] * 5
    for coldest in (
        SamplingOptions(temperature=LOWEST_TEMPERATURE, top_k=None, top_p=None, seed=0),
        SamplingOptions(temperature=1.0, top_k=None, top_p=1e-46, seed=0),
    ):
        assert torch.equal(draw(logits, coldest, torch.full((5,), 0.999)), logits.argmax(-1))


def require_likely_counts(counts: Tensor, expected: Tensor) -> None:
    """Assert that counts of MANY draws are within five standard deviations of their expectation."""
    spread = (MANY * expected * (1 - expected)).sqrt()
    assert ((counts - MANY * expected).abs() <= 5 * spread + 1e-6).all()


def test_tokens_come_as_often_as_they_are_likely() -> None:
    sampling = SamplingOptions(temperature=1.3, top_k=12, top_p=0.9, seed=7)
    logits = random_logits(1)
    draws = draw_uniform(seed=sampling.seed, requests=torch.arange(MANY), token_number=3)
    tokens = draw(logits.expand(MANY, -1), sampling, draws)
    likely = filter_probabilities(logits, sampling)[0]
    require_likely_counts(torch.bincount(tokens, minlength=VOCAB), likely / likely.sum())


@pytest.mark.parametrize("along", ["requests", "tokens", "seeds"])
def test_draws_are_uniform_and_independent(along: str) -> None:
    many, zero = torch.arange(MANY), torch.zeros(1, dtype=torch.long)
    if along == "requests":
        drawn = draw_uniform(seed=1, requests=many, token_number=0)
    elif along == "tokens":
        drawn = draw_uniform(seed=1, requests=zero, token_number=many)
    else:
        drawn = torch.cat(
            [draw_uniform(seed=seed, requests=zero, token_number=0) for seed in range(MANY // 10)]
        ).repeat(10)[:MANY]
    assert 0 <= drawn.min() < 0.01
    assert 0.99 < drawn.max() < 1
    if along == "seeds":
        return
    pairs = (drawn * 8).long() * 8 + (drawn.roll(1) * 8).long()
    require_likely_counts(
        torch.bincount(pairs, minlength=64), torch.full((64,), 1 / 64, dtype=torch.double)
    )


def test_a_token_of_no_probability_is_never_drawn() -> None:
    """At either end of the interval, and where the likely ones are neither first nor last."""
    logits = torch.full((2, 6), -float("inf"))
    logits[:, [2, 4]] = 0.0
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.double)
    assert draw(
        logits, SamplingOptions(temperature=1.0, top_k=None, top_p=None, seed=0), ends
    ).tolist() == [2, 4]


def sample_tokens(
    model: GPT, sampling: SamplingOptions, tokens: Tensor, request_numbers: Tensor
) -> list[list[int]]:
    cache = cache_of_nan(model, len(tokens), tokens.shape[1] + 6)
    choose = Sampler(model, sampling, request_numbers, tokens.shape[1])
    newest, chosen = tokens, []
    for position in range(tokens.shape[1], tokens.shape[1] + 6):
        logits = model.forward(newest, cache, position - newest.shape[1])
        newest = choose(logits, position).tokens[:, None]
        chosen.append(newest)
    return torch.cat(chosen, dim=1).tolist()


def test_a_request_draws_the_same_in_any_batch_and_another_by_another_seed() -> None:
    model, sampling = (
        build(GPT2, make_random_weights(GPT2, 0)),
        SamplingOptions(temperature=1.0, top_k=None, top_p=0.95, seed=5),
    )
    tokens, request_numbers = prompts(requests=4), torch.arange(4)
    together = sample_tokens(model, sampling, tokens, request_numbers)
    for number in range(4):
        one_request = slice(number, number + 1)
        assert sample_tokens(
            model, sampling, tokens[one_request], request_numbers[one_request]
        ) == [together[number]]
    assert sample_tokens(model, replace(sampling, seed=6), tokens, request_numbers) != together
    greedy = sample_tokens(model, replace(sampling, top_k=1), tokens, request_numbers)
    assert greedy != together


def test_tensor_ranks_draw_alike_from_the_whole_vocabulary() -> None:
    """Also where it does not divide evenly."""
    spec, logits, gathered = replace(GPT2, head_num=6, ffn_size=192), random_logits(), Gathered()
    for rank in range(3):
        model = GPT(
            spec, Shard(tensor_rank=rank, tensor_size=3), torch.float32, torch.float32, gathered
        )
        full_logits = model.gather_logits(logits[:, model.vocab_rows.slice])
    assert torch.equal(full_logits, logits)


def test_top_k_and_top_p_need_a_temperature() -> None:
    for flag, value in (("top_k", "5"), ("top_p", "0.9")):
        with pytest.raises(UsageError, match="needs a --temperature above 0"):
            load(None, {flag: value}, {})
    for flag, value in (
        ("temperature", "-1"),
        ("temperature", "inf"),
        ("top_k", "0"),
        ("top_p", "1.5"),
        ("top_p", "0"),
    ):
        with pytest.raises(UsageError, match=f"^--{flag.replace('_', '-')}: "):
            load(None, {"temperature": "1", flag: value}, {})
    assert load(None, {}, {}).sampling is None
    assert load(
        None, {"temperature": "0.5", "top_k": "5", "seed": "3"}, {}
    ).sampling == SamplingOptions(temperature=0.5, top_k=5, top_p=None, seed=3)


@pytest.mark.mpi
def test_a_run_draws_the_same_in_every_iteration_and_split(tmp_path: Path) -> None:
    """A run whose arms drew otherwise would fail its verification."""

    def tokens(name: str, ranks: int, *flags: object) -> list[Any]:
        quick = (*QUICK, *args("--inference-data-type fp32 --rounds 1 --warmup 1"))
        drawn = args("--temperature 1.5 --top-p 0.97 --top-k 50")
        job = run(tmp_path / name, ranks, "run", *quick, *drawn, *flags)
        return [json.loads(line) for line in (job.folder / "tokens.jsonl").read_text().splitlines()]

    full = tokens("whole", 1, "--streaming", "host,disk")
    split = tokens(
        "split", 4, "--streaming", "none", "--tensor-para-size", 2, "--pipeline-para-size", 2
    )
    assert split[: len(full)] == full
