"""Loading weights from a Hugging Face folder: each worker reads its own cuts, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dejavubench.models.dtypes import DTYPES, name_of
from dejavubench.models.gpt import GPT
from dejavubench.models.hub.checkpoint import Checkpoint
from dejavubench.models.hub.families import StoredTensor
from dejavubench.models.hub.tensor_file import CheckpointError
from dejavubench.models.worker_weights import WeightSlice

PIECE = 32 << 20
"""Bytes of a tensor that are read at once. Loading takes a few times as many beside the weights."""


def load_checkpoint(
    model: GPT, checkpoint: Checkpoint, rounded_to: torch.dtype | None = None
) -> None:
    """Fill a worker's part of the model.

    Args:
        rounded_to: a type that the weights are rounded through first; without it they are taken as
            they are kept.

    Raises:
        CheckpointError: a file changed or cannot be read since it was looked at, or a value is
            NaN or infinite, there or once it is rounded.
    """
    for weight_slice in model.weight_slices:
        stored_tensor = checkpoint.stored[weight_slice.name]
        path = checkpoint.files[stored_tensor.name]
        try:
            for rows, piece in _read_pieces(weight_slice, path, stored_tensor):
                rounded_piece = piece if rounded_to is None else piece.to(rounded_to)
                weight_slice.memory[rows].copy_(rounded_piece.to(model.dtype))
                del piece, rounded_piece
            if not _is_finite(weight_slice.memory):
                raise CheckpointError(
                    _describe_not_finite(
                        weight_slice, path, stored_tensor, [rounded_to, model.dtype]
                    )
                )
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: tensor {stored_tensor.name}: {error}") from None


class StoredSlice(Protocol):
    """A tensor of an open safetensors file, of which only what is asked for is read."""

    def get_shape(self) -> list[int]:
        """Return the shape of the whole tensor. Nothing is read for it."""

    def __getitem__(self, cut: tuple[slice, ...]) -> Tensor:
        """Read one cut of the tensor; each call reads anew."""


def _read_pieces(
    weight_slice: WeightSlice, path: Path, stored_tensor: StoredTensor
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the cut as it is kept, some rows at a time, each with its rows in the memory."""
    rows, *other_axes = weight_slice.cut
    rows_at_once = max(
        1, PIECE // (weight_slice.memory.element_size() * weight_slice.memory[0].numel())
    )
    if stored_tensor.interleaved:  # whole heads
        rows_at_once = max(1, rows_at_once // stored_tensor.interleaved) * stored_tensor.interleaved
    for begin in range(rows.start, rows.stop, rows_at_once):
        end = min(begin + rows_at_once, rows.stop)
        # Opened anew each time: what was read of a mapped file counts as this process's memory
        # while it is open.
        with safe_open(path, framework="pt", device="cpu") as file:
            yield (
                slice(begin - rows.start, end - rows.start),
                _read(file.get_slice(stored_tensor.name), stored_tensor, begin, end, other_axes),
            )


def _read(
    source: StoredSlice, stored_tensor: StoredTensor, begin: int, end: int, other_axes: list[slice]
) -> Tensor:
    """Return the rows [begin, end) of our tensor, whatever place the file keeps them in."""
    if stored_tensor.third is not None and stored_tensor.interleaved:
        size = stored_tensor.interleaved
        alternating = source[(slice(3 * begin, 3 * end), *other_axes)]
        return alternating.unflatten(0, (-1, 3, size))[:, stored_tensor.third].flatten(0, 1)
    if stored_tensor.third is not None:
        third_size = source.get_shape()[-1 if stored_tensor.is_transposed else 0] // 3
        rows = slice(
            begin + stored_tensor.third * third_size, end + stored_tensor.third * third_size
        )
    else:
        rows = slice(begin, end)
    return (
        source[(*other_axes, rows)].T
        if stored_tensor.is_transposed
        else source[(rows, *other_axes)]
    )


def _is_finite(values: Tensor) -> bool:
    """Return whether no value is NaN or infinite; takes one pass and no memory."""
    return bool(torch.isfinite(torch.stack(torch.aminmax(values))).all())


def _describe_not_finite(
    weight_slice: WeightSlice,
    path: Path,
    stored_tensor: StoredTensor,
    types: list[torch.dtype | None],
) -> str:
    """Return the message for a tensor whose loaded values are not all finite."""
    tensor_text = f"{path}: tensor {stored_tensor.name}"
    bad_count = 0
    largest_value = 0.0
    for _, piece in _read_pieces(weight_slice, path, stored_tensor):
        bad_count += int(piece.isfinite().logical_not().sum())
        if not bad_count:
            largest_value = max(largest_value, float(piece.abs().max()))
    if bad_count:
        return (
            f"{tensor_text}: {bad_count} of {weight_slice.memory.numel()} values are NaN or "
            "infinite in the file: it is damaged"
        )
    narrow_type = next(
        dtype for dtype in types if dtype is not None and largest_value > torch.finfo(dtype).max
    )
    wider_types = " or ".join(
        name for name, other in DTYPES.items() if largest_value <= torch.finfo(other).max
    )
    advice = f"choose {wider_types}" if wider_types else "no supported type holds them"
    return (
        f"{tensor_text}: its values up to {largest_value:g} do not fit in {name_of(narrow_type)}, "
        f"whose largest is {torch.finfo(narrow_type).max:g}; {advice}"
    )
