"""What a stream is of: goes into the headers of its files, so that a resume can refuse what does not belong."""

from __future__ import annotations

import hashlib

from dejavubench.config.experiment import Experiment
from dejavubench.config.points import Point
from dejavubench.models.dtypes import dtype_of
from dejavubench.models.weights import weights_identity


def identity(
    experiment: Experiment, point: Point, device: str, run_id: str, rank: int
) -> dict[str, str]:
    """Of all streams of one source at one point; ``device``: the type of device that the model runs on."""
    return {
        "run": run_id,
        "rank": str(rank),  # another one's part of the cache may have the same geometry
        "model": point.spec.name,
        "weights": identity_of_weights(experiment, point, device),
        "requests": _digest(experiment.seed, experiment.given_prompts, experiment.sampling),
        "data_type": point.data_type,
    }


def identity_of_weights(experiment: Experiment, point: Point, device: str) -> str:
    """16 hex digits that differ whenever the values that the model multiplies with may differ."""
    types = (point.data_type, experiment.weights_data_type)
    if experiment.checkpoint is not None:
        return _digest(experiment.checkpoint.identity, *types)
    return weights_identity(
        point.spec, experiment.seed, dtype_of(point.data_type), device, experiment.weights_data_type
    )


def _digest(*what: object) -> str:
    return hashlib.blake2b(repr(what).encode(), digest_size=8).hexdigest()
