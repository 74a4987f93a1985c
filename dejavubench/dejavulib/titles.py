"""Titles of layers, decode steps and chunks: one wording for timelines and profilers.

Importing this loads neither torch nor MPI.
"""

from __future__ import annotations

PROMPT = "prompt"
"""Title of the prompt's step."""


def format_layer_title(layer: int) -> str:
    """Return the title of a layer of the prompt."""
    return f"layer {layer}"


def format_step_title(step: int) -> str:
    """Return the title of a step: 0 is the prompt, n the n-th decode step."""
    return f"token {step}" if step else PROMPT


def format_chunk_title(step: int, layer: int | None) -> str:
    """Return the title of a chunk.

    Args:
        step: the step at whose end it leaves.
        layer: its first layer; None if it has all layers of the worker.
    """
    if step:
        return format_step_title(step) + ("" if layer is None else f", {format_layer_title(layer)}")
    return PROMPT if layer is None else format_layer_title(layer)
