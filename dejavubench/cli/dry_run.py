"""What ``dejavubench run --dry-run`` prints: ranks, memory, bytes and time of each point."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from dejavubench.cli import conditions
from dejavubench.cli.console import console as console_on_stdout
from dejavubench.config.experiment import Experiment
from dejavubench.config.points import Point
from dejavubench.errors import UsageError
from dejavubench.machine.hardware import available_nbytes, cuda_devices
from dejavubench.planning import fit
from dejavubench.units import count_text, nbytes_text, seconds_text


def describe(experiment: Experiment) -> None:
    """Print the points of ``experiment`` to stdout; starts nothing."""
    console = console_on_stdout()
    rates = fit.probe() if experiment.device == "cpu" else None
    skipped, arms = fit.reasons(experiment, devices=cuda_devices), experiment.arms()
    running = [point for point in experiment.points() if point.id not in skipped]

    console.print(
        f"{experiment.name}: {count_text(len(running) + len(skipped), 'point')}, {count_text(len(arms), 'arm')}"
    )
    console.print(f"Arms     {', '.join(arm.name for arm in arms)}")
    console.print(f"Each     {_rounds(experiment)}")
    console.print(f"Ranks    {_ranks(experiment)}")
    if experiment.device == "cuda":
        console.print(f"GPUs     {_devices()}")
    for line in conditions.lines(experiment):
        console.print(line, markup=False)
    console.print(
        f"Memory   {nbytes_text(available_nbytes())} available; needs are those of all ranks on this host\n"
    )
    for table in _tables(console, experiment, skipped, rates):
        console.print(table)
        console.print()
    for arm in arms:
        if arm.skipped:
            console.print(f"{arm.name} SKIPPED: {arm.skipped}")
    for identity, reason in skipped.items():
        console.print(f"{identity} SKIPPED: {reason}")
    try:
        experiment.check_threads(len(os.sched_getaffinity(0)))
    except UsageError as error:
        console.print(f"Not on this host: {error}.")
    shared = fit.too_few_devices(experiment, devices=cuda_devices)
    if shared:
        console.print(f"Not with all ranks on this host: {shared}.")
    for note in conditions.notes(experiment):
        console.print(note, markup=False)
    for note in () if experiment.checkpoint is None else experiment.checkpoint.notes:
        console.print(f"{note}.", markup=False)
    for data_type in experiment.inference_data_type:
        if experiment.device == "cpu" and not fit.multiplied(data_type):
            console.print(
                f"Weights of {data_type} models are multiplied in fp32, as this CPU does not compute in {data_type}."
            )
    if not running:
        console.print("No point can run here.")
    elif rates is None:
        console.print("How long it takes on a GPU is not estimated.")
    else:
        total = seconds_text(sum(fit.point_seconds(experiment, point, rates) for point in running))
        console.print(
            f"About {total} in all; loading, verification and ceilings come on top. From rates measured just now in "
            f"0.1 s:\n{rates.matmul / 1e9:.0f} GFLOP/s in fp32 and {rates.read / 1e9:.1f} GB/s read by one of "
            f"{count_text(len(os.sched_getaffinity(0)), 'core')}."
        )


SIZES = ("model", "type", "layout", "ubatch", "prompt\n(tokens)", "new\n(tokens)", "cache\n(pos.)")
NAMES = frozenset({"point", "model", "type", "layout"})


def _tables(
    console: Console, experiment: Experiment, skipped: Mapping[str, str], rates: fit.Rates | None
) -> list[Table]:
    """What the points are and what they need: side by side, or one below the other where that is too wide."""
    points = experiment.points()
    sizes = [("point", *SIZES), *(_sizes(point) for point in points)]
    needs = [
        _headings(experiment),
        *(_needs(experiment, point, point.id in skipped, rates) for point in points),
    ]
    wide = _table([[*size, *need] for size, need in zip(sizes, needs, strict=True)])
    unbounded = console.options.update(max_width=1000)
    if console.measure(wide, options=unbounded).maximum <= console.width:
        return [wide]
    return [
        _table(sizes),
        _table([[size[0], *need] for size, need in zip(sizes, needs, strict=True)]),
    ]


def _table(rows: Sequence[Sequence[str]]) -> Table:
    """The first row has the headings."""
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
    for heading in rows[0]:
        table.add_column(heading, justify="left" if heading in NAMES else "right", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _sizes(point: Point) -> tuple[str, ...]:
    numbers = (point.ubatch_size, point.input_len, point.output_len, point.positions)
    return (point.id, point.spec.name, point.data_type, point.kv_layout, *map(str, numbers))


def _headings(experiment: Experiment) -> tuple[str, ...]:
    of_a_card = ("GPU mem.\nof a card",) if experiment.device == "cuda" else ()
    memory = ("memory of\na source", "memory of\na sink", "memory of\nall ranks", *of_a_card)
    return (*memory, "streamed\nan iter.", "on disk", "time")


def _needs(
    experiment: Experiment, point: Point, skipped: bool, rates: fit.Rates | None
) -> list[str]:
    if point.problem:  # it fits nowhere, so there is nothing to add up
        return [*[""] * (len(_headings(experiment)) - 1), "SKIPPED"]
    needs = fit.memory(experiment, point)
    sources, sinks = experiment.sources, experiment.sinks if experiment.needs_sinks else 0
    memory = [
        nbytes_text(needs.source.host),
        nbytes_text(needs.sink.host) if sinks else "-",
        nbytes_text(needs.host(sources, sinks)),
    ]
    if experiment.device == "cuda":
        cards = fit.cards(experiment, sources, sinks, len(cuda_devices()) or sources + sinks)
        memory.append(nbytes_text(max(needs.devices(cards).values())))
    streams = any(arm.role == "streaming" and not arm.skipped for arm in experiment.arms())
    seconds = "-" if rates is None else seconds_text(fit.point_seconds(experiment, point, rates))
    return [
        *memory,
        nbytes_text(point.pipeline_para_size * point.streamed_nbytes) if streams else "-",
        nbytes_text(sources * needs.disk) if needs.disk else "-",
        "SKIPPED" if skipped else seconds,
    ]


def _devices() -> str:
    """``2 × NVIDIA H200 (139.8 GiB)``"""
    if not cuda_devices():
        return "none here; needs are those of one for each rank"
    kinds = Counter((device.name, device.nbytes) for device in cuda_devices())
    return ", ".join(
        f"{count} × {name} ({nbytes_text(nbytes)})" for (name, nbytes), count in kinds.items()
    )


def _rounds(experiment: Experiment) -> str:
    text = f"{count_text(experiment.warmup, 'warm-up iteration')}, {count_text(experiment.rounds, 'round')}"
    if experiment.precision is None:
        return text
    within = f"until overheads are within ± {100 * experiment.precision:g} %"
    return f"{text} and more {within}, {seconds_text(experiment.max_time)} a point at most"


def _ranks(experiment: Experiment) -> str:
    sources = count_text(experiment.sources, "source")
    split = f"tensor_para_size {experiment.tensor_para_size} × pipeline_para_size {experiment.pipeline_para_size}"
    sinks = f", {experiment.sinks_text}" if experiment.needs_sinks else ""
    return f"{' or '.join(map(str, experiment.ranks))} ({split} = {sources}{sinks})"
