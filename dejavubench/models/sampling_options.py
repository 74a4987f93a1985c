"""How tokens are drawn, as data; torch is not needed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingOptions:
    """The options of drawing tokens. Without them the most likely token is chosen.

    Attributes:
        temperature: divides the logits; above 0.
        top_k: number of most likely tokens that are kept; None keeps all.
        top_p: the fewest most likely tokens whose probabilities reach this sum are kept, in (0,
            1]; None keeps all.
        seed: seed of the random numbers.
    """

    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int
