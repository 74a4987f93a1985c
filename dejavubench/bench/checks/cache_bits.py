"""Caches as bits, and the place of an element in the numbers of the whole model."""

from __future__ import annotations

import numpy as np
import torch

from dejavubench.bench.assignment.worker import WorkerView
from dejavubench.dejavulib.kv_cache import KV, KVGeometry, Region

_INTEGER_TYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


class VerificationError(Exception):
    """Bytes or tokens are not the ones that were sent; the message locates the first one."""


def as_integers(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same bits as integers: equal bytes compare equal, whatever number they are."""
    return tensor.view(_INTEGER_TYPES[tensor.element_size()])


def locate_element(geometry: KVGeometry, kv: KV, region: Region, element_index: int) -> int:
    """Return where in the whole K or V the element ``element_index`` of a region is."""
    # Two steps: the element's place within the region, then that place within the whole tensor.
    region_index = np.unravel_index(element_index, geometry.piece_shape(kv, region))
    starts = [
        cut.indices(size)[0]
        for cut, size in zip(geometry.index(kv, region), geometry.shape(kv), strict=True)
    ]
    index = [start + offset for start, offset in zip(starts, region_index, strict=True)]
    return int(np.ravel_multi_index(index, geometry.shape(kv)))


def describe_difference(
    worker_view: WorkerView,
    microbatch: int,
    kv: KV,
    element: int,
    is_streamed: bool,
    wrong_count: int,
) -> str:
    """Return where a cache differs, in words.

    Args:
        element: the first one that differs, counted in the whole K or V of this worker.
        is_streamed: true if it lies in a region that was streamed.
        wrong_count: number of elements of the same layer that differ.
    """
    # This worker's numbers first, then those of the whole model, which a user can look up.
    layer, request, head, position, head_element = worker_view.geometry.locate(kv, element)
    layer, head = worker_view.locate(layer, head)
    fault = (
        "is not what the source has" if is_streamed else "was written outside the streamed region"
    )
    return (
        f"layer {layer}, {kv.upper()}, request {request}, head {head}, position {position} "
        f"(element {head_element}) of microbatch {microbatch} {fault}; "
        f"{wrong_count} elements of this layer's {kv.upper()} differ"
    )
