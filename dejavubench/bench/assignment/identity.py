"""The identity of a stream: stored in its file's header, so that a restart refuses others."""

from __future__ import annotations

import hashlib

from dejavubench.config.plan import Plan
from dejavubench.config.points import Point
from dejavubench.models.dtypes import dtype_of
from dejavubench.models.weights import identify_weights


def identify_streams(
    plan: Plan, point: Point, device: str, run_id: str, rank: int
) -> dict[str, str]:
    """Return the identity of all streams of one source at one point.

    Args:
        device: the type of device that the model runs on.
    """
    return {
        "run": run_id,
        # Another rank's part of the cache may have the same geometry.
        "rank": str(rank),
        "model": point.spec.name,
        "weights": identify_loaded_weights(plan, point, device),
        "requests": _hash_content(plan.experiment.seed, plan.prompts, plan.sampling),
        "data_type": point.data_type,
    }


def identify_loaded_weights(plan: Plan, point: Point, device: str) -> str:
    """Return 16 hex digits that differ where the values that the model multiplies may differ."""
    types = (point.data_type, plan.weights_data_type)
    if plan.checkpoint is not None:
        return _hash_content(plan.checkpoint.identity, *types)
    return identify_weights(
        point.spec, plan.experiment.seed, dtype_of(point.data_type), device, plan.weights_data_type
    )


def _hash_content(*content: object) -> str:
    return hashlib.blake2b(repr(content).encode(), digest_size=8).hexdigest()
