"""Rules for ``run.json`` alone."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from dejavubench.config.points import ITEMSIZE, ON_DISK, Durability, Mode
from dejavubench.records import ArmInfo, PointInfo, RankInfo, Run

MODES, DURABILITIES = get_args(Mode), get_args(Durability)

NOT_HASHED = ("name", "note", "log_dir", "ckpt_path", "prompts", "peer")
"""Keys of the experiment that older records left out of ``experiment_hash``."""


class _Read(BaseModel):
    """Keys that analysis reads of a document, with their types; the others may be anything."""

    model_config = ConfigDict(
        extra="allow", strict=True, allow_inf_nan=False, protected_namespaces=()
    )


class Experiment(_Read):
    target_overhead: float | None = None
    link: str | None = None
    peer: list[str] | None = None
    rounds: int = 0
    verify: bool = False
    resume: str | None = None


class Device(_Read):
    name: str = ""
    uuid: str = ""
    driver: str = ""
    cuda: str | None = None
    nccl: str = ""
    mps: bool | None = None
    pcie_generation: str = ""
    pcie_width: str = ""


class Environment(_Read):
    cpu_model: str = ""
    cores: int = 0
    gpus: list[str] = []
    gpu: Device = Device()
    cuda_aware_mpi: bool = False
    hostnames: list[str] = []
    ranks: int = 0
    versions: dict[str, str] = {}
    mpi_library: str = ""
    date: str = ""
    machine: str = ""
    kernel: str = ""


class TCPSink(_Read):
    same_host: bool
    same_machine: bool = False


class RankEnvironment(_Read):
    gpu: Device = Device()
    tcp_sink: TCPSink | None = None
    native_bf16: bool | None = None
    machine: str = ""


def wrong_types(read: type[_Read], values: dict[str, Any], what: str) -> Iterator[str]:
    """Yield the values that are of other types than ``read`` has."""
    try:
        read.model_validate(values)
    except ValidationError as error:
        for each in error.errors(include_input=False, include_url=False):
            yield f"{'.'.join(map(str, (what, *each['loc'])))}: {each['msg']}"


def wrong_rank_types(environment: dict[str, Any], where: str) -> Iterator[str]:
    return wrong_types(RankEnvironment, environment, f"{where}: environment")


def _types(run: Run) -> Iterator[str]:
    yield from wrong_types(Experiment, run.header.experiment, "run.json: experiment")
    yield from wrong_types(Environment, run.header.environment, "run.json: environment")


def _names(run: Run) -> Iterator[str]:
    named = {
        "arm": [arm.name for arm in run.header.arms],
        "point": [point.id for point in run.header.points],
    }
    for what, names in named.items():
        if not names:
            yield f"run.json names no {what}"
        yield from (
            f"run.json names {what} {name} {times} times"
            for name, times in Counter(names).items()
            if times > 1
        )


def _roles(run: Run) -> Iterator[str]:
    for arm in run.header.arms:
        if (arm.mode == "none") == (arm.role == "streaming"):
            yield f"run.json: arm {arm.name} has mode {arm.mode} and role {arm.role}, which exclude each other"
    for role, times in Counter(
        arm.role for arm in run.header.arms if arm.role != "streaming"
    ).items():
        if times > 1:
            yield f"run.json has {times} arms with the role {role}"


def _arms(run: Run) -> Iterator[str]:
    """Compare each arm with its name, which holds mode, level and, if the run has several, durability."""
    for arm in run.header.arms:
        if arm.mode not in MODES:
            yield f"run.json: arm {arm.name} has mode {arm.mode!r}, which is none of {', '.join(MODES)}"
        elif arm.name not in _names_of(arm) or arm.durability not in _durabilities(arm):
            yield f"run.json: arm {arm.name} has mode {arm.mode}, level {arm.level}, durability {arm.durability}"


def _durabilities(arm: ArmInfo) -> tuple[str | None, ...]:
    return DURABILITIES if arm.mode in ON_DISK else (None,)


def _names_of(arm: ArmInfo) -> tuple[str, ...]:
    if arm.mode == "none":
        return ("none", "none#2") if arm.level is None else ()
    if arm.mode.startswith("swap-"):
        return (arm.mode, f"{arm.mode}/{arm.durability}")
    modes = (arm.mode, "nccl-loopback") if arm.mode == "nccl" else (arm.mode,)
    return tuple(
        f"{mode}@{arm.level}{more}" for mode in modes for more in ("", f"/{arm.durability}")
    )


def _sizes(run: Run) -> Iterator[str]:
    for point in run.header.points:
        last = point.input_len + point.output_len - 1
        if not point.skipped and (point.positions < last or point.handed_over > point.output_len):
            yield f"run.json: point {point.id} has more tokens than positions"
        if point.streamed_nbytes != _streamed_nbytes(point):
            yield (
                f"run.json: point {point.id} streams {point.streamed_nbytes} bytes, but its sizes make "
                f"{_streamed_nbytes(point)}"
            )
    splits = {(p.tensor_para_size, p.pipeline_para_size, p.sinks) for p in run.header.points}
    if len(splits) > 1:
        yield "run.json: its points are of different tensor- and pipeline-parallel sizes, which no run has"


def _streamed_nbytes(point: PointInfo) -> int:
    tokens = point.input_len + (point.handed_over or point.output_len) - 1
    heads = point.kv_head_num or point.head_num
    token = 2 * point.layer_num * heads * point.size_per_head * ITEMSIZE[point.data_type]
    return point.ubatch_size * tokens * token


def _other_experiment(run: Run) -> Iterator[str]:
    """Compare the experiment with its hash in older records, which have no digest of ``run.json``."""
    older = not any(info.run_id for _, info in run.of(RankInfo))
    asked = run.header.experiment
    given = any(asked.get(key) for key in ("prompts", "ckpt_path"))  # their content was hashed, too
    if older and not given and experiment_hash(asked) != run.header.experiment_hash:
        yield "CHANGED: run.json: the experiment is not the one that its experiment_hash was made of"


def experiment_hash(experiment: dict[str, Any]) -> str:
    content = {key: value for key, value in experiment.items() if key not in NOT_HASHED}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


RULES = (_types, _names, _roles, _arms, _sizes)
NOTED = (_other_experiment,)
