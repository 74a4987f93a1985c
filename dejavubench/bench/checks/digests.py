"""Digests of caches, for comparing a cache with itself at another time."""

from __future__ import annotations

import xxhash

from dejavubench.bench.assignment.worker import WorkerView
from dejavubench.bench.checks.cache_bits import as_integers
from dejavubench.dejavulib.kv_cache import BOTH, KVCache, Span


def compute_digests(cache: KVCache, position_count: int) -> list[str]:
    """Return a digest of K and V of each layer, of the first ``position_count`` positions."""
    geometry = cache.geometry
    hashes = []
    for layer in range(geometry.layers):
        region = geometry.region(layers=Span(layer, layer + 1), positions=Span(0, position_count))
        for kv in BOTH:
            # Contiguous, so that two caches of one content have one digest, whatever their strides.
            piece = as_integers(cache.piece(kv, region)).contiguous().cpu()
            hashes.append(xxhash.xxh3_128_hexdigest(piece.numpy().data))
    return hashes


def describe_digest_difference(
    actual_digests: list[str], expected_digests: list[str], worker_view: WorkerView, microbatch: int
) -> str | None:
    """Return which layer's K or V of a microbatch differs first, if any does."""
    tensor_places = [
        (worker_view.locate(layer, 0)[0], kv)
        for layer in range(worker_view.geometry.layers)
        for kv in BOTH
    ]
    for (layer, kv), digest, expected_digest in zip(
        tensor_places, actual_digests, expected_digests, strict=True
    ):
        if digest != expected_digest:
            tensor_name = f"microbatch {microbatch}, layer {layer}, {kv.upper()}"
            return f"{tensor_name} is not what it is undisturbed"
    return None
