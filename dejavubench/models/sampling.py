"""Choosing the next token: the most likely one, or one drawn with temperature, top-k and top-p.

A draw depends only on the logits, seed, request and token number. So every iteration, batch and
split with equal logits draws the same token, and tokens can be compared as greedy ones are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dejavubench.models.gpt import GPT, ChosenTokens
from dejavubench.models.sampling_options import SamplingOptions

_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))
"""Constants of splitmix64, as int64.

Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"."""


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Return ``z`` shifted right by ``bits``, filled with zeros like an unsigned number."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = z + _STEP
    for bits, factor in _MIX:
        z = (z ^ _shift_right(z, bits)) * factor
    return z ^ _shift_right(z, 31)


def draw_uniform(seed: int, requests: Tensor, token_number: int | Tensor) -> Tensor:
    """Return a random number in [0, 1) for each request's token ``token_number``, fp64 [B].

    Args:
        requests: the requests' numbers, int64 [B].
    """
    bits = _mix(_mix(_mix(torch.full_like(requests, seed)) + requests) + token_number)
    return _shift_right(bits, 11).double() * 2.0**-53


def filter_probabilities(logits: Tensor, sampling: SamplingOptions) -> Tensor:
    """Return the probabilities that are drawn from, [B, vocabulary] in fp32, not scaled to sum 1.

    In the order of transformers' warpers: temperature, the ``top_k`` most likely, then of these
    the fewest whose probabilities reach ``top_p``. Tokens that tie with the last kept one are kept
    as well.
    """
    scores = logits.float() / sampling.temperature
    if sampling.top_k is not None:
        least_kept = scores.topk(min(sampling.top_k, scores.shape[-1])).values[:, -1:]
        scores = torch.where(scores < least_kept, float("-inf"), scores)
    probabilities = scores.softmax(-1)
    if sampling.top_p is not None:
        sorted_probabilities = probabilities.sort(dim=-1, descending=True).values
        # Above 0 in fp32, so that the first one stays.
        top_p = max(sampling.top_p, torch.finfo(sorted_probabilities.dtype).tiny)
        # More likely tokens do not reach it yet.
        is_needed = sorted_probabilities.cumsum(-1) - sorted_probabilities < top_p
        least_kept = torch.where(is_needed, sorted_probabilities, torch.inf).amin(-1, keepdim=True)
        probabilities = torch.where(probabilities < least_kept, 0.0, probabilities)
    return probabilities


def draw(logits: Tensor, sampling: SamplingOptions, draws: Tensor) -> Tensor:
    """Return the tokens [B] whose shares of [0, 1) hold the numbers ``draws`` [B]."""
    return _find_tokens(_compute_share_ends(logits, sampling), draws)


def _compute_share_ends(logits: Tensor, sampling: SamplingOptions) -> Tensor:
    """Return the end of each token's share of the interval, [B, vocabulary] in fp64."""
    return filter_probabilities(logits, sampling).double().cumsum(-1)


def _find_tokens(ends: Tensor, draws: Tensor) -> Tensor:
    tokens = torch.searchsorted(ends, draws[:, None] * ends[:, -1:], right=True)[:, 0]
    return tokens.clamp_(max=ends.shape[-1] - 1)  # shares that are NaN would give one too many


@dataclass(frozen=True)
class Sampler:
    """Chooses the tokens of one microbatch, on every tensor rank of the last stage alike.

    Attributes:
        sampling: None is greedy.
        requests: the requests' numbers in the run, int64 [B] on the model's device.
        input_len: P, the position of the first new token.
    """

    model: GPT
    sampling: SamplingOptions | None
    requests: Tensor
    input_len: int

    @torch.inference_mode()
    def __call__(self, logits: Tensor, position: int | Tensor) -> ChosenTokens:
        """Return the tokens of ``position``.

        Args:
            logits: this rank's logits of the position before, [B, vocabulary rows].
        """
        if self.sampling is None:
            return self.model.greedy(logits)
        draws = draw_uniform(self.sampling.seed, self.requests, position - self.input_len)
        ends = _compute_share_ends(self.model.gather_logits(logits), self.sampling)
        # A view of the last ends would keep all ends alive.
        return ChosenTokens(_find_tokens(ends, draws), ends[:, -1].clone())
