"""Rules for ``run.json`` alone."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dejavubench.analysis.facts.arm_destinations import run_destinations
from dejavubench.records import ArmInfo, Note, PointInfo, RankInfo, Run, RunEnvironment
from dejavubench.records.destination_info import NO_STREAMING, DestinationInfo
from dejavubench.records.notes import CHANGED
from dejavubench.units import ITEMSIZE

NOT_HASHED = ("name", "note", "log_dir", "ckpt_path", "prompts", "peer")
"""Keys of the experiment that older records left out of ``experiment_hash``."""


class AskedFor(BaseModel):
    """Keys that analysis reads of ``experiment``; the others may be anything."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    target_overhead: float | None = None
    precision: float | None = None
    max_time: float | None = None
    link: str | None = None
    peer: list[str] | None = None
    rounds: int = 0
    verify: bool = False
    resume: str | None = None
    flush_interval: Annotated[int, Field(ge=1)] = 1


def find_wrong_types(model: type[BaseModel], values: dict[str, Any], prefix: str) -> Iterator[str]:
    """Yield the values that are of other types than ``model`` has."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        for problem in error.errors(include_input=False, include_url=False):
            yield f"{'.'.join(map(str, (prefix, *problem['loc'])))}: {problem['msg']}"


def _check_types(run: Run) -> Iterator[str]:
    yield from find_wrong_types(AskedFor, run.header.experiment, "run.json: experiment")
    yield from find_wrong_types(RunEnvironment, run.header.environment, "run.json: environment")


def _check_names(run: Run) -> Iterator[str]:
    """Check that there are arms and points, each with a name of its own."""
    names_by_noun = {
        "arm": [arm.name for arm in run.header.arms],
        "point": [point.id for point in run.header.points],
    }
    for noun, names in names_by_noun.items():
        if not names:
            yield f"run.json names no {noun}"
        yield from (
            f"run.json names {noun} {name} {times} times"
            for name, times in Counter(names).items()
            if times > 1
        )


def _check_roles(run: Run) -> Iterator[str]:
    for arm in run.header.arms:
        # Exactly the arms that stream nothing are baselines.
        if (arm.mode == NO_STREAMING) == (arm.role == "streaming"):
            yield f"run.json: arm {arm.name} of mode {arm.mode} cannot have the role {arm.role}"
    for role, times in Counter(
        arm.role for arm in run.header.arms if arm.role != "streaming"
    ).items():
        if times > 1:
            yield f"run.json has {times} arms with the role {role}"


def _check_arms(run: Run) -> Iterator[str]:
    """Compare each arm with its name: mode, level and, if the run has several, durability."""
    destinations = run_destinations(run)
    for arm in run.header.arms:
        info = destinations.get(arm.mode)
        if arm.mode != NO_STREAMING and info is None:
            modes = ", ".join((NO_STREAMING, *destinations))
            yield f"run.json: arm {arm.name} has mode {arm.mode!r}, which is none of {modes}"
        elif arm.name not in _names_of(arm, info) or not _has_known_durability(arm, info):
            yield (
                f"run.json: arm {arm.name} has mode {arm.mode}, level {arm.level}, durability "
                f"{arm.durability}"
            )


def _has_known_durability(arm: ArmInfo, info: DestinationInfo | None) -> bool:
    if info is None or not info.on_storage:
        return arm.durability is None
    return arm.durability in info.durabilities


def _names_of(arm: ArmInfo, info: DestinationInfo | None) -> tuple[str, ...]:
    """Return the names that an arm may have; those of arms that swap caches name no level."""
    if info is None:
        return (NO_STREAMING, f"{NO_STREAMING}#2") if arm.level is None else ()
    modes = [arm.mode, *([info.loopback.name] if info.loopback is not None else [])]
    level = "" if arm.is_swapping else f"@{arm.level}"
    endings = ("", f"/{arm.durability}")
    return tuple(f"{mode}{level}{ending}" for mode in modes for ending in endings)


def _check_sizes(run: Run) -> Iterator[str]:
    """Check that each point's tokens fit its cache, and that its bytes follow from its sizes."""
    for point in run.header.points:
        # The last new token is never fed back, so it has no position in the cache.
        last_position = point.input_len + point.output_len - 1
        is_too_long = point.positions < last_position or point.handed_over > point.output_len
        if not point.skipped and is_too_long:
            yield f"run.json: point {point.id} has more tokens than positions"
        if point.streamed_nbytes != _count_streamed_nbytes(point):
            yield (
                f"run.json: point {point.id} streams {point.streamed_nbytes} bytes, but its sizes "
                f"give {_count_streamed_nbytes(point)}"
            )
    parallel_sizes = {
        (point.tensor_para_size, point.pipeline_para_size, point.sinks)
        for point in run.header.points
    }
    if len(parallel_sizes) > 1:
        yield "run.json: its points differ in tensor- or pipeline-parallel sizes, as no run's do"


def _count_streamed_nbytes(point: PointInfo) -> int:
    position_count = point.input_len + (point.handed_over or point.output_len) - 1
    head_count = point.kv_head_num or point.head_num  # older records name no KV heads
    position_nbytes = (
        2 * point.layer_num * head_count * point.size_per_head * ITEMSIZE[point.data_type]
    )
    return point.ubatch_size * position_count * position_nbytes


def _note_other_experiment(run: Run) -> Iterator[Note]:
    """Compare the experiment with its hash in older records, which have no digest."""
    has_no_digest = not any(info.run_id for _, info in run.records_of(RankInfo))
    experiment = run.header.experiment
    # The hash covered what the files held, which run.json does not have.
    is_from_files = any(experiment.get(key) for key in ("prompts", "ckpt_path"))
    if (
        has_no_digest
        and not is_from_files
        and compute_experiment_hash(experiment) != run.header.experiment_hash
    ):
        yield CHANGED.note("CHANGED: run.json: the experiment does not match its experiment_hash")


def compute_experiment_hash(experiment: dict[str, Any]) -> str:
    """Return the hash of an experiment as ``run`` writes it: 16 hexadecimal digits."""
    content = {key: value for key, value in experiment.items() if key not in NOT_HASHED}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


RULES = (_check_types, _check_names, _check_roles, _check_arms, _check_sizes)
NOTING_RULES = (_note_other_experiment,)
