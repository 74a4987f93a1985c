"""Names of the figures that a run can be made for, as ``figure`` in ``run.json`` spells them.

They are data here because options must know them, and options know nothing of analysis. The module
``dejavubench.analysis.figures.<name>`` has the figure itself.
"""

from __future__ import annotations

from typing import Literal, get_args

FigureName = Literal["fig2", "appendix_a", "heat_map", "fig7", "fig25", "tails", "link"]
"""Names of figures, which files and ``run.json`` hold."""

FIGURES: tuple[FigureName, ...] = get_args(FigureName)
"""The names, in the order of help texts."""
