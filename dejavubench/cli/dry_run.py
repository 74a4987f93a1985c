"""What ``dejavubench run --dry-run`` prints: ranks, memory, bytes and time of each point."""

from __future__ import annotations

import os
from collections.abc import Mapping

from rich import box
from rich.table import Table

from dejavubench import fit
from dejavubench.cli.console import console as console_on_stdout
from dejavubench.experiment import Experiment
from dejavubench.machine import available_nbytes
from dejavubench.points import ITEMSIZE, Point
from dejavubench.units import count_text, nbytes_text, seconds_text


def describe(experiment: Experiment) -> None:
    """Print the points of ``experiment`` to stdout; starts nothing."""
    console = console_on_stdout()
    rates, skipped, arms = fit.probe(), fit.reasons(experiment), experiment.arms()
    running = [point for point in experiment.points() if point.id not in skipped]

    console.print(
        f"{experiment.name}: {count_text(len(running) + len(skipped), 'point')}, {count_text(len(arms), 'arm')}"
    )
    console.print(f"Arms     {', '.join(arm.name for arm in arms)}")
    console.print(f"Each     {_rounds(experiment)}")
    console.print(f"Ranks    {_ranks(experiment)}")
    console.print(f"Memory   {nbytes_text(available_nbytes())} available; needs are those of all ranks on this host\n")
    console.print(_table(experiment, skipped, rates))
    console.print()
    for arm in arms:
        if arm.skipped:
            console.print(f"{arm.name} SKIPPED: {arm.skipped}")
    for identity, reason in skipped.items():
        console.print(f"{identity} SKIPPED: {reason}")
    for data_type in experiment.inference_data_type:
        if fit.weights_itemsize(data_type) != ITEMSIZE[data_type]:
            console.print(
                f"Weights of {data_type} models are held in fp32, as this CPU does not compute in {data_type}."
            )
    if running:
        total = seconds_text(sum(fit.point_seconds(experiment, point, rates) for point in running))
        console.print(
            f"About {total} in all; loading, verification and ceilings come on top. From rates measured just now in "
            f"0.1 s:\n{rates.matmul / 1e9:.0f} GFLOP/s in fp32 and {rates.read / 1e9:.1f} GB/s read by one of "
            f"{count_text(len(os.sched_getaffinity(0)), 'core')}."
        )
    else:
        console.print("No point can run here.")


def _table(experiment: Experiment, skipped: Mapping[str, str], rates: fit.Rates) -> Table:
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    for heading in ("point", "model", "type", "layout"):
        table.add_column(heading, no_wrap=True)
    sizes = ("ubatch", "prompt\n(tokens)", "new\n(tokens)", "cache\n(positions)")
    needs = (
        "ranks",
        "memory per\nsource",
        "memory per\nsink",
        "memory of\nall ranks",
        "streamed per\niteration",
        "on disk",
    )
    for heading in (*sizes, *needs, "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for point in experiment.points():
        table.add_row(*_row(experiment, point, point.id in skipped, rates))
    return table


def _row(experiment: Experiment, point: Point, skipped: bool, rates: fit.Rates) -> list[str]:
    sizes = [point.ubatch_size, point.input_len, point.output_len, point.positions]
    row = [point.id, point.spec.name, point.data_type, point.kv_layout, *map(str, sizes), str(experiment.ranks[0])]
    if point.problem:  # it fits nowhere, so there is nothing to add up
        return [*row, "", "", "", "", "", "SKIPPED"]
    needs = fit.memory(experiment, point)
    sinks = experiment.sources if experiment.needs_sinks else 0
    streams = any(arm.role == "streaming" and not arm.skipped for arm in experiment.arms())
    return [
        *row,
        nbytes_text(needs.source),
        nbytes_text(needs.sink) if sinks else "-",
        nbytes_text(needs.host(experiment.sources, sinks)),
        nbytes_text(point.pipeline_para_size * point.streamed_nbytes) if streams else "-",
        nbytes_text(experiment.sources * needs.disk) if needs.disk else "-",
        "SKIPPED" if skipped else seconds_text(fit.point_seconds(experiment, point, rates)),
    ]


def _rounds(experiment: Experiment) -> str:
    text = f"{count_text(experiment.warmup, 'warm-up iteration')}, {count_text(experiment.rounds, 'round')}"
    if experiment.precision is None:
        return text
    within = f"until overheads are within ± {100 * experiment.precision:g} %"
    return f"{text} and more {within}, {seconds_text(experiment.max_time)} a point at most"


def _ranks(experiment: Experiment) -> str:
    sources = count_text(experiment.sources, "source")
    split = f"tensor_para_size {experiment.tensor_para_size} × pipeline_para_size {experiment.pipeline_para_size}"
    sinks = ", as many sinks" if experiment.needs_sinks else ""
    return f"{' or '.join(map(str, experiment.ranks))} ({split} = {sources}{sinks})"
