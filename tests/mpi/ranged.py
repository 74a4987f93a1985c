"""The command line of dejavubench with NVTX's functions watched; test_nvtx.py runs it on a GPU.

At its end each rank writes ``ranges-RANK.json``: for each thread the depth and name of its ranges.
"""

from __future__ import annotations

import atexit
import json
import threading
from pathlib import Path
from typing import Any

import torch
from injection import RANK

from dejavubench.cli import main

BEGUN: dict[str, list[tuple[int, str]]] = {}
DEPTH: dict[str, int] = {}


def watch() -> None:
    """Note every range, and call NVTX all the same."""
    nvtx: Any = torch.cuda.nvtx
    push, pop = nvtx.range_push, nvtx.range_pop

    def push_and_note(name: str) -> object:
        thread = threading.current_thread().name
        BEGUN.setdefault(thread, []).append((DEPTH.get(thread, 0), name))
        DEPTH[thread] = DEPTH.get(thread, 0) + 1
        return push(name)

    def pop_and_note() -> object:
        DEPTH[threading.current_thread().name] -= 1
        return pop()

    nvtx.range_push, nvtx.range_pop = push_and_note, pop_and_note


def write() -> None:
    assert not any(DEPTH.values()), f"ranges are open: {DEPTH}"
    Path(f"ranges-{RANK}.json").write_text(json.dumps(BEGUN))


if __name__ == "__main__":
    watch()
    atexit.register(write)
    main()
