"""The command line that also writes its tokens, for test_split_runs.py under mpirun.

Each measured iteration on a rank that sees tokens becomes one line of ``tokens-<rank>``:
[microbatches, B, T].
"""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import torch
from mpi4py import MPI

from dejavubench.bench import rounds
from dejavubench.bench.engine.batch_maker import tokens_of
from dejavubench.bench.engine.clock import MicrobatchClock
from dejavubench.bench.scenarios import plain
from dejavubench.cli import main


def note_tokens(clocks: list[MicrobatchClock]) -> torch.Tensor:
    generated = tokens_of(clocks)
    if generated.numel():
        with Path(f"tokens-{MPI.COMM_WORLD.rank}").open("a") as file:
            file.write(json.dumps(generated.tolist()) + "\n")
    return generated


if __name__ == "__main__":
    for module in (plain, rounds):
        mock.patch.object(module, "tokens_of", note_tokens).start()
    main()
