"""Captions of figures: machine, sizes, number of rounds, and what to beware of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dejavubench.analysis import health, link, machine, stats, tables
from dejavubench.analysis.blocks import SIZE_HEADINGS
from dejavubench.analysis.rows import POINT_COLUMNS
from dejavubench.analysis.words import signed_percent
from dejavubench.records import Run
from dejavubench.records.destinations import DestinationInfo, shown

if TYPE_CHECKING:
    import pandas as pd

_TITLES = {
    "fig2": "Fig 2: time of a prompt and of one token, no streaming",
    "appendix_a": "Appendix A: time of a prompt and of one token, no streaming",
    "fig7": "Fig 7: slowdown over no streaming, one optimisation after the other",
    "fig25": "Fig 25: a request with its whole KV cache streamed",
    "link": "Overhead against the speed of the link, level by level: measured and predicted",
}

_MEDIANS = "Medians over rounds. The ratio divides a round's prompt time by its median token time."

_HOW = {
    "fig2": _MEDIANS,
    "appendix_a": _MEDIANS,
    "fig7": "Slowdown: the arm's time divided by the geometric mean of the same round's none "
    "times, median over rounds. Bars start at 1 (no streaming).",
    "fig25": "TOTAL: median over rounds. Overhead: TOTAL divided by the geometric mean of the same "
    "round's none TOTALs, less one, median over rounds.",
    "link": "Points: TOTAL divided by the geometric mean of the same round's none TOTALs, less "
    "one, median over rounds. Lines: predicted from bytes, the times of none and the link's rate "
    "alone (docs/METHOD.md).",
}

_SECOND_HAND = (
    "Second-hand, of the paper's figure (A100, fp16; not verified): naive streaming 131× "
    "(GPT2-1.5B), 92× (OPT-13B), 69× (OPT-66B); buffered copies 95 times faster than naive, both "
    "further steps another 1.4."
)
"""Numbers of FasterTransformer's layout on GPUs, below a figure of the same kind; drawn nowhere."""


def title(figure: str, models: Sequence[str]) -> str:
    return f"{_TITLES[figure]} ({models[0]})" if len(models) == 1 else _TITLES[figure]


def _said(frame: pd.DataFrame) -> list[str]:
    """Return the sizes that the caption names: sinks only if they differ from the sources."""
    usual = {name for name in ("sinks", "handed_over") if not frame[name].any()}
    return [name for name in POINT_COLUMNS if name not in {"model", *usual}]


