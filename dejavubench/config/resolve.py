"""From an experiment to a plan: everything that must be looked up, once, on rank 0 alone.

The CUDA driver, the CPU's instruction sets, the checkpoint's folder, the prompts and the records of
a killed run are read here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dejavubench.config.continued_run import (
    CheckSessions,
    check_overrides,
    check_points,
    find_continued_run,
    values_of,
)
from dejavubench.config.experiment import OPTIONS, Experiment
from dejavubench.config.loading import GivenExperiment, check_path, read_experiment
from dejavubench.config.options.option_types import require_unique
from dejavubench.config.plan import Plan
from dejavubench.config.prompt_file import PromptError, read_prompts
from dejavubench.config.restart_request import RestartRequest, find_restart_request
from dejavubench.config.rules import find_conflict
from dejavubench.errors import UsageError
from dejavubench.machine import cpu, gpu
from dejavubench.models.hub.checkpoint import Checkpoint, open_checkpoint
from dejavubench.records import RUN_FILE
from dejavubench.records.destination_info import NO_STREAMING
from dejavubench.transports.base import Unavailable
from dejavubench.transports.registry import find_transport


def load(
    path: Path | None,
    overrides: Mapping[str, Any],
    environ: Mapping[str, str],
    dry_run: bool = False,
    only_points: tuple[str, ...] | None = None,
) -> Plan:
    """Read the experiment and resolve it.

    Args:
        path: a TOML file, or None.
        overrides: values of flags, by key; they win.
        environ: the environment, for the level.
        dry_run: the run is not going to start here, so its device may be missing.
        only_points: ids of the points to measure; None: all of them.

    Raises:
        UsageError: a value is wrong, cannot be had here, or does not fit the others.
    """
    # --restart-request has this key since records and hashes of older runs spell it so.
    if "resume" not in overrides:
        plan = resolve(read_experiment(path, overrides, environ), dry_run)
        check_points(only_points, [point.id for point in plan.points])
        return replace(plan, only_points=only_points)
    if only_points is not None:
        raise UsageError(
            "--points cannot be combined with --restart-request, which goes on at the point of the "
            "killed run. Drop one of them"
        )
    if path is not None:
        raise UsageError(
            f"{path} cannot be combined with --restart-request, which takes its settings from the "
            "killed run. Drop one of them"
        )
    # The killed run's values take the place of a file. Flags win over them in turn, so that a
    # restart can, for example, verify what the killed run did not. A rule refuses the flags that
    # would make it another request.
    folder = check_path(overrides["resume"], "--restart-request")
    restart_request, killed_values = find_restart_request(folder)
    origins = {key: f"--restart-request: {folder / RUN_FILE}: {key}" for key in killed_values}
    return resolve(
        read_experiment(None, overrides, environ, killed_values, origins), dry_run, restart_request
    )


def load_continued_run(
    folder: Path,
    only_points: tuple[str, ...] | None,
    overrides: Mapping[str, Any],
    dry_run: bool = False,
    check: CheckSessions | None = None,
) -> Plan:
    """Read the run of a folder and resolve the session that measures what is missing there.

    Args:
        only_points: ids of the points to measure; None: all of them.
        overrides: values of flags, by key.
        dry_run: as in :func:`load`.
        check: as in :func:`find_continued_run`.

    Raises:
        UsageError: no session can go on with the run, or its experiment means another one here.
    """
    check_overrides(overrides)
    overrides, requested_round_count = _drop_rounds(overrides)
    ceilings: bool | None = overrides.pop("ceilings", None)
    continued_run = find_continued_run(
        check_path(folder, "--continue"),
        only_points,
        check,
        requested_round_count,
        ceilings=bool(ceilings),
    )
    run_values = values_of(continued_run)
    # No file and no environment: all settings are those of the run.
    origins = {key: f"--continue: {folder / RUN_FILE}: {key}" for key in run_values}
    plan = resolve(read_experiment(None, overrides, {}, run_values, origins), dry_run)
    # The hash covers prompts and weights, too, which run.json does not hold.
    if plan.hash() != continued_run.header.experiment_hash:
        raise UsageError(
            f"--continue: the measurement of {folder} is another one today: the content of its "
            "prompts or checkpoint has changed, or a default of this program. Start a new run"
        )
    if ceilings is not None:
        # Only here, as the hash covers the option: this session alone measures them, or does not.
        plan = replace(plan, experiment=plan.experiment.model_copy(update={"ceilings": ceilings}))
    return replace(plan, continued_run=continued_run, only_points=only_points)


def _drop_rounds(overrides: Mapping[str, Any]) -> tuple[dict[str, Any], int | None]:
    """Return the other flags, and the rounds that a continued run shall have.

    The experiment keeps its own number: the hash, which tells a run from others, covers it.
    """
    other_overrides = {key: value for key, value in overrides.items() if key != "rounds"}
    if "rounds" not in overrides:
        return other_overrides, None
    only_rounds = read_experiment(None, {"rounds": overrides["rounds"]}, {}).experiment
    return other_overrides, only_rounds.rounds


def resolve(
    given_experiment: GivenExperiment,
    dry_run: bool = False,
    restart_request: RestartRequest | None = None,
) -> Plan:
    """Settle what depends on this machine and on files, and check that the options fit together.

    Args:
        given_experiment: the experiment, and where its values came from.
        dry_run: the run is not going to start here, so its device may be missing.
        restart_request: the request of a killed run that it restarts.

    Raises:
        UsageError: something cannot be had here, or the options do not fit together.
    """
    unsettled_experiment = given_experiment.experiment
    device = _settle_device(given_experiment, dry_run)
    native_bf16 = cpu.has_native_bf16()
    # bf16 only where the CPU multiplies it: elsewhere each element is widened first.
    fastest_type = "fp16" if device == "cuda" else "bf16" if native_bf16 else "fp32"
    settled_values: dict[str, Any] = {
        "device": device,
        "inference_data_type": tuple(
            fastest_type if data_type == "auto" else data_type
            for data_type in unsettled_experiment.inference_data_type
        ),
        "weights_data_type": fastest_type
        if unsettled_experiment.weights_data_type == "auto"
        else unsettled_experiment.weights_data_type,
    }
    # Only now: `auto` may have become a type that the list names as well.
    with _name_origin(given_experiment, "inference_data_type"):
        require_unique(settled_values["inference_data_type"])
    experiment = unsettled_experiment.model_copy(update=settled_values)
    plan = Plan(
        experiment=experiment,
        checkpoint=_open_given_checkpoint(given_experiment),
        prompts=_read_given_prompts(given_experiment),
        restart_request=restart_request,
        unavailable={
            mode: why_unavailable
            for mode in unsettled_experiment.streaming
            if (why_unavailable := _find_missing(mode, experiment))
        },
        has_native_bf16=native_bf16,
    )
    message = find_conflict(plan)
    if message is not None:
        raise UsageError(
            message if given_experiment.path is None else f"{given_experiment.path}: {message}"
        )
    return plan


@contextmanager
def _name_origin(given_experiment: GivenExperiment, key: str) -> Iterator[None]:
    """Turn a ValueError into a usage error that names where the option's value came from."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{given_experiment.origin(key)}: {error}") from None


