"""For tests of the library: caches with known contents, and references that share no code."""

from __future__ import annotations

from math import prod
from typing import Protocol

import numpy as np
import torch
from hypothesis import strategies as st

from dejavubench.dejavulib.kv_cache import BOTH, KV, KVCache, KVGeometry, KVLayout, Region, Span
from dejavubench.dejavulib.schedule import StreamSchedule

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def logical_shape(geometry: KVGeometry) -> tuple[int, int, int, int, int]:
    """Return [L, B, H, S, D], which is no layout's order of axes but that of meaning."""
    return (
        geometry.layers,
        geometry.requests,
        geometry.heads,
        geometry.positions,
        geometry.head_size,
    )


def logical_ids(geometry: KVGeometry, kv: KV) -> np.ndarray:
    """Return the K or V tensor in which each element holds its number in [L, B, H, S, D]."""
    sizes = logical_shape(geometry)
    ids = np.arange(prod(sizes)).reshape(sizes)
    if geometry.layout is KVLayout.NHD:
        return np.ascontiguousarray(ids.transpose(0, 1, 3, 2, 4))
    if geometry.layout is KVLayout.FT and kv == "k":
        vector_size = 16 // geometry.itemsize
        return np.ascontiguousarray(
            ids.reshape(*sizes[:4], -1, vector_size).transpose(0, 1, 2, 4, 3, 5)
        )
    return ids


def inside(geometry: KVGeometry, kv: KV, region: Region) -> np.ndarray:
    """Return a mask of the elements of the K or V tensor that belong to a region."""
    sizes = logical_shape(geometry)
    places = np.unravel_index(logical_ids(geometry, kv), sizes)
    limits = (region.layers, region.requests, region.heads, region.positions)
    within = [
        (span[0] <= axis) & (axis < span[1]) for axis, span in zip(places, limits, strict=False)
    ]
    return np.logical_and.reduce(within)


def packed_bytes(cache: KVCache, layer_regions: list[Region]) -> bytes:
    """Return regions of one layer each in packed form, as the schedule defines it."""
    packed = []
    for region in layer_regions:
        for kv in BOTH:
            tensor = cache.tensor(kv).view(INTEGERS[cache.geometry.itemsize]).numpy()
            # NumPy copies in the tensor's own order.
            packed.append(tensor[inside(cache.geometry, kv, region)].tobytes())
    return b"".join(packed)


def packed_stream(cache: KVCache, schedule: StreamSchedule) -> bytes:
    """Return the whole stream as it lies in a file or buffer."""
    return b"".join(packed_bytes(cache, schedule.atoms(step)) for step in range(schedule.steps + 1))


def random_cache(geometry: KVGeometry, seed: int = 0) -> KVCache:
    """Return a cache of random bits. It holds integers, so that equal bits compare equal."""
    generator = torch.Generator().manual_seed(seed)
    cache = KVCache.allocate(geometry, INTEGERS[geometry.itemsize])
    for kv in BOTH:
        cache.bytes(kv).random_(0, 256, generator=generator)
    return cache


class LayerEvents(Protocol):
    """The calls that a model makes."""

    def layer_ready(self, layer: int) -> None: ...
    def step_ready(self, step: int, tokens: np.ndarray | None = None) -> None: ...


def play_model(
    source: KVCache,
    cache: KVCache,
    schedule: StreamSchedule,
    manager: LayerEvents,
    new_tokens: np.ndarray | None = None,
) -> None:
    """Act as the model: copy ``source`` into ``cache`` by layers and steps, and call the manager.

    Positions that were not announced yet hold other values, so a gather that runs too early
    takes wrong bytes.
    """

    def write(layer: int, span: Span) -> None:
        k, v = (source.keys(layer, span.stop), source.values(layer, span.stop))
        cache.store(layer, span.start, k[:, :, span.start :], v[:, :, span.start :])

    for layer in range(source.geometry.layers):
        write(layer, schedule.positions(0))
        manager.layer_ready(layer)
    manager.step_ready(0)
    for step in range(1, schedule.steps + 1):
        position = schedule.input_len + step - 1
        for layer in range(source.geometry.layers):
            write(layer, Span(position, position + 1))
        manager.step_ready(step, None if new_tokens is None else new_tokens[:, step - 1])


# ---- strategies ----


@st.composite
def spans(draw: st.DrawFn, size: int) -> Span:
    """Draw a non-empty interval of an axis."""
    start = draw(st.integers(0, size - 1))
    return Span(start, draw(st.integers(start + 1, size)))


@st.composite
def geometries(draw: st.DrawFn, most: int = 4) -> KVGeometry:
    layout = draw(st.sampled_from(list(KVLayout)))
    itemsize = draw(st.sampled_from([1, 2, 4]))
    smallest = 16 // itemsize if layout is KVLayout.FT else 1
    head_size = smallest * draw(st.integers(1, 3))
    layers, requests, heads, positions = (draw(st.integers(1, most)) for _ in range(4))
    return KVGeometry(
        layers=layers,
        requests=requests,
        heads=heads,
        positions=positions,
        head_size=head_size,
        itemsize=itemsize,
        layout=layout,
    )


@st.composite
def regions(draw: st.DrawFn, geometry: KVGeometry) -> Region:
    return Region(*(draw(spans(size)) for size in logical_shape(geometry)[:4]))


@st.composite
def schedules(draw: st.DrawFn, most: int = 4, longest_interval: int = 4) -> StreamSchedule:
    """Draw a stream of a part of a small cache, with slots from the smallest possible size up.

    Its flush interval may be longer than all its decode steps.
    """
    geometry = draw(geometries(most))
    region = draw(regions(geometry))
    written = draw(st.integers(1, geometry.positions))
    input_len = draw(st.integers(1, written))
    smallest = 2 * region.heads.size * geometry.head_size * geometry.itemsize
    whole_prompt = smallest * region.requests.size * input_len * region.layers.size
    slot = draw(st.integers(smallest, whole_prompt + smallest))
    steps, interval = written - input_len, draw(st.integers(1, longest_interval))
    return StreamSchedule(geometry, region, input_len, steps, slot, flush_interval=interval)
