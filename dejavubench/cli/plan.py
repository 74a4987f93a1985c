"""``dejavubench plan``: which worker sends which part of the cache to which, between two setups."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from dejavubench import units
from dejavubench.cli.output import BadInput, add_table_options, write_to
from dejavubench.cli.plan_options import add_plan_options
from dejavubench.config.points import Point
from dejavubench.models.hub.model_spec import ModelSpec

if TYPE_CHECKING:
    from dejavubench.analysis.prediction.table import Forecast
    from dejavubench.dejavulib.exchange import Setup
    from dejavubench.planning.traffic import Traffic


@click.command()
@add_plan_options
@add_table_options(
    "Format: csv has the pairs alone; json every region pair, up to 100,000. With --from, both "
    "have the predicted rows."
)
def plan(
    spec: ModelSpec | None,
    ckpt_path: Path | None,
    requests: int | None,
    rate: float | None,
    latency: float | None,
    style: str,
    output: Path | None,
    force: bool,
    **sizes: Any,
) -> None:
    """Plan a transfer: which part of the KV cache moves from which source to which sink.

    Sources run the model, sinks receive its cache. The two sides may differ in pipeline depth,
    tensor-parallel degree and microbatch size. Nothing is started; neither MPI nor a GPU is needed.

    With --link, the least times are shown. Every worker has a link of its own, which carries RATE
    in each direction. A step ends when the busiest worker has moved its bytes: after bytes ÷ RATE,
    plus one latency.

    With --from and --link, overheads are predicted instead, from the times of chunks and of the
    model in a measured run.
    """
    from_run: Path | None = sizes.pop("from_run")
    if from_run is not None:
        from dejavubench.cli import forecast_report

        if requests is not None:
            raise BadInput("--requests cannot be combined with --from. Drop one of them")
        model = None if spec is None and ckpt_path is None else _choose_spec(spec, ckpt_path)
        forecast = _make_forecast(from_run, model, rate, latency or 0.0, sizes)
        write_to(output, force, lambda file: forecast_report.write(forecast, style, file))
        for warning in forecast.warnings:
            click.echo(f"{from_run.name}: {warning}", err=True)
        return
    from dejavubench.cli import plan_report
    from dejavubench.cli.plan_rows import PlanRows
    from dejavubench.planning.traffic import MOST_REGION_PAIRS, LinkSpec

    if latency is not None and rate is None:
        raise BadInput(
            "--latency needs --link, the rate of each link. Add it, such as --link 25GB/s"
        )
    traffic = _make_traffic(_choose_spec(spec, ckpt_path), requests, sizes)
    if style == "json" and traffic.total.region_pair_count > MOST_REGION_PAIRS:
        raise BadInput(
            f"--format json lists at most {MOST_REGION_PAIRS:,} region pairs, and this plan has "
            f"{traffic.total.region_pair_count:,}. Use another format, which sums them up"
        )
    link = None if rate is None else LinkSpec(rate, latency or 0.0)
    report = plan_report.PlanReport(PlanRows(traffic, link))
    write_to(output, force, lambda file: plan_report.write(report, style, file))
    if style == "csv":  # the other formats carry it themselves
        click.echo(report.summary, err=True)


# ---- from a measured run ----


def _make_forecast(
    folder: Path,
    spec: ModelSpec | None,
    rate: float | None,
    latency_s: float,
    sizes: dict[str, Any],
) -> Forecast:
    """Return the forecast from a run, of the sizes that stand on the command line."""
    from dejavubench.cli.plan_from import make_forecast

    if rate is None:
        raise BadInput(
            "--from needs --link, the rate of the link to predict for. Add it, such as --link "
            "25GB/s"
        )
    context = click.get_current_context()
    # Defaults of the options are not asked for: the run's own sizes come first.
    options = {
        key: value
        for key, value in sizes.items()
        if context.get_parameter_source(key) is not ParameterSource.DEFAULT
    }
    return make_forecast(folder, spec, rate, latency_s, options)


# ---- from options to setups ----


def _choose_spec(named_spec: ModelSpec | None, folder: Path | None) -> ModelSpec:
    from dejavubench.models.hub.checkpoint import CheckpointError, read_spec

    if named_spec is not None and folder is not None:
        raise BadInput("--model and --ckpt-path are both given, and each names a model. Drop one")
    if named_spec is not None:
        return named_spec
    if folder is None:
        raise BadInput(
            "no model is given. Add --model NAME or --ckpt-path DIR, or predict from a measured "
            "run with --from RUN --link RATE"
        )
    try:
        return read_spec(folder)
    except CheckpointError as error:
        raise BadInput(f"--ckpt-path: {error}") from None


def _make_traffic(spec: ModelSpec, request_count: int | None, sizes: dict[str, Any]) -> Traffic:
    """Return the traffic between the two setups that the options ask for."""
    from dejavubench.planning.traffic import plan_traffic

    cuts = _choose_cuts(spec, sizes, "", default=spec.layer_cuts(1))
    point, source = _make_side(
        spec, sizes, "sources", cuts, sizes["ubatch_size"], sizes["tensor_para_size"]
    )
    _, sink = _make_side(
        spec,
        sizes,
        "sinks",
        _choose_cuts(spec, sizes, "sink_", default=cuts),
        sizes["sink_ubatch_size"] or source.microbatch_size,
        sizes["sink_tensor_para_size"] or source.tensor_parallel,
    )
    in_flight = request_count or source.microbatch_size * source.stages
    for side, setup in (("sources", source), ("sinks", sink)):
        if in_flight % setup.microbatch_size:
            raise BadInput(
                f"{units.format_count_of(in_flight, 'request')} do not fill the {side}' "
                f"microbatches of {setup.microbatch_size}. Give --requests a multiple of both "
                "sides' microbatches"
            )
    try:
        return plan_traffic(point, source, sink, in_flight)
    except ValueError as error:
        raise BadInput(str(error)) from None


def _choose_cuts(
    spec: ModelSpec, sizes: dict[str, Any], side: str, default: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the cuts of a side: given ones, even ones for a given depth, or the default."""
    cuts = sizes[f"{side}layer_cuts"]
    stages = sizes[f"{side}pipeline_para_size"]
    cuts_flag, stages_flag = (
        f"--{side}{key}".replace("_", "-") for key in ("layer_cuts", "pipeline_para_size")
    )
    if cuts is None:
        try:
            return default if stages is None else spec.layer_cuts(stages)
        except ValueError as error:
            raise BadInput(f"{stages_flag} {stages}: {error}") from None
    cuts_text = f"{cuts_flag} {','.join(map(str, cuts))}"
    if cuts[-1] != spec.layer_num:
        raise BadInput(
            f"{cuts_text}: {spec.name} has {spec.layer_num} layers, so the last cut must be "
            f"{spec.layer_num}"
        )
    if stages not in (None, len(cuts) - 1):
        raise BadInput(
            f"{cuts_text} makes {units.format_count_of(len(cuts) - 1, 'stage')}, but {stages_flag} "
            f"is {stages}"
        )
    return cuts


