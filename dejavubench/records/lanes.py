"""Lanes of a timeline: ``dejavubench trace`` and the NVTX ranges of ``run --nvtx`` share them.

The lanes of a chunk's parts are not here: each destination declares their names.
"""

PHASES = "phase marks"
"""Lane of the phases of an iteration."""

MODEL = "model"
"""Lane of the model's steps."""

STALL = "stall"
"""Lane of the model's waits in the library."""

LAYERS = "layers in place"
"""Lane of the layers whose keys and values are in place."""

DRAIN = "drain"
"""Title of the drain."""


def wait_title(phase: str) -> str:
    """Return the title of a wait of the model's thread in a phase: prompt, tokens or drain."""
    return f"wait in the library ({phase})"
