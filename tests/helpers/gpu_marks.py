"""For tests on GPUs: skips where the machine has too few, with both numbers."""

from __future__ import annotations

import pytest
import torch

from dejavubench.units import format_count_of


def needs_gpus(count: int) -> pytest.MarkDecorator:
    """Return the mark of a test that needs ``count`` CUDA devices of this machine."""
    present_count = torch.cuda.device_count()
    return pytest.mark.skipif(
        present_count < count, reason=f"needs {format_count_of(count, 'GPU')}, here {present_count}"
    )
