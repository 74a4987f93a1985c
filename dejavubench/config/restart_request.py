"""A run that was killed while it streamed to disk: its last request, and how to restart it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dejavubench import values
from dejavubench.config.experiment import OPTIONS
from dejavubench.config.options.field import KEPT
from dejavubench.config.points import SETTINGS
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
from dejavubench.transports.registry import find_transport, list_modes

PHASES_WITH_CACHE = ("prompt", "tokens", "drain", "verify")
"""Phases of an iteration in which the streamed file holds what the model has computed."""


@dataclass(frozen=True, kw_only=True)
class RestartRequest:
    """The request of a killed run that this run restarts: the iteration that the run ended in.

    Attributes:
        folder: the folder of the run.
        run_id: the run's identifier, with which the names of its streamed files begin.
        point_id, arm_name, durability: names of the iteration's point, arm and durability option.
        phase: the phase that rank 0 was in.
        stream_dir: the folder of the streamed files.
    """

    folder: Path
    run_id: str
    point_id: str
    arm_name: str
    durability: str
    phase: str
    stream_dir: Path

    def stream_name(self, rank: int) -> str:
        """Return the beginning of the file names of one of the run's sources."""
        return name_stream(self.run_id, self.point_id, rank, self.durability)


def name_streams(run_id: str, session: int) -> str:
    """Return the begin of the names of a session's streamed files: none may replace another's."""
    return run_id if session == 1 else f"{run_id}-s{session}"


def name_stream(run_id: str, point_id: str, rank: int, durability: str) -> str:
    """Return the beginning of the file names of a source at one point."""
    return f"{run_id}-{point_id}-rank{rank:04d}-{durability}"


def find_restart_request(folder: Path) -> tuple[RestartRequest, dict[str, Any]]:
    """Return the iteration that the run of ``folder`` ended in, and the options that restart it.

    Raises:
        UsageError: there is nothing to restart; the message says why.
    """
    try:
        run = read_run(folder)
    except RecordError as error:
        raise UsageError(f"--restart-request: {error}") from None
    last_session = run.last_session  # an earlier session's request is over
    mark = _find_last_mark(last_session)
    arm = next((arm for arm in run.header.arms if arm.name == mark.arm), None)
    point = next((point for point in run.header.points if point.id == mark.point), None)
    if arm is None or point is None:
        raise UsageError(
            f"--restart-request: the records in {folder} name {mark.point} {mark.arm}, but its "
            "run.json does not: they are of different runs, or damaged"
        )
    beginning = f"--restart-request: {folder} ended in phase {mark.phase} of {arm.name}"
    if arm.durability is None or not _allows_restart(arm.mode):
        raise UsageError(f"{beginning}: only a request that is streamed to disk can be restarted")
    if mark.phase not in PHASES_WITH_CACHE:
        raise UsageError(f"{beginning}, when no request was under way{_advise_instead(run)}")
    experiment = run.header.experiment
    if not experiment.get("keep"):
        raise UsageError(
            f"--restart-request: {folder} did not keep its streamed files: only a run with --keep "
            "can be restarted"
        )
    try:
        # Without the option the files are in the run's own folder.
        stream_dir = values.parse_path(experiment.get("stream_dir") or folder)
    except ValueError as error:
        raise UsageError(f"--restart-request: {folder / RUN_FILE}: stream_dir: {error}") from None
    restart_request = RestartRequest(
        folder=folder.absolute(),
        # Each session streams to files of its own; the request is in those of the last one.
        run_id=name_streams(run.header.run_id, last_session.number),
        point_id=point.id,
        arm_name=arm.name,
        durability=arm.durability,
        phase=mark.phase,
        stream_dir=stream_dir.absolute(),
    )
    narrowed_options = _narrow_to_request(point, arm, experiment)
    return restart_request, experiment | narrowed_options | {"resume": folder}


def _allows_restart(mode: str) -> bool:
    """Return whether a request can be restarted from what a destination holds."""
    return mode in list_modes() and find_transport(mode).allows_restart


def _find_last_mark(run: Run) -> PhaseMark:
    """Return the last phase that rank 0 began within an iteration."""
    log_of_rank_0: RankLog | None = next((log for log in run.ranks if log.rank == 0), None)
    if log_of_rank_0 is None:
        raise UsageError(
            f"--restart-request: {run.path} has no records of rank 0: nothing can be restarted"
        )
    if any(isinstance(record, End) and record.status == "ok" for record in log_of_rank_0.records):
        raise UsageError(f"--restart-request: {run.path} finished: there is nothing to restart")
    # A phase mark without point and arm is of the start: no stream was open yet.
    mark = log_of_rank_0.last_phase
    if mark is None or mark.point is None or mark.arm is None:
        phase = mark.phase if mark else "start"
        raise UsageError(
            f"--restart-request: {run.path} ended in phase {phase}, when no request was under way"
            f"{_advise_instead(run)}"
        )
    return mark


def _advise_instead(run: Run) -> str:
    """Return which run can be restarted if this one had only just begun to restart it."""
    restarted_folder = run.header.experiment.get("resume")
    return (
        f". Restart {restarted_folder} again, which it was restarting" if restarted_folder else ""
    )


def _narrow_to_request(
    point: PointInfo, arm: ArmInfo, experiment: dict[str, Any]
) -> dict[str, Any]:
    """Return the values that narrow a sweep to one point and one arm, without any other."""
    # Prompts and checkpoints bring lengths and a model; giving both would be a conflict.
    own_sizes: dict[str, Any] = {}
    if not experiment.get("prompts"):
        own_sizes["input_len"] = [point.input_len]
    if not experiment.get("ckpt_path"):
        own_sizes["model"] = [point.model]
    # Of a sweep over settings the point has one value; else the experiment's value stays.
    settings = {name: value for name in SETTINGS if (value := getattr(point, name)) is not None}
    reset = {
        key: info.value_on_restart
        for key, info in OPTIONS.items()
        if info.value_on_restart is not KEPT
    }
    one_request = {
        "ubatch_size": [point.ubatch_size],
        "output_len": [point.output_len],
        "max_seq_len": point.positions,
        "inference_data_type": [point.data_type],
        "kv_layout": [point.kv_layout],
        "streaming": [arm.mode],
        "level": [arm.level],
        "durability": [arm.durability],
    }
    return reset | own_sizes | one_request | settings
