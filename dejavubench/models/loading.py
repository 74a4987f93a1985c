"""Weights out of a Hugging Face folder: each worker reads its own cuts of the tensors, piece by piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dejavubench.checkpoint import Checkpoint
from dejavubench.families import Stored
from dejavubench.models.gpt import GPT, Slot
from dejavubench.tensorfile import CheckpointError

PIECE = 32 << 20
"""Bytes of a tensor that are read at once: what loading takes beside the weights themselves, a few times."""


def load_checkpoint(model: GPT, checkpoint: Checkpoint, held_in: torch.dtype | None = None) -> None:
    """Fill a worker's part of the model.

    Args:
        held_in: a type that the weights are rounded through first; without it they are taken as they are kept.

    Raises:
        CheckpointError: a file changed or cannot be read since it was looked at.
    """
    for slot in model.slots:
        stored = checkpoint.stored[slot.name]
        path = checkpoint.files[stored.name]
        try:
            _fill(slot, path, stored, model.dtype, held_in)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: tensor {stored.name}: {error}") from None


def _fill(slot: Slot, path: Path, stored: Stored, dtype: torch.dtype, held_in: torch.dtype | None) -> None:
    rows, *columns = slot.cut
    step = max(1, PIECE // (slot.into.element_size() * slot.into[0].numel()))
    if stored.interleaved:  # whole heads
        step = max(1, step // stored.interleaved) * stored.interleaved
    for first in range(rows.start, rows.stop, step):
        last = min(first + step, rows.stop)
        # opened anew each time: what was read of a mapped file counts as this process's memory while it is open
        with safe_open(path, framework="pt", device="cpu") as file:
            piece = _read(file.get_slice(stored.name), stored, first, last, columns)
            piece = piece if held_in is None else piece.to(held_in)
            slot.into[first - rows.start : last - rows.start].copy_(piece.to(dtype))
            del piece


def _read(kept: Any, stored: Stored, first: int, last: int, columns: list[slice]) -> Tensor:
    """Rows [first, last) of our tensor."""
    if stored.part is not None and stored.interleaved:
        size = stored.interleaved
        theirs = kept[(slice(3 * first, 3 * last), *columns)]
        return theirs.unflatten(0, (-1, 3, size))[:, stored.part].flatten(0, 1)
    if stored.part is not None:
        third = kept.get_shape()[-1 if stored.transposed else 0] // 3
        first, last = (at + stored.part * third for at in (first, last))
    rows = slice(first, last)
    return kept[(*columns, rows)].T if stored.transposed else kept[(rows, *columns)]
