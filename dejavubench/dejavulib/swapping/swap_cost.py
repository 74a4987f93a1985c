"""The cost of swapping."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class SwapCost:
    """Cost of swapping.

    Attributes:
        nbytes: keys and values that were brought back.
        bring_s: seconds of fetching and scattering them, beside the model.
        wait_s: seconds that the model waited for caches to be in place, in drained microbatches.
    """

    nbytes: int = 0
    bring_s: float = 0.0
    wait_s: float = 0.0
