"""The prompts of a point's requests: random token ids, or the prompts of a file."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import Tensor

from dejavubench.config.points import Point
from dejavubench.config.promptfile import Ids

PADDING = 0
"""A token id that no request sees."""


@dataclass(frozen=True)
class Prompts:
    """The prompts of one microbatch.

    Attributes:
        tokens: int64 [B, P], shorter prompts padded on the left.
        numbers: the requests' numbers in the run, int64 [B].
        first: first position of each prompt behind its padding, int64 [B]; None if all are of P.
    """

    tokens: Tensor
    numbers: Tensor
    first: Tensor | None = None

    @classmethod
    def of(cls, prompts: list[Ids], numbers: Tensor, input_len: int) -> Prompts:
        """Pad prompts of up to ``input_len`` tokens."""
        tokens = torch.tensor([[PADDING] * (input_len - len(ids)) + list(ids) for ids in prompts])
        first = torch.tensor([input_len - len(ids) for ids in prompts])
        # None lets the model skip the mask where no prompt is padded.
        return cls(tokens, numbers, first if first.any() else None)

    def unpadded(self) -> list[list[int]]:
        """Return each request's own token ids."""
        firsts = [0] * len(self.tokens) if self.first is None else self.first.tolist()
        return [ids[first:] for ids, first in zip(self.tokens.tolist(), firsts, strict=True)]


def make_prompts(point: Point, ubatches: int, seed: int, given: tuple[Ids, ...]) -> list[Prompts]:
    """Return the prompts of each microbatch in flight, the same on every rank.

    Args:
        given: prompts to take in order, and from the first again; without any, they are random.
    """
    size = point.ubatch_size
    numbers = torch.arange(ubatches * size).split(size)
    if given:
        requests = list(islice(cycle(given), ubatches * size))
        return [
            Prompts.of([requests[n] for n in each.tolist()], each, point.input_len)
            for each in numbers
        ]
    generator = torch.Generator().manual_seed(seed)
    shape = (ubatches * size, point.input_len)
    # One draw for all: a request asks the same however requests are grouped into microbatches.
    drawn = torch.randint(point.spec.vocab_size, shape, generator=generator)
    return [Prompts(drawn[each], each) for each in numbers]