def _make_side(
    spec: ModelSpec,
    sizes: dict[str, Any],
    side: str,
    cuts: tuple[int, ...],
    microbatch: int,
    tensor: int,
) -> tuple[Point, Setup]:
    """Return the sizes of one side's caches, and its setup."""
    from dejavubench.dejavulib.exchange import Setup

    needed_positions = sizes["input_len"] + sizes["output_len"]
    point = Point(
        id=side,
        spec=spec,
        data_type=sizes["data_type"],
        kv_layout=sizes["kv_layout"],
        ubatch_size=microbatch,
        input_len=sizes["input_len"],
        output_len=sizes["output_len"],
        positions=needed_positions if spec.context is None else min(needed_positions, spec.context),
        tensor_para_size=tensor,
        pipeline_para_size=len(cuts) - 1,
        flush_interval=sizes["flush_interval"],
    )
    if point.flush_interval > max(1, point.output_len - 1):
        raise BadInput(
            f"--flush-interval {point.flush_interval} is more than the {point.output_len - 1} "
            f"decode steps of --output-len {point.output_len}"
        )
    if point.problem:
        flags = "--sink-" if side == "sinks" else "--"
        raise BadInput(f"{side}: {point.problem_of(flags)}")
    try:
        return point, Setup(cuts, spec.kv_heads, tensor, microbatch)
    except ValueError as error:
        raise BadInput(f"{side}: {error}") from None
