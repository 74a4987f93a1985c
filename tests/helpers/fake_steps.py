"""For tests of the clock and of what surrounds a model's steps: steps that compute nothing."""

from __future__ import annotations

import torch


class EmptySteps:
    """Steps of a request from its prompt on, with neither times of a device nor logits to check.

    A test adds ``run`` and ``wait``.
    """

    runs_ahead = False
    keeps_all_checks = False

    def prepare_decode(self, microbatch: int, position: int, tokens: torch.Tensor | None) -> None:
        raise AssertionError("no request begins in the middle")

    def event_ms(self, microbatch: int) -> list[float]:
        return []

    def checks(self, microbatch: int) -> list[tuple[int, torch.Tensor]]:
        return []
