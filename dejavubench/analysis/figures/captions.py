"""Captions of figures: machine, sizes, number of rounds, and what to beware of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dejavubench.analysis.facts import source_ranks
from dejavubench.analysis.facts.arm_destinations import info_of, loopback_of
from dejavubench.analysis.number_texts import signed_percent
from dejavubench.analysis.numbers import stats
from dejavubench.analysis.tables import health, run_rows
from dejavubench.analysis.tables.rows import POINT_COLUMNS
from dejavubench.analysis.tables.text_cells import SIZE_HEADINGS
from dejavubench.records import Run

if TYPE_CHECKING:
    import pandas as pd


def _named_sizes(frame: pd.DataFrame) -> list[str]:
    """Return the sizes that the caption names: sinks only if they differ from the sources."""
    # "" and 0 mean: as the sources, and no hand-over.
    usual = {name for name in ("sinks", "handed_over") if not frame[name].any()}
    return [name for name in POINT_COLUMNS if name not in {"model", *usual}]


def caption(
    runs: Sequence[Run],
    frame: pd.DataFrame,
    method: str,
    remarks: Sequence[str],
    error_bars: bool = True,
) -> str:
    """Return the sentences below a figure.

    Args:
        frame: the data that is drawn.
        method: how the values were computed.
        remarks: sentences that only this figure has; empty ones are left out.
        error_bars: the figure draws intervals.
    """
    sentences = [
        # Runs that are drawn together are of one machine: drawings.py refuses others.
        machine_text(runs[0]),
        f"Model {_models(runs, frame)}, "
        + ", ".join(f"{SIZE_HEADINGS[name]} {_values(frame, name)}" for name in _named_sizes(frame))
        + ".",
        _settings(runs),
        f"{method} {_rounds(frame) if error_bars else ''}".rstrip(),
        _paths(runs, frame),
        *remarks,
        _describe_left_out(runs),
        *dict.fromkeys(health.brief_health(run) for run in runs),
        *dict.fromkeys(f"Note: {_shorten(run.header.note)}." for run in runs if run.header.note),
        "Run " + ", ".join(run.path.name for run in runs) + ".",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _settings(runs: Sequence[Run]) -> str:
    """Return the options that differ from their defaults, run by run where runs differ in them."""
    by_run = {run.path.name: " ".join(run.header.settings or []) for run in runs}
    if len(set(by_run.values())) > 1:
        # A run without settings among others is named too, or a reader would take theirs for its
        # own.
        words = [f"{run}: {flags or 'none'}" for run, flags in by_run.items()]
        return f"Settings: {'; '.join(words)}."
    flags = next(iter(by_run.values()))
    return f"Settings: {flags}." if flags else ""


LONGEST_NOTE = 1000
"""Characters of a note that a caption has room for."""


def _shorten(note: str) -> str:
    return note if len(note) <= LONGEST_NOTE else note[: LONGEST_NOTE - 1] + "…"


def machine_text(run: Run) -> str:
    """Return GPU or CPU, cores, hosts, software and date, as far as the run recorded them."""
    where = run.header.where
    hosts, torch = len(where.hostnames), where.versions.get("torch")
    cores = "CPU cores" if source_ranks.on_gpu(run) else "cores"
    words = [
        source_ranks.processor(run) or "CPU not recorded",
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
    infos = [info_of(run, arm) for arm in run.header.arms]
    names = dict.fromkeys(info.library for info in infos if info is not None and info.library)
    # Keys of the environment have the library's name, so a plugin's library is found as well.
    versions = {name: getattr(run.header.where.gpu, name, None) for name in names}
    return [f"{name.upper()} {version}" for name, version in versions.items() if version]


def panel(frame: pd.DataFrame, columns: Sequence[str]) -> str:
    """Return the title of a panel: the given columns of its first row, in words."""
    first = frame.iloc[0]
    return ", ".join(
        f"{first[name]}" if name == "model" else f"{SIZE_HEADINGS[name]} {first[name]}"
        for name in columns
    )


def _models(runs: Sequence[Run], frame: pd.DataFrame) -> str:
    # The frame has only points with rounds; parameters stand in the header alone.
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
        if (variant := loopback_of(run, arm))
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


def noise(frame: pd.DataFrame) -> str:
    """Return the noise floor of TOTAL; empty if it was not measured."""
    if not has_noise(frame):
        return ""
    # Fig 7 has a floor for each phase; the caption states that of TOTAL.
    part = frame[frame["phase"] == "total"] if "phase" in frame else frame
    # Of several points, the range that covers all of their intervals.
    low, high = part["noise_floor_low_pct"].min(), part["noise_floor_high_pct"].max()
    return (
        f"Noise floor of TOTAL (none#2 / none): {signed_percent(low)} to {signed_percent(high)} %."
    )


def has_noise(frame: pd.DataFrame) -> bool:
    return "noise_floor_low_pct" in frame and bool(frame["noise_floor_low_pct"].notna().any())


def _describe_left_out(runs: Sequence[Run]) -> str:
    places: dict[str, list[str]] = {}
    for run in runs:
        for row in run_rows.run_rows(run):
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
