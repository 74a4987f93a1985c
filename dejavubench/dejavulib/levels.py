"""The optimisation levels of DéjàVuLib (``DEJAVULIB_BASELINE``). They differ in switches alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    """One step of the paper's Figure 7 (DéjàVu, ICML 2024).

    Attributes:
        name: ``0``, ``0-batched``, ``1``, ``2`` or ``3``.
        label: the paper's label.
        buffered: a region is gathered into one staging buffer and moved by one transfer. Off: each
            extent is a copy or message of its own.
        layerwise: in the prompt phase each layer is streamed as soon as it is computed.
        overlapped: nothing waits until the end of the request. Off: the prompt phase, and each
            token step, end when their own streaming is complete.
        each_complete: without buffers: an extent is complete before the next one begins. Off: all
            extents are issued, then one wait.
    """

    name: str
    label: str
    buffered: bool
    layerwise: bool
    overlapped: bool
    each_complete: bool = False


LEVELS: dict[str, Level] = {
    level.name: level
    for level in (
        Level(
            "0",
            "Naive streaming",
            buffered=False,
            layerwise=False,
            overlapped=False,
            each_complete=True,
        ),
        # Not in the paper: it tells what the waits cost from what the extents cost.
        Level(
            "0-batched",
            "Naive, one wait per step",
            buffered=False,
            layerwise=False,
            overlapped=False,
        ),
        Level("1", "+ buffered copies", buffered=True, layerwise=False, overlapped=False),
        Level("2", "+ layer-by-layer streaming", buffered=True, layerwise=True, overlapped=False),
        Level("3", "DéjàVu (all)", buffered=True, layerwise=True, overlapped=True),
    )
}
"""The levels by name, in ascending order."""

DEFAULT_LEVEL = "3"
"""The level with all optimisations."""
