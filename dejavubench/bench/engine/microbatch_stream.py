"""The streaming of a microbatch as the engine sees it, and the arm that streams nothing."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from dejavubench.dejavulib.transfers import StreamStats


class MicrobatchStream(Protocol):
    """The streaming of one microbatch's cache, as the batch maker drives it: ``CacheManager``."""

    prompt: StreamStats
    tokens: StreamStats
    draining: StreamStats

    def begin(self, tokens: np.ndarray | None = None) -> None:
        """Prepare for a microbatch, outside the clock, before the prompt is submitted.

        It may block until the last microbatch's chunks are complete, and resets the counters.

        Args:
            tokens: token ids of the prompt, int64 [B, P]; None if this worker does not know
                them.

        Raises:
            StreamingError: the last microbatch does not complete, or the destination fails.
        """

    def layer_ready(self, layer: int) -> None:
        """Note that a layer of the prompt is in place; called once per layer, in order.

        The model calls it in its own thread, inside PROMPT. It hands bytes on and does not wait for
        them. On a CUDA device the layer is only launched, on torch's current stream.

        Args:
            layer: number of the layer within this worker's cache, from 0.
        """

    def step_ready(self, step: int, tokens: np.ndarray | None = None) -> None:
        """Note that a step is in place in all layers; called once per step, in order.

        The batch maker calls it in the model's thread, inside the step's clock. Below level 3 it
        blocks until all that has left is complete; at level 3 it never waits for bytes.

        Args:
            step: 0 for the prompt, else the number of the decode step.
            tokens: token ids [B] that went into a decode step; None on later stages, and for
                the prompt.

        Raises:
            StreamingError: an earlier chunk failed in the helper thread, or did not complete in
                time.
        """

    def drain(self) -> None:
        """Wait until the last byte is complete; called once, after the last step.

        The wait is DRAIN and counts towards TOTAL.

        Raises:
            StreamingError: no chunk became complete within the timeout.
        """


class NoStreaming:
    """The arm ``none``: the model runs, nothing leaves."""

    def __init__(self) -> None:
        self.begin()

    def begin(self, tokens: np.ndarray | None = None) -> None:
        """Reset the counters, which stay at zero."""
        self.prompt = StreamStats()
        self.tokens = StreamStats()
        self.draining = StreamStats()

    def layer_ready(self, layer: int) -> None:
        """Do nothing: no layer leaves."""

    def step_ready(self, step: int, tokens: np.ndarray | None = None) -> None:
        """Do nothing: no step leaves."""

    def drain(self) -> None:
        """Return at once: nothing is under way."""