def _settle_device(given_experiment: GivenExperiment, dry_run: bool) -> str:
    """Return the device that all ranks use: ``auto`` follows what rank 0 has."""
    device = given_experiment.experiment.device
    if device == "cpu":  # loading the driver of GPUs would only cost time
        return device
    try:
        devices = gpu.list_cuda_devices()
    except RuntimeError as error:
        raise UsageError(
            f"{given_experiment.origin('device')}: {error}. Use --device cpu to run without a GPU"
        ) from None
    if device == "cuda" and not devices and not dry_run:
        raise UsageError(
            f"{given_experiment.origin('device')} cuda: no CUDA device is found here: there is no "
            "NVIDIA driver, or it lists none"
        )
    return "cuda" if devices or device == "cuda" else "cpu"


def _open_given_checkpoint(given_experiment: GivenExperiment) -> Checkpoint | None:
    folder = given_experiment.experiment.ckpt_path
    if folder is None:
        return None
    with _name_origin(given_experiment, "ckpt_path"):
        return open_checkpoint(folder)


def _read_given_prompts(given_experiment: GivenExperiment) -> tuple[tuple[int, ...], ...]:
    experiment = given_experiment.experiment
    if experiment.prompts is None:
        return ()
    try:
        return read_prompts(experiment.prompts, experiment.ckpt_path)
    except PromptError as error:
        raise UsageError(f"{given_experiment.origin('prompts')}: {error}") from None


def _find_missing(mode: str, experiment: Experiment) -> Unavailable | None:
    if mode == NO_STREAMING:
        return None
    transport = find_transport(mode)
    loopback = () if transport.loopback is None else (transport.loopback.option,)
    # Checked here, before the plan asks for the values: a plugin may be of another version.
    for option in (*transport.options, *loopback):
        if option not in OPTIONS:
            raise UsageError(
                f"--streaming {mode}: its plugin names an option {option!r}, which dejavubench "
                "does not have. Fix or uninstall the plugin"
            )
    return transport.missing(experiment)
