"""NVTX ranges, which Nsight Systems and other profilers of CUDA show beside kernels and copies.

The functions here choose once, at the start, between a class and its ranged kind. Without --nvtx
the plain class runs, and no loop asks whether ranges are wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from dejavubench.bench.engine.batchmaker import BatchMaker
from dejavubench.bench.profiling.rangedmaker import RangedBatchMaker
from dejavubench.bench.profiling.rangedrecorder import RangedRecorder
from dejavubench.bench.recording.recorder import Recorder
from dejavubench.config.experiment import Experiment
from dejavubench.dejavulib.rangedstreamer import RangedStreamer
from dejavubench.dejavulib.streamer import Streamer


class NvtxRanges:
    """NVTX's stack of ranges, one per thread."""

    def push(self, name: str) -> None:
        torch.cuda.nvtx.range_push(name)

    def pop(self) -> None:
        torch.cuda.nvtx.range_pop()


def recorder_class(experiment: Experiment) -> Callable[..., Recorder]:
    """Return the class of recorders for a run, or its ranged kind."""
    return partial(RangedRecorder, ranges=NvtxRanges()) if experiment.nvtx else Recorder


def batch_maker_class(experiment: Experiment) -> Callable[..., BatchMaker]:
    """Return the class of batch makers for a run, or its ranged kind."""
    return partial(RangedBatchMaker, ranges=NvtxRanges()) if experiment.nvtx else BatchMaker


def streamer_class(experiment: Experiment) -> Callable[..., Streamer]:
    """Return the class of streamers for a run, or its ranged kind."""
    return partial(RangedStreamer, ranges=NvtxRanges()) if experiment.nvtx else Streamer
