"""``dejavubench run --dry-run``: ranks, memory, bytes and time of each point."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping

from dejavubench.analysis.tables import text_tables
from dejavubench.analysis.tables.headings import SETTING_HEADINGS, format_setting
from dejavubench.analysis.tables.text_tables import Block, TextLine, wrap
from dejavubench.cli import host_lines
from dejavubench.cli.console import make_console
from dejavubench.config.plan import Plan
from dejavubench.config.points import Point
from dejavubench.errors import UsageError
from dejavubench.planning import duration, fit
from dejavubench.planning.devices import explain_too_few_devices, number_devices
from dejavubench.planning.duration import Rates
from dejavubench.planning.memory import estimate_memory, make_worker_geometry
from dejavubench.units import format_binary_nbytes, format_count_of, format_duration


def describe(plan: Plan) -> None:
    """Print the points of ``plan`` to stdout; start nothing."""
    screen = make_console()
    host = fit.HostResources.here(plan)
    rates = duration.probe_core() if plan.experiment.device == "cpu" else None
    # Points that this session leaves out are neither skipped nor estimated.
    skip_reasons = {
        point_id: reason
        for point_id, reason in fit.find_skip_reasons(plan, host).items()
        if point_id in plan.starts
    }
    remarks = (
        *_describe_skipped(plan, skip_reasons),
        *_make_notes(plan, host),
        *_estimate_duration(plan, skip_reasons, rates),
    )
    indent = " " * len("Memory   ")
    text_tables.show(
        [
            *_wrap_texts(_make_heading(plan, host), screen.width, indent),
            TextLine(""),
            *text_tables.make_lines(_make_table(plan, host, skip_reasons, rates), screen.width),
            TextLine(""),
            *_wrap_texts(remarks, screen.width, "  "),
        ],
        screen,
    )


def _wrap_texts(texts: Iterable[str], width: int, indent: str) -> list[TextLine]:
    return [TextLine(line) for text in texts for line in wrap(text, width, indent)]


def _make_heading(plan: Plan, host: fit.HostResources) -> list[str]:
    """Return the lines above the table, a topic each; lines without content are left out."""
    return [
        f"{plan.experiment.name}: {format_count_of(len(plan.points), 'point')}, "
        f"{format_count_of(len(plan.arms), 'arm')}",
        f"Arms     {', '.join(arm.name for arm in plan.arms)}",
        f"Each     {_describe_rounds(plan)}",
        *_list_missing(plan),
        *([f"Settings {' '.join(settings)}"] if (settings := plan.experiment.settings()) else ()),
        f"Ranks    {_describe_ranks(plan)}",
        *([f"GPUs     {_format_devices(host)}"] if plan.experiment.device == "cuda" else ()),
        *(
            [f"Flush    {_describe_flush(plan)}"]
            if plan.experiment.is_given("flush_interval")
            else ()
        ),
        *host_lines.make_lines(plan),
        f"Memory   {format_binary_nbytes(host.memory_nbytes)} available; "
        "the table counts all ranks on this host",
    ]


def _list_missing(plan: Plan) -> list[str]:
    """Return the points that are measured, where they are not all points."""
    if plan.continued_run is not None:
        rounds = [
            f"{start.point}: {format_count_of(start.rounds, 'round')}"
            for start in plan.starts.values()
        ]
        return [f"Missing  {'; '.join(rounds) or 'nothing'}"]
    return [] if plan.only_points is None else [f"Points   {', '.join(plan.starts)} alone"]


def _describe_skipped(plan: Plan, skip_reasons: Mapping[str, str]) -> list[str]:
    arms = [f"{arm.name} SKIPPED: {arm.skipped}" for arm in plan.arms if arm.skipped]
    return arms + [f"{point_id} SKIPPED: {reason}" for point_id, reason in skip_reasons.items()]


def _make_notes(plan: Plan, host: fit.HostResources) -> list[str]:
    """Return the notes that a user should read before the run."""
    notes = []
    try:
        plan.check_threads(len(os.sched_getaffinity(0)))
    except UsageError as error:
        notes.append(f"Cannot run on this host: {error}.")
    gpu_problem = explain_too_few_devices(plan, host.devices)
    if gpu_problem:
        notes.append(f"Cannot run with all ranks on this host: {gpu_problem}.")
    notes += host_lines.make_notes(plan)
    interval = plan.experiment.flush_interval
    notes += [
        f"{point.id} has {format_count_of(point.generated_token_count - 1, 'decode step')}, fewer "
        f"than --flush-interval {interval}: they move as one, after the last of them."
        for point in plan.points
        if interval > max(1, point.generated_token_count - 1)
    ]
    if plan.checkpoint is not None:
        notes += [f"{note}." for note in plan.checkpoint.notes]
    for data_type in dict.fromkeys(point.data_type for point in plan.points):
        if plan.experiment.device == "cpu" and not duration.multiplies_natively(data_type):
            notes.append(
                f"{data_type} models are multiplied in fp32: this CPU does not compute in "
                f"{data_type}."
            )
    return notes


def _estimate_duration(
    plan: Plan, skip_reasons: Mapping[str, str], rates: Rates | None
) -> list[str]:
    """Return the estimate of the whole run, or why there is none."""
    if plan.continued_run is not None and not plan.starts:
        return [f"Nothing is missing in {plan.continued_run.folder}."]
    running_points = [
        point for point in plan.points if point.id in plan.starts and point.id not in skip_reasons
    ]
    if not running_points:
        return ["No point can run here."]
    if rates is None:
        return ["The time on a GPU is not estimated."]
    cores = format_count_of(len(os.sched_getaffinity(0)), "core")
    total = format_duration(
        sum(duration.estimate_point_s(plan, point, rates) for point in running_points)
    )
    return [
        f"About {total} in all, plus loading, verification and ceilings. Estimated from rates "
        f"measured just now in 0.1 s: {rates.matmul / 1e9:.0f} GFLOP/s in fp32 and "
        f"{rates.read / 1e9:.1f} GB/s read, on one of {cores}.",
    ]


# ---- the table ----

NAME_HEADINGS = ("point", "model", "type", "layout")
"""Headings of the columns that name a point."""

SIZE_HEADINGS = ("ubatch", "prompt\n(tokens)", "new\n(tokens)", "cache\n(pos.)")
"""Headings of the columns with a point's sizes."""


