"""This machine's CPU: its name, and its instruction sets by Linux's names."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path

from dejavubench.errors import UsageError

CPUINFO = Path("/proc/cpuinfo")
"""The kernel's description of the processors."""

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
"""The x86 extensions that multiply bf16. Plain AVX-512 only emulates it."""

WITHOUT_VARIABLE = "DEJAVUBENCH_WITHOUT"
"""Environment variable, for tests: CPU features to do without, as ``amx,bf16``."""

FEATURES: dict[str, Callable[[str], bool]] = {
    "amx": lambda flag: flag.startswith("amx"),
    "bf16": BF16_FLAGS.__contains__,
    # AMX comes only with AVX-512, so it is left out as well.
    "avx512": lambda flag: flag.startswith(("avx512", "amx")),
}
"""Features that :data:`WITHOUT_VARIABLE` may name, and a test for their flags."""


def parse_cpu_flags(cpuinfo: str) -> frozenset[str]:
    """Return the instruction sets in the text of ``/proc/cpuinfo``; none on other than x86."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def list_features_left_out() -> tuple[str, ...]:
    """Return the features that :data:`WITHOUT_VARIABLE` takes away.

    Raises:
        UsageError: the variable names something else.
    """
    named_features = tuple(
        word.strip() for word in os.environ.get(WITHOUT_VARIABLE, "").split(",") if word.strip()
    )
    for word in named_features:
        if word not in FEATURES:
            raise UsageError(
                f"{WITHOUT_VARIABLE}={word}: unknown feature; name {', '.join(FEATURES)}"
            )
    return named_features


@cache
def read_cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Return the CPU's instruction sets, less those of :func:`list_features_left_out`."""
    tests = [FEATURES[name] for name in list_features_left_out()]
    try:
        flags = parse_cpu_flags(cpuinfo.read_text())
    except OSError:
        return frozenset()
    return frozenset(flag for flag in flags if not any(leaves_out(flag) for leaves_out in tests))


def has_native_bf16(cpuinfo: Path = CPUINFO) -> bool:
    """Return True if this CPU computes in bf16; False without ``/proc/cpuinfo``."""
    return not BF16_FLAGS.isdisjoint(read_cpu_flags(cpuinfo))


def read_cpu_model() -> str:
    """Return the processor's name as the kernel gives it."""
    for line in CPUINFO.read_text().splitlines() if CPUINFO.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
