"""A run that was killed while it streamed to disk: which request it was in, and how that is gone on with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dejavubench import values
from dejavubench.errors import UsageError
from dejavubench.records import (
    RUN_FILE,
    ArmInfo,
    End,
    PhaseMark,
    PointInfo,
    RankLog,
    RecordError,
    Run,
    read_run,
)

WITH_CACHE = ("prompt", "tokens", "drain", "verify")
"""Phases of an iteration in which the stream's file holds what the model has computed."""


@dataclass(frozen=True)
class Interrupted:
    """The iteration that a run ended in.

    Attributes:
        folder: the run's.
        run_id: as its stream's files say.
        point, arm, durability: of that iteration, by the names of that run.
        phase: the one that rank 0 was in.
        stream_dir: where its stream's files are.
    """

    folder: Path
    run_id: str
    point: str
    arm: str
    durability: str
    phase: str
    stream_dir: Path

    def stream_name(self, rank: int) -> str:
        """As :func:`stream_name` of one of its sources."""
        return stream_name(self.run_id, self.point, rank, self.durability)


def stream_name(run_id: str, point: str, rank: int, durability: str) -> str:
    """What the names of a source's files of one point begin with."""
    return f"{run_id}-{point}-rank{rank:04d}-{durability}"


def find_interrupted(folder: Path) -> tuple[Interrupted, dict[str, Any]]:
    """The iteration that the run of ``folder`` ended in, and the experiment, as values of its fields, of that alone.

    Raises:
        UsageError: there is nothing to go on with; the message says why.
    """
    try:
        run = read_run(folder)
    except RecordError as error:
        raise UsageError(f"resume: {error}") from None
    mark = _last_mark(run)
    arm = next((arm for arm in run.header.arms if arm.name == mark.arm), None)
    point = next((point for point in run.header.points if point.id == mark.point), None)
    if arm is None or point is None:
        raise UsageError(
            f"resume: {folder} has records of {mark.point} {mark.arm}, which its run.json does not name"
        )
    was_in = f"resume: {folder} ended in phase {mark.phase} of {arm.name}"
    if arm.mode != "disk" or arm.durability is None:
        raise UsageError(f"{was_in}: only what streams to disk can be resumed")
    if mark.phase not in WITH_CACHE:
        raise UsageError(f"{was_in}: no request was under way{_instead(run)}")
    experiment = run.header.experiment
    if not experiment.get("keep"):
        raise UsageError(
            f"resume: {folder} did not keep what it streamed; a run that is to be resumed needs --keep"
        )
    try:
        stream_dir = values.path(experiment.get("stream_dir") or folder)
    except ValueError as error:
        raise UsageError(f"resume: {folder / RUN_FILE}: stream_dir: {error}") from None
    found = Interrupted(
        folder.absolute(),
        run.header.run_id,
        point.id,
        arm.name,
        arm.durability,
        mark.phase,
        stream_dir.absolute(),
    )
    return found, {**experiment, **_only(point, arm, experiment), "resume": folder}


def _last_mark(run: Run) -> PhaseMark:
    """What rank 0 began last within an iteration."""
    first: RankLog | None = next((log for log in run.ranks if log.rank == 0), None)
    if first is None or any(
        isinstance(record, End) and record.status == "ok" for record in first.records
    ):
        what = "came to its end" if first is not None else "has no records of rank 0"
        raise UsageError(f"resume: {run.path} {what}: there is nothing to go on with")
    mark = first.last_phase
    if mark is None or mark.point is None or mark.arm is None:
        phase = mark.phase if mark else "start"
        raise UsageError(
            f"resume: {run.path} ended in phase {phase}, where no request was under way{_instead(run)}"
        )
    return mark


def _instead(run: Run) -> str:
    """What can be gone on with, if this run had just begun to go on with another."""
    before = run.header.experiment.get("resume")
    return f"; {before}, which it went on with, can be resumed again" if before else ""


def _only(point: PointInfo, arm: ArmInfo, experiment: dict[str, Any]) -> dict[str, Any]:
    """The values that narrow a sweep to one point and one arm, with nothing measured beside it."""
    own_lengths = {} if experiment.get("prompts") else {"input_len": [point.input_len]}
    own_model = {} if experiment.get("ckpt_path") else {"model": [point.model]}
    return {
        **own_lengths,
        **own_model,
        "ubatch_size": [point.ubatch_size],
        "output_len": [point.output_len],
        "max_seq_len": point.positions,
        "inference_data_type": [point.data_type],
        "kv_layout": [point.kv_layout],
        "streaming": ["disk"],
        "level": [arm.level],
        "durability": [arm.durability],
        "compare": False,
        "nccl_loopback": False,
        "peer": [],
        "tcp_checksums": False,
        "handoff": False,
        "handoff_tokens": 1,
        "swap": [],
        "resident": 2,
        **dict.fromkeys(
            ("sink_tensor_para_size", "sink_pipeline_para_size", "sink_ubatch_size", "figure"), None
        ),
        "precision": None,
        "ceilings": False,
        "warmup": 0,
        "rounds": 1,
    }
