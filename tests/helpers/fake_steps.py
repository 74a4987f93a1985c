"""For tests of the clock and of what surrounds a model's steps: steps that compute nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import torch

from dejavubench.models.gpt import GPT
from dejavubench.parallel.collectives import Collectives


def model_of_one_stage(layers: int = 0) -> GPT:
    """Return what a batch maker reads of a whole model, which cannot compute."""
    facts = SimpleNamespace(
        is_first_stage=True, is_last_stage=True, dtype=torch.float16, layers=range(layers)
    )
    return cast(GPT, facts)


def collectives_of_one_rank() -> Collectives:
    """Return the collectives of a rank that is alone: nothing is sent."""
    return cast(Collectives, SimpleNamespace(finish=lambda: None))


class EmptySteps:
    """Steps of a request from its prompt on, with neither times of a device nor logits to check.

    A test adds ``run`` and ``wait``.
    """

    runs_ahead = False
    keeps_all_checks = False

    def prepare_decode(self, microbatch: int, position: int, tokens: torch.Tensor | None) -> None:
        raise AssertionError("no request begins in the middle")

    def take_event_ms(self, microbatch: int) -> list[float]:
        return []

    def take_checks(self, microbatch: int) -> list[tuple[int, torch.Tensor]]:
        return []
