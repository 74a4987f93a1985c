"""``dejavubench plan --from RUN``: a measured run and options → a forecast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dejavubench.cli.output import BadInput

if TYPE_CHECKING:
    from dejavubench.analysis.prediction.inputs import RunInputs
    from dejavubench.analysis.prediction.table import Forecast
    from dejavubench.analysis.prediction.target import Target
    from dejavubench.dejavulib.exchange import Setup
    from dejavubench.models.hub.model_spec import ModelSpec
    from dejavubench.records import PointInfo

POINT_KEYS = ("input_len", "output_len", "data_type", "kv_layout", "ubatch_size")
"""Options that are sizes of a request; those that are not given are the run's own."""


def make_forecast(
    folder: Path,
    spec: ModelSpec | None,
    rate: float,
    latency_s: float,
    options: Mapping[str, Any],
) -> Forecast:
    """Return the forecast that a run gives, or all runs below a folder together.

    Args:
        spec: another model than the run's; None for the same.
        rate: of the link, in bytes per second.
        latency_s: seconds added to each message, one way.
        options: those that stand on the command line, by name.

    Raises:
        BadInput: the run cannot be read or tells no prediction, or the options do not fit.
    """
    from dejavubench.analysis.prediction.table import MOST_LENGTH, Forecast

    run, warnings = _read_runs(folder)
    # Measured points stand for themselves only while no size is asked for.
    is_own = spec is None and not any(key in options for key in POINT_KEYS)
    base = _find_nearest_point(run, options.get("input_len"))
    bases = _list_measured_points(run) if is_own else [base]
    target, *other_targets = (
        _make_target(run, _make_point(info, spec, options), options, 1e3 * latency_s)
        for info in bases
    )
    context = spec.context if spec is not None else _context_of(base)
    most_positions = MOST_LENGTH if context is None else context - target.point.output_len + 1
    if target.point.input_len > most_positions:
        raise BadInput(
            f"--input-len {target.point.input_len} and --output-len {target.point.output_len} take "
            f"more than the {context} positions of {target.point.model}"
        )
    return Forecast(run, target, rate, max(1, most_positions), tuple(other_targets), warnings)


def _read_runs(folder: Path) -> tuple[RunInputs, tuple[str, ...]]:
    """Return the inputs of a run, or of all runs below a folder together, and warnings.

    Raises:
        BadInput: a run cannot be read, no run tells a prediction, or machines differ.
    """
    from dejavubench.analysis.find_runs import run_folders
    from dejavubench.analysis.prediction.join_runs import DifferentMachinesError
    from dejavubench.analysis.prediction.run_inputs import NoPredictionError
    from dejavubench.records import RecordError

    try:
        # What is no folder is read as a run: the message says what it is instead.
        folders = run_folders(folder) if folder.is_dir() else [folder]
        return _read_run(folders[0]) if len(folders) == 1 else _join_runs_below(folder, folders)
    except (RecordError, NoPredictionError, DifferentMachinesError) as error:
        raise BadInput(f"--from: {error}") from None


def _join_runs_below(folder: Path, folders: Sequence[Path]) -> tuple[RunInputs, tuple[str, ...]]:
    """Return the inputs of several runs together, and warnings; a run without any is left out.

    Raises:
        NoPredictionError: no run tells a prediction.
        DifferentMachinesError: the runs are not of one machine.
    """
    from dejavubench.analysis.prediction.join_runs import join_runs
    from dejavubench.analysis.prediction.run_inputs import NoPredictionError
    from dejavubench.records import RecordError

    runs, warnings = [], []
    for run_folder in folders:
        try:
            run, damage = _read_run(run_folder)
        except (RecordError, NoPredictionError) as error:
            warnings.append(f"left out: {error}")
        else:
            runs.append(run)
            warnings += [f"{run.name}: {text}" for text in damage]
    if not runs:
        raise NoPredictionError(f"no run below {folder} tells a prediction. {warnings[0]}")
    return join_runs(runs), tuple(warnings)


def _read_run(folder: Path) -> tuple[RunInputs, tuple[str, ...]]:
    """Return a run's inputs, and what is missing of its records or was changed.

    Raises:
        RecordError: the run cannot be read.
        NoPredictionError: it tells no prediction.
    """
    from dejavubench.analysis.integrity import read_checked
    from dejavubench.analysis.prediction.run_inputs import NoPredictionError, read_inputs
    from dejavubench.analysis.tables import ending_part

    run = read_checked(folder)
    damage = tuple(note.text for note in ending_part.make_notes(run) if note.severity != "info")
    try:
        return read_inputs(run), damage
    except NoPredictionError:
        if ending_part.is_complete(run):
            raise
        # What is missing is not there because the run was cut short, whatever it was asked for.
        raise NoPredictionError(
            f"{folder.name} is incomplete ({'; '.join(damage)}), so nothing can be predicted from "
            "it"
        ) from None


def _find_nearest_point(run: RunInputs, length: int | None) -> PointInfo:
    """Return the run's point with the nearest prompt length; the first without a length."""
    points = [arm.point.info for arm in run.arms]
    if length is None:
        return points[0]
    return min(points, key=lambda info: abs(info.input_len - length))


