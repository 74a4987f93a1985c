"""For tests of GPUs on a machine without one: the GPU that they pretend to have."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

import pytest

from dejavubench.machine.gpu import CudaDevice

H200 = CudaDevice("NVIDIA H200", 150_754_820_096, "GPU-00000000-0000-0000-0000-000000000001")


def refuse_question() -> NoReturn:
    """Stand in for a question to the machine that must not be asked."""
    raise AssertionError("the machine was asked")


def pretend_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that cupy is installed, for those who only look whether it is."""
    cupy = ModuleType("cupy")
    cupy.__spec__ = ModuleSpec("cupy", None)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
