"""The prompts of a point's requests: random token ids, or the prompts of a file."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import Tensor

from dejavubench.config.points import Point
from dejavubench.config.prompt_file import Ids

PADDING_ID = 0
"""A token id that no request sees."""


@dataclass(frozen=True)
class Prompts:
    """The prompts of one microbatch.

    Attributes:
        tokens: int64 [B, P], shorter prompts padded on the left.
        request_numbers: the requests' numbers in the run, int64 [B].
        prompt_start: first position of each prompt behind its padding, int64 [B]; None if all have
            P tokens.
    """

    tokens: Tensor
    request_numbers: Tensor
    prompt_start: Tensor | None = None

    @classmethod
    def pad(cls, prompts: list[Ids], request_numbers: Tensor, input_len: int) -> Prompts:
        """Pad prompts of up to ``input_len`` tokens."""
        # On the left, so that the last prompt token, whose logits choose the first new one, has the
        # same position in every request.
        tokens = torch.tensor(
            [[PADDING_ID] * (input_len - len(ids)) + list(ids) for ids in prompts]
        )
        prompt_start = torch.tensor([input_len - len(ids) for ids in prompts])
        # None lets the model skip the mask where no prompt is padded.
        return cls(tokens, request_numbers, prompt_start if prompt_start.any() else None)

    def without_padding(self) -> list[list[int]]:
        """Return each request's own token ids."""
        starts = [0] * len(self.tokens) if self.prompt_start is None else self.prompt_start.tolist()
        return [ids[start:] for ids, start in zip(self.tokens.tolist(), starts, strict=True)]


def make_prompts(
    point: Point, microbatch_count: int, seed: int, plan_prompts: tuple[Ids, ...]
) -> list[Prompts]:
    """Return the prompts of each microbatch in flight, the same on every rank.

    Args:
        plan_prompts: taken in order, and from the first again; without any, prompts are random.
    """
    ubatch_size = point.ubatch_size
    by_microbatch = torch.arange(microbatch_count * ubatch_size).split(ubatch_size)
    if plan_prompts:
        requests = list(islice(cycle(plan_prompts), microbatch_count * ubatch_size))
        return [
            Prompts.pad(
                [requests[n] for n in request_numbers.tolist()], request_numbers, point.input_len
            )
            for request_numbers in by_microbatch
        ]
    generator = torch.Generator().manual_seed(seed)
    shape = (microbatch_count * ubatch_size, point.input_len)
    # One draw for all: a request asks the same however requests are grouped into microbatches.
    drawn_tokens = torch.randint(point.spec.vocab_size, shape, generator=generator)
    return [
        Prompts(drawn_tokens[request_numbers], request_numbers) for request_numbers in by_microbatch
    ]
