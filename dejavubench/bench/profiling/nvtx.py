"""NVTX ranges, which Nsight Systems and other profilers of CUDA show beside kernels and copies.

A class or its ranged kind is chosen once, at the start. Without --nvtx the plain class runs, and no
loop asks whether ranges are wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

import torch

from dejavubench.config.experiment import Experiment
from dejavubench.dejavulib.ranged_streamer import Ranges

ArgumentsT = ParamSpec("ArgumentsT")
"""The arguments of a class. A ranged kind that takes others is an error of types."""

ResultT = TypeVar("ResultT", covariant=True)


class NvtxRanges:
    """NVTX's stack of ranges, one per thread."""

    def push(self, name: str) -> None:
        """Begin an NVTX range in this thread."""
        torch.cuda.nvtx.range_push(name)

    def pop(self) -> None:
        """End this thread's newest NVTX range."""
        torch.cuda.nvtx.range_pop()


def choose_ranged_maker(
    experiment: Experiment,
    make_plain: Callable[ArgumentsT, ResultT],
    make_ranged: Callable[Concatenate[Ranges, ArgumentsT], ResultT],
) -> Callable[ArgumentsT, ResultT]:
    """Return the maker of a run's objects: the plain one, or with --nvtx the ranged one.

    Args:
        make_plain: such as ``Streamer``.
        make_ranged: such as ``RangedStreamer``: takes its ranges first, then the same arguments.
    """
    return partial(make_ranged, NvtxRanges()) if experiment.nvtx else make_plain