def caption(figure: str, runs: Sequence[Run], frame: pd.DataFrame) -> str:
    """Return the sentences below a figure; ``frame`` is the data that is drawn."""
    sentences = [
        machine_text(runs[0]),
        f"Model {_models(runs, frame)}, "
        + ", ".join(f"{SIZE_HEADINGS[name]} {_values(frame, name)}" for name in _said(frame))
        + ".",
        f"{_HOW[figure]} {_rounds(frame)}",
        _paths(runs, frame),
        _link(runs, frame) if figure == "link" else "",
        _noise(figure, frame),
        _paper(figure, runs, frame),
        _left_out(runs),
        *dict.fromkeys(health.brief(run) for run in runs),
        *dict.fromkeys(f"Note: {_shortened(run.header.note)}." for run in runs if run.header.note),
        "Run " + ", ".join(run.path.name for run in runs) + ".",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


LONGEST_NOTE = 1000
"""Characters of a note that a caption has room for."""


def _shortened(note: str) -> str:
    return note if len(note) <= LONGEST_NOTE else note[: LONGEST_NOTE - 1] + "…"


def machine_text(run: Run) -> str:
    """Return GPU or CPU, cores, hosts, software and date, as far as the run recorded them."""
    where = run.header.where
    hosts, torch = len(where.hostnames), where.versions.get("torch")
    cores = "CPU cores" if machine.on_gpu(run) else "cores"
    words = [
        machine.processor(run) or "CPU not recorded",
        f"{where.cores} {cores}" if where.cores else None,
        f"{hosts} host{'' if hosts == 1 else 's'}" if hosts else None,
        f"torch {torch}" if torch else None,
        f"CUDA {where.gpu.cuda}" if where.gpu.cuda else None,
        *_libraries(run),
        where.mpi_library,
        (where.date or run.header.started_utc)[:10],
    ]
    return (
        ", ".join(" ".join(str(word).replace("Version:", "").split()) for word in words if word)
        + "."
    )


def _libraries(run: Run) -> list[str]:
    """Return the libraries that move chunks, with the versions recorded for the GPU."""
    infos = [machine.info_of(run, arm) for arm in run.header.arms]
    names = dict.fromkeys(info.library for info in infos if info is not None and info.library)
    versions = {name: getattr(run.header.where.gpu, name, None) for name in names}
    return [f"{name.upper()} {version}" for name, version in versions.items() if version]


def _paper(figure: str, runs: Sequence[Run], frame: pd.DataFrame) -> str:
    return (
        _SECOND_HAND
        if figure == "fig7" and machine.on_gpu(runs[0]) and "ft" in set(frame["kv_layout"])
        else ""
    )


def panel(frame: pd.DataFrame, columns: Sequence[str]) -> str:
    """Return the title of a panel: the given columns of its first row, in words."""
    first = frame.iloc[0]
    return ", ".join(
        f"{first[name]}" if name == "model" else f"{SIZE_HEADINGS[name]} {first[name]}"
        for name in columns
    )


def _models(runs: Sequence[Run], frame: pd.DataFrame) -> str:
    sizes = {point.model: point.parameters for run in runs for point in run.header.points}
    return "/".join(
        f"{model} ({sizes[model] / 1e6:,.1f} M parameters)"
        for model in dict.fromkeys(frame["model"])
    )


def _values(frame: pd.DataFrame, name: str) -> str:
    return "/".join(str(value) for value in dict.fromkeys(frame[name]))


def _rounds(frame: pd.DataFrame) -> str:
    low, high = int(frame["samples"].min()), int(frame["samples"].max())
    if high == 1:
        return "n = 1 round, so there are no intervals."
    rounds = f"n = {low} rounds." if low == high else f"n = {low} to {high} rounds."
    if low < stats.COVERING_ROUNDS:
        return f"Error bars: no 95 % intervals, which need {stats.COVERING_ROUNDS} rounds; {rounds}"
    wide = " Intervals of so few rounds are wide." if low < stats.FEW_ROUNDS else ""
    return f"Error bars: 95 % bootstrap intervals of the median, {rounds}{wide}"


def _paths(runs: Sequence[Run], frame: pd.DataFrame) -> str:
    if "hosts" not in frame:
        return ""
    loopbacks = {
        variant.name
        for run in runs
        for arm in run.header.arms
        if (variant := machine.loopback(run, arm))
    }
    words = []
    for (mode, hosts), part in frame[frame["hosts"].notna()].groupby(["mode", "hosts"], sort=False):
        durability = "/".join(dict.fromkeys(part["durability"].dropna()))
        words.append(f"{mode}: {hosts}" + (f", durability {durability}" if durability else ""))
    shared = (
        " Both ranks share the GPU: no rate of a remote GPU."
        if loopbacks & set(frame["mode"])
        else ""
    )
    return "; ".join(words) + "." + shared if words else ""


def _link(runs: Sequence[Run], frame: pd.DataFrame) -> str:
    """Return the rate of the link, and the speeds from which on overheads stay near zero."""
    found = []
    for (mode, level), part in frame.groupby(["mode", "level"], sort=False):
        request = link.typical(part.to_dict("records"))
        leaves = None if request is None else request.leaves_zero(str(level))
        above = link.fastest_above(
            part["link_mb_per_s"].tolist(), part["overhead_low_pct"].tolist()
        )
        speeds = [None if leaves is None else leaves / 1e3, above]
        words = ["none" if speed is None else _three_digits(speed) for speed in speeds]
        found.append(f"{mode} level {level} {' / '.join(words)}")
    infos = destinations(runs)
    rates = [shown(mode, infos).link_rate or mode for mode in dict.fromkeys(frame["mode"])]
    predicted = frame[frame["predicted_overhead_pct"].notna()].to_dict("records")
    return (
        f"Link limited to {', '.join(dict.fromkeys(frame['link']))}; its speed is the median of "
        f"{' and '.join(rates)} in the same session. Speed in MB/s from which the overhead stays "
        f"within {link.LEAVES_PCT:g} %, predicted / fastest measured whose whole interval is "
        f"above: {'; '.join(found)}. "
        f"{link.in_interval(predicted)} of {len(predicted)} intervals hold the "
        "prediction for their session."
    )


def destinations(runs: Sequence[Run]) -> dict[str, DestinationInfo]:
    """Return the destinations of all runs by mode."""
    return {mode: info for run in runs for mode, info in machine.destinations(run).items()}


def _three_digits(value: float) -> str:
    """Return a speed with three digits, without an exponent."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def _noise(figure: str, frame: pd.DataFrame) -> str:
    if "noise_floor_low_pct" not in frame or frame["noise_floor_low_pct"].isna().all():
        return ""
    if figure == "fig25":
        return (
            "Grey band: ± the largest difference (95 % interval) between the two identical "
            "baselines; dotted: the first baseline."
        )
    part = frame[frame["phase"] == "total"] if "phase" in frame else frame
    low, high = part["noise_floor_low_pct"].min(), part["noise_floor_high_pct"].max()
    return (
        f"Noise floor of TOTAL (none#2 / none): {signed_percent(low)} to {signed_percent(high)} %."
    )


def _left_out(runs: Sequence[Run]) -> str:
    places: dict[str, list[str]] = {}
    for run in runs:
        for row in tables.run_rows(run):
            if not row.ok:
                sizes = row.sizes
                where = (
                    f"{sizes.model} batch {sizes.ubatch_size} prompt {sizes.input_len} {row.arm}"
                )
                places.setdefault(row.status, []).append(where)
    words = [f"{status}: {names[0]}{_and_more(names)}" for status, names in places.items()]
    return "Not shown: " + "; ".join(words) + "." if words else ""


def _and_more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
