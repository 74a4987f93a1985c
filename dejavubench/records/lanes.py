"""Lanes of a timeline: ``dejavubench trace`` and the NVTX ranges of ``run --nvtx`` share them.

The lanes of a chunk's parts are not here: each destination declares their names.
"""

PHASES = "phase marks"
MODEL = "model"
STALL = "stall"
LAYERS = "layers in place"
"""Lanes of a trace, also named in the ranges of profilers."""

DRAIN = "drain"
"""Title of the drain."""


def wait_title(phase: str) -> str:
    """Return the title of a wait of the model's thread in a phase: prompt, tokens or drain."""
    return f"wait in the library ({phase})"
