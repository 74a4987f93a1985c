"""What the requests of a point ask: random token ids, or a file's prompts."""

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
    """One microbatch's requests.

    Attributes:
        tokens: int64 [B, P], shorter prompts padded on the left.
        numbers: the requests' numbers in the run, int64 [B].
        first: where prompts are of unequal lengths, each one's first position that is no padding, int64 [B].
    """

    tokens: Tensor
    numbers: Tensor
    first: Tensor | None = None

    @classmethod
    def of(cls, prompts: list[Ids], numbers: Tensor, input_len: int) -> Prompts:
        """Prompts of up to ``input_len`` tokens."""
        tokens = torch.tensor([[PADDING] * (input_len - len(ids)) + list(ids) for ids in prompts])
        first = torch.tensor([input_len - len(ids) for ids in prompts])
        return cls(tokens, numbers, first if first.any() else None)

    def unpadded(self) -> list[list[int]]:
        """Each request's own token ids."""
        firsts = [0] * len(self.tokens) if self.first is None else self.first.tolist()
        return [ids[first:] for ids, first in zip(self.tokens.tolist(), firsts, strict=True)]


def make_prompts(point: Point, ubatches: int, seed: int, given: tuple[Ids, ...]) -> list[Prompts]:
    """Those of each microbatch in flight, the same on every rank: ``given`` ones in order, else random ones."""
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
    drawn = torch.randint(
        point.spec.vocab_size, shape, generator=generator
    )  # the same however they are grouped
    return [Prompts(drawn[each], each) for each in numbers]
