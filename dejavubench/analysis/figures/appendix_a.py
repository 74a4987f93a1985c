"""Appendix A: the times of Fig 2, of more models and sizes."""

from __future__ import annotations

from dejavubench.analysis.figures.fig2 import Fig2
from dejavubench.analysis.figures.figure import QuickRun
from dejavubench.records import Run


class AppendixA(Fig2):
    """The rows and panels of Fig 2 under another heading."""

    name = "appendix_a"
    title = "Like Appendix A of the paper: time of a prompt and of one token, no streaming"
    quick_run = QuickRun(
        1,
        "--rounds 3 --model gpt2 --ubatch-size 1,2,4 --input-len 32,64,128 --output-len 8",
    )

    def fits(self, run: Run) -> bool:
        """Return False: the arms are those of Fig 2, so a run must name this figure."""
        return False  # its runs have the arms of Fig 2's: only --figure tells them apart


FIGURE = AppendixA()
