"""The command line of dejavubench that also writes its tokens; test_run.py runs it under mpirun.

Each measured iteration on a rank that sees tokens becomes one line of ``tokens-<rank>``:
[microbatches, B, T].
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from mpi4py import MPI

from dejavubench.bench import point
from dejavubench.bench.batchmaker import Clocked
from dejavubench.cli import main

original = point.tokens


def tokens(clocks: list[Clocked]) -> torch.Tensor:
    generated = original(clocks)
    if generated.numel():
        with Path(f"tokens-{MPI.COMM_WORLD.rank}").open("a") as file:
            file.write(json.dumps(generated.tolist()) + "\n")
    return generated


if __name__ == "__main__":
    point.tokens = tokens
    main()
