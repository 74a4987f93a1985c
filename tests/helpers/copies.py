"""Strided copies without a device: what one does, and what CUDA accepts."""

from __future__ import annotations

import numpy as np

from dejavubench.dejavulib.boxes import BoxCopy


def emulate_copy(
    copy: BoxCopy, source: np.ndarray, target: np.ndarray, written: np.ndarray
) -> None:
    """Do a copy row by row; ``written`` counts how often each byte of the target is."""
    for piece in range(copy.slices.number):
        for row in range(copy.rows.number):
            begin = copy.source + piece * copy.slices.source + row * copy.rows.source
            place = copy.target + piece * copy.slices.target + row * copy.rows.target
            target[place : place + copy.width] = source[begin : begin + copy.width]
            written[place : place + copy.width] += 1


def is_accepted_by_cuda(copy: BoxCopy) -> bool:
    """Return whether rows do not overlap and slices are whole rows apart."""
    sides = [(copy.rows.source, copy.slices.source), (copy.rows.target, copy.slices.target)]
    return all(
        pitch >= copy.width and apart % pitch == 0 and apart >= copy.rows.number * pitch
        for pitch, apart in sides
    )