def _list_measured_points(run: RunInputs) -> list[PointInfo]:
    """Return the points of the run's arms, each once, in their order."""
    return list({arm.point.info.id: arm.point.info for arm in run.arms}.values())


def _context_of(info: PointInfo) -> int | None:
    from dejavubench.models.hub import specs

    spec = specs.SPECS.get(info.model)
    return None if spec is None else spec.context


def _make_point(base: PointInfo, spec: ModelSpec | None, options: Mapping[str, Any]) -> PointInfo:
    """Return the sizes of the request to predict."""
    from dejavubench.units import ITEMSIZE

    sizes = {key: options.get(key, getattr(base, key)) for key in POINT_KEYS}
    changes: dict[str, Any] = dict(sizes)
    if spec is not None:
        changes |= {
            "model": spec.name,
            "parameters": spec.parameter_count,
            "layer_num": spec.layer_num,
            "head_num": spec.head_num,
            "size_per_head": spec.size_per_head,
            "kv_head_num": spec.kv_heads,
            "layer_weights": spec.layer_weight_count,
            "head_weights": spec.head_weight_count,
            "vocab_size": spec.vocab_size,
        }
    if "data_type" in options:
        changes["weight_nbytes"] = ITEMSIZE[sizes["data_type"]]
    point = base.model_copy(update=changes)
    head_count = point.kv_head_num or point.head_num
    position_nbytes = (
        2 * point.layer_num * head_count * point.size_per_head * ITEMSIZE[point.data_type]
    )
    written_position_count = point.input_len + (point.handed_over or point.output_len) - 1
    return point.model_copy(
        update={"streamed_nbytes": point.ubatch_size * written_position_count * position_nbytes}
    )


def _make_target(
    run: RunInputs, point: PointInfo, options: Mapping[str, Any], latency_ms: float
) -> Target:
    """Return the request to predict, on the setups of both sides that the options ask for."""
    from dejavubench.analysis.prediction.target import Target
    from dejavubench.units import format_count_of

    source = _make_setup(point, options, "", None)
    sink = _make_setup(point, options, "sink_", source)
    step_count = (point.handed_over or point.output_len) - 1
    flush_interval = options.get("flush_interval", run.arms[0].staging.flush_interval)
    if flush_interval > max(1, step_count):
        raise BadInput(
            f"--flush-interval {flush_interval} is more than the {step_count} decode steps"
        )
    request_count = source.microbatch_size * source.stages
    if request_count % sink.microbatch_size:
        raise BadInput(
            f"{format_count_of(request_count, 'request')} do not fill the sinks' microbatches of "
            f"{sink.microbatch_size}. Give --sink-ubatch-size a divisor of {request_count}"
        )
    partners = max(len(sink.partners(source, worker)) for worker in range(source.workers))
    # A larger microbatch of a source is cut into several ones of the sinks.
    microbatch_cuts = -(-source.microbatch_size // sink.microbatch_size)
    setup = {
        "tensor_para_size": source.tensor_parallel,
        "pipeline_para_size": source.stages,
        "sinks": "" if sink == source else "others",
    }
    return Target(
        point.model_copy(update=setup),
        flush_interval=flush_interval,
        latency_ms=latency_ms,
        sinks_per_source=partners * microbatch_cuts,
        sources_per_sink=max(1.0, source.workers / sink.workers),
    )


def _make_setup(
    point: PointInfo, options: Mapping[str, Any], side: str, source: Setup | None
) -> Setup:
    """Return the setup of the sources, or of the sinks, which is that of the sources if not given.

    Args:
        side: begins the names of the side's options.
        source: the sources' setup; None to return it.
    """
    from dejavubench.dejavulib.exchange import Setup
    from dejavubench.models.hub.model_spec import cut_evenly

    tensor = options.get(f"{side}tensor_para_size", source.tensor_parallel if source else 1)
    microbatch = options.get(f"{side}ubatch_size", point.ubatch_size)
    cuts: tuple[int, ...] | None = options.get(f"{side}layer_cuts")
    stage_count: int | None = options.get(f"{side}pipeline_para_size")
    flags = f"--{side}".replace("_", "-")
    if stage_count is not None and stage_count > point.layer_num:
        raise BadInput(
            f"{flags}pipeline-para-size {stage_count} is more than the {point.layer_num} layers of "
            f"{point.model}"
        )
    if cuts is None:
        default_cuts = source.layer_cuts if source else (0, point.layer_num)
        cuts = default_cuts if stage_count is None else cut_evenly(point.layer_num, stage_count)
    elif cuts[-1] != point.layer_num:
        raise BadInput(f"{flags}layer-cuts: the last cut must be {point.layer_num}")
    elif stage_count not in (None, len(cuts) - 1):
        raise BadInput(
            f"{flags}layer-cuts does not make the {stage_count} stages of {flags}pipeline-para-size"
        )
    try:
        return Setup(cuts, point.kv_head_num or point.head_num, tensor, microbatch)
    except ValueError as error:
        raise BadInput(f"{'sinks' if side else 'sources'}: {error}") from None