def _make_table(
    plan: Plan, host: fit.HostResources, skip_reasons: Mapping[str, str], rates: Rates | None
) -> Block:
    """Return sizes and needs of the points."""
    swept_options = plan.experiment.swept
    rows = [
        [
            *_make_size_cells(point),
            *(format_setting(getattr(point.settings, name)) for name in swept_options),
            *_need_cells(plan, point, host, point.id in skip_reasons, rates),
        ]
        for point in plan.points
    ]
    headings = [
        *NAME_HEADINGS,
        *SIZE_HEADINGS,
        *(SETTING_HEADINGS[name].replace(" ", "\n") for name in swept_options),
    ]
    return Block(
        "", [*headings, *_need_headings(plan)], len(NAME_HEADINGS), [rows], breaks=(len(headings),)
    )


def _make_size_cells(point: Point) -> tuple[str, ...]:
    counts = (point.ubatch_size, point.input_len, point.output_len, point.positions)
    return (point.id, point.spec.name, point.data_type, point.kv_layout, *map(str, counts))


def _need_headings(plan: Plan) -> tuple[str, ...]:
    per_gpu = ("GPU mem.\nper GPU",) if plan.experiment.device == "cuda" else ()
    needs = ("memory\nper source", "memory\nper sink", "memory\nall ranks", *per_gpu)
    return (*needs, "streamed\nper iter.", "on disk", "time")


def _need_cells(
    plan: Plan, point: Point, host: fit.HostResources, is_skipped: bool, rates: Rates | None
) -> list[str]:
    """Return a point's last cells, in the order of :func:`_need_headings`."""
    if point.problem:  # it fits nowhere, so there is nothing to add up
        return [*[""] * (len(_need_headings(plan)) - 1), "SKIPPED"]
    needs = estimate_memory(plan, point)
    source_count, sink_count = plan.source_count, plan.sink_count
    texts = [
        format_binary_nbytes(needs.source.host_nbytes),
        format_binary_nbytes(needs.sink.host_nbytes) if sink_count else "-",
        format_binary_nbytes(needs.host_nbytes(source_count, sink_count)),
    ]
    if plan.experiment.device == "cuda":
        # On a host without a GPU the table counts one for each rank.
        assigned_devices = number_devices(
            plan, source_count, sink_count, len(host.devices) or source_count + sink_count
        )
        texts.append(format_binary_nbytes(max(needs.nbytes_by_device(assigned_devices).values())))
    is_streaming = any(arm.is_streaming for arm in plan.unskipped_arms)
    duration_text = "-"
    if rates is not None and point.id in plan.starts:
        duration_text = format_duration(duration.estimate_point_s(plan, point, rates))
    return [
        *texts,
        format_binary_nbytes(point.pipeline_para_size * point.streamed_nbytes)
        if is_streaming
        else "-",
        format_binary_nbytes(source_count * needs.disk_nbytes) if needs.disk_nbytes else "-",
        "SKIPPED" if is_skipped else duration_text,
    ]


# ---- the lines above it ----


def _format_devices(host: fit.HostResources) -> str:
    """Return ``2 × NVIDIA H200 (139.8 GiB)``."""
    if not host.devices:
        return "none here; the table counts one per rank"
    devices = Counter((device.name, device.nbytes) for device in host.devices)
    return ", ".join(
        f"{count} × {name} ({format_binary_nbytes(nbytes)})"
        for (name, nbytes), count in devices.items()
    )


def _describe_rounds(plan: Plan) -> str:
    experiment = plan.experiment
    warmups = format_count_of(experiment.warmup, "warm-up iteration")
    continued_run = plan.continued_run
    round_count = experiment.rounds if continued_run is None else continued_run.round_count
    text = f"{warmups}, {format_count_of(round_count, 'round')}"
    if experiment.precision is None:
        return text
    return (
        f"{text} or more, until overheads are within ± {100 * experiment.precision:g} %; at most "
        f"{format_duration(experiment.max_time)} per point"
    )


def _describe_flush(plan: Plan) -> str:
    """Return the size of a group of steps, and how far the stream lags."""
    points = [point for point in plan.points if not point.problem]
    most_nbytes = max(
        (
            point.most_flushed_token_count
            * point.ubatch_size
            * make_worker_geometry(point).token_nbytes
            for point in points
        ),
        default=0,
    )
    return (
        f"every {plan.experiment.flush_interval} tokens, up to {format_binary_nbytes(most_nbytes)} "
        "per microbatch and source; the stream lags by up to as much"
    )


def _describe_ranks(plan: Plan) -> str:
    experiment = plan.experiment
    sources = format_count_of(plan.source_count, "source")
    split = (
        f"tensor_para_size {experiment.tensor_para_size} × "
        f"pipeline_para_size {experiment.pipeline_para_size}"
    )
    sinks = f", {plan.sinks_text}" if plan.needs_sinks else ""
    return f"{' or '.join(map(str, plan.rank_counts))} ({split} = {sources}{sinks})"
