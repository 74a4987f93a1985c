"""For tests on GPUs: skips where the machine has too few, with both numbers."""

from __future__ import annotations

import pytest
import torch

from dejavubench.units import format_count_of
from helpers.jobs import args


def needs_gpus(count: int) -> pytest.MarkDecorator:
    """Return the mark of a test that needs ``count`` CUDA devices of this machine."""
    present_count = torch.cuda.device_count()
    return pytest.mark.skipif(
        present_count < count, reason=f"needs {format_count_of(count, 'GPU')}, here {present_count}"
    )


SINKS_OF_ANOTHER_SETUP = [
    pytest.param(
        3,
        args("--tensor-para-size 2 --sink-tensor-para-size 1"),
        marks=needs_gpus(3),
        id="heads-to-one",
    ),
    pytest.param(
        4,
        args(
            "--pipeline-para-size 2 --sink-pipeline-para-size 1 --sink-tensor-para-size 2 "
            "--sink-ubatch-size 4"
        ),
        marks=needs_gpus(4),
        id="stages-to-heads",
    ),
]
"""Ranks and flags of sinks that are not set up as their sources are, each rank on its own GPU."""
