"""Captions of figures: what was run on what, how to read it, and what to beware of.

A caption has room for about three lines. Versions, the exact method and other numbers are in the
:mod:`~dejavubench.analysis.figures.descriptions` that picture files carry, and in the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dejavubench.analysis.facts import source_ranks
from dejavubench.analysis.facts.arm_destinations import info_of, loopback_of, run_destinations
from dejavubench.analysis.figures.left_out import left_out_sentence
from dejavubench.analysis.figures.shared_columns import is_loopback
from dejavubench.analysis.numbers import stats
from dejavubench.analysis.tables import ending_part
from dejavubench.analysis.tables.headings import HEADINGS, format_setting
from dejavubench.analysis.tables.process_columns import SETTING_COLUMNS
from dejavubench.records import Run
from dejavubench.units import format_count_of

if TYPE_CHECKING:
    import pandas as pd

LONGEST_NOTE = 1000
"""Characters of a note that a caption has room for."""

SIZE_WORDS: dict[str, Callable[[object], str]] = {
    "data_type": "{}".format,
    "kv_layout": "KV layout {}".format,
    "ubatch_size": "batch {}".format,
    "input_len": "prompt {}".format,
    "output_len": "{} new tokens".format,
    "tensor_para_size": "tensor parallel {}".format,
    "pipeline_para_size": "pipeline depth {}".format,
    "sinks": "sinks {}".format,
    "handed_over": "handed over after {} tokens".format,
}

USUAL_SIZES: dict[str, object] = {
    "tensor_para_size": 1,
    "pipeline_para_size": 1,
    "sinks": "",
    "handed_over": 0,
}
"""Values of sizes that a caption need not name."""


def make_caption(
    runs: Sequence[Run],
    frame: pd.DataFrame,
    reading: str,
    remarks: Sequence[str],
    has_error_bars: bool = True,
) -> str:
    """Return the sentences below a figure.

    Args:
        frame: the data that is drawn.
        reading: how the figure is read.
        remarks: sentences that only this figure has; empty ones are left out.
        has_error_bars: the figure draws intervals.
    """
    subject = [
        format_models(runs, frame),
        *_list_common_sizes(frame),
        *_find_common_level(frame),
        *_list_thread_counts(runs),
    ]
    subject += _list_common_settings(runs, frame)
    sentences = [
        f"{', '.join(subject)}. "
        # Runs that are drawn together are of one machine: drawings.py refuses others.
        f"{describe_machine_briefly(runs[0])}.",
        reading,
        rounds_sentence(frame) if has_error_bars else "",
        *remarks,
        disks_sentence(runs, frame),
        warn_of_loopback(runs, frame),
        settings_sentence(runs, frame),
        left_out_sentence(runs),
        *dict.fromkeys(ending_part.describe_health(run) for run in runs),
        *dict.fromkeys(f"Note: {_shorten(run.header.note)}." for run in runs if run.header.note),
        run_names(runs),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def format_panel_title(frame: pd.DataFrame, columns: Sequence[str]) -> str:
    """Return the title of a panel: the given columns of its first row, in words."""
    first_row = frame.iloc[0]
    return ", ".join(
        f"{first_row[name]}"
        if name == "model"
        else f"{HEADINGS[name]} {format_setting(first_row[name])}"
        for name in columns
    )


# ---- what was run ----


def format_models(runs: Sequence[Run], frame: pd.DataFrame) -> str:
    """Return the models of the points with rounds, each with its number of parameters."""
    # The frame has only points with rounds; parameters stand in the header alone.
    sizes = {point.model: point.parameters for run in runs for point in run.header.points}
    return ", ".join(
        f"{model} ({_format_parameters(sizes[model])})" for model in dict.fromkeys(frame["model"])
    )


def _format_parameters(count: int) -> str:
    """Write a number of parameters as names of models do: 124.4 M, 12.9 B."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} B"
    return f"{count / 1e6:,.1f} M"


def _list_common_sizes(frame: pd.DataFrame) -> list[str]:
    """Return the sizes that all points have in common; axes and panels show the others."""
    common_values = {name: frame[name].iloc[0] for name in SIZE_WORDS if frame[name].nunique() == 1}
    return [
        SIZE_WORDS[name](value)
        for name, value in common_values.items()
        if value != USUAL_SIZES.get(name)
    ]


def list_swept_settings(runs: Sequence[Run]) -> list[str]:
    """Return the settings that some run varies from point to point."""
    points = [point for run in runs for point in run.header.points]
    return [
        name
        for name in SETTING_COLUMNS
        # A run of one value has it in its experiment alone.
        if any(getattr(point, name) is not None for point in points)
    ]


def _list_common_settings(runs: Sequence[Run], frame: pd.DataFrame) -> list[str]:
    """Return the settings of a sweep that all of the drawing's points have in common."""
    common_names = [
        name for name in list_swept_settings(runs) if frame[name].nunique(dropna=False) == 1
    ]
    return [f"{HEADINGS[name]} {format_setting(frame[name].iloc[0])}" for name in common_names]


def _find_common_level(frame: pd.DataFrame) -> list[str]:
    """Return the level if there is one; several are told apart in the figure itself."""
    levels = list(dict.fromkeys(frame["level"].dropna())) if "level" in frame else []
    return [f"level {levels[0]}"] if len(levels) == 1 else []


def _list_thread_counts(runs: Sequence[Run]) -> list[str]:
    """Return the threads of each source, unless the settings name them or a sweep varies them."""
    thread_counts = sorted(
        {rank.threads for run in runs for rank in source_ranks.list_sources(run)}
    )
    are_named = any(
        flag.startswith("--threads ") for run in runs for flag in run.header.settings or []
    )
    if not thread_counts or are_named or "threads" in list_swept_settings(runs):
        return []
    return [f"{'/'.join(map(str, thread_counts))} thread{'' if thread_counts == [1] else 's'}"]


def describe_machine_briefly(run: Run) -> str:
    """Return GPU or CPU, cores, hosts if there are several, and the date."""
    facts = run.header.facts
    cores = "CPU cores" if source_ranks.ran_on_gpu(run) else "cores"
    texts = [
        source_ranks.name_processor(run) or "CPU not recorded",
        f"{facts.cores} {cores}" if facts.cores else None,
        f"{len(facts.hostnames)} hosts" if len(facts.hostnames) > 1 else None,
        (facts.date or run.header.started_utc)[:10],
    ]
    return ", ".join(text for text in texts if text)


def describe_machine(run: Run) -> str:
    """Return GPU or CPU, cores, hosts, software and date, as far as the run recorded them."""
    facts = run.header.facts
    host_count = len(facts.hostnames)
    torch = facts.versions.get("torch")
    core_noun = "CPU cores" if source_ranks.ran_on_gpu(run) else "cores"
    texts = [
        source_ranks.name_processor(run) or "CPU not recorded",
        f"{facts.cores} {core_noun}" if facts.cores else None,
        format_count_of(host_count, "host") if host_count else None,
        f"torch {torch}" if torch else None,
        f"CUDA {facts.gpu.cuda}" if facts.gpu.cuda else None,
        *_list_libraries(run),
        facts.mpi_library,
        (facts.date or run.header.started_utc)[:10],
    ]
    return (
        ", ".join(" ".join(str(text).replace("Version:", "").split()) for text in texts if text)
        + "."
    )


def _list_libraries(run: Run) -> list[str]:
    """Return the libraries that move chunks, with the versions recorded for the GPU."""
    infos = [info_of(run, arm) for arm in run.header.arms]
    libraries = dict.fromkeys(info.library for info in infos if info is not None and info.library)
    # Keys of the environment have the library's name, so a plugin's library is found as well.
    versions = {name: getattr(run.header.facts.gpu, name, None) for name in libraries}
    return [f"{name.upper()} {version}" for name, version in versions.items() if version]


def settings_sentence(runs: Sequence[Run], frame: pd.DataFrame) -> str:
    """Return the options that differ from their defaults, run by run where runs differ in them."""
    by_run = {
        run.path.name: [
            flag
            for flag in run.header.settings or []
            # The axis of the link figure shows the links.
            if not ("link" in frame and flag.startswith("--link "))
        ]
        for run in runs
    }
    first_flags, *other_flags = by_run.values()
    common_flags = [flag for flag in first_flags if all(flag in flags for flags in other_flags)]
    own_flags = {
        name: [flag for flag in flags if flag not in common_flags] for name, flags in by_run.items()
    }
    texts = [" ".join(common_flags)] if common_flags else []
    if any(own_flags.values()):
        # A run without settings among others is named too, or a reader would take theirs for its
        # own.
        texts += [f"{name}: {' '.join(flags) or 'none'}" for name, flags in own_flags.items()]
    return f"Settings: {'; '.join(texts)}." if texts else ""


def run_names(runs: Sequence[Run]) -> str:
    """Return the folders' names; of more than three, the first and the last."""
    run_folders = [run.path.name for run in runs]
    if len(run_folders) > 3:
        return f"{len(run_folders)} runs, {run_folders[0]} to {run_folders[-1]}."
    return f"Run{'s' if len(run_folders) > 1 else ''} {', '.join(run_folders)}."


def _shorten(note: str) -> str:
    return note if len(note) <= LONGEST_NOTE else note[: LONGEST_NOTE - 1] + "…"


# ---- what to beware of ----


def rounds_sentence(frame: pd.DataFrame) -> str:
    """Return the number of rounds, and what the error bars are."""
    low, high = int(frame["samples"].min()), int(frame["samples"].max())
    rounds_text = f"{low}" if low == high else f"{low} to {high}"
    if high == 1:
        return "1 round, so there are no intervals."
    if low < stats.COVERING_ROUND_COUNT:
        return (
            f"{rounds_text} rounds: error bars are narrower than 95 % intervals, which need "
            f"{stats.COVERING_ROUND_COUNT}."
        )
    return f"{rounds_text} rounds, 95\N{NO-BREAK SPACE}% intervals."


def disks_sentence(runs: Sequence[Run], frame: pd.DataFrame) -> str:
    """Return file system and device of the disks that were written to, as far as recorded."""
    if "mode" not in frame:
        return ""
    drawn_modes = set(frame["mode"])
    disks = dict.fromkeys(
        f"{folder.type} on {folder.device or folder.source}"
        for run in runs
        if any(
            run_destinations(run)[mode].on_storage
            for mode in drawn_modes & set(run_destinations(run))
        )
        for rank in source_ranks.list_sources(run)
        if (folder := rank.facts.stream_dir) is not None
    )
    return f"Disk: {', '.join(disks)}." if disks else ""


def list_host_places(frame: pd.DataFrame) -> str:
    """Return where the destinations are, unless they are local or the loopback of a GPU."""
    modes: dict[str, list[str]] = {}
    rows_with_hosts = frame[frame["hosts"].notna()].drop_duplicates(["mode", "hosts"])
    for mode, hosts in zip(rows_with_hosts["mode"], rows_with_hosts["hosts"], strict=True):
        if hosts != "local" and not is_loopback(hosts):
            modes.setdefault(hosts, []).append(mode)
    texts = [f"{', '.join(mode_names)}: {hosts}" for hosts, mode_names in modes.items()]
    return f"{'; '.join(texts)}." if texts else ""


def warn_of_loopback(runs: Sequence[Run], frame: pd.DataFrame) -> str:
    """Warn of a loopback, whose rate is not that of a remote GPU."""
    loopbacks = {
        variant.name
        for run in runs
        for arm in run.header.arms
        if (variant := loopback_of(run, arm))
    }
    if "mode" not in frame or not loopbacks & set(frame["mode"]):
        return ""
    return "Both ranks share the GPU: no rate of a remote GPU."


def has_noise(frame: pd.DataFrame) -> bool:
    """Return whether some row has a noise floor."""
    return "noise_floor_low_pct" in frame and bool(frame["noise_floor_low_pct"].notna().any())


def grey_sentence(frame: pd.DataFrame, extent: str = "") -> str:
    """Return the meaning of a figure's grey; empty if no noise floor was measured.

    Args:
        extent: part of the run that each grey area is of.
    """
    if not has_noise(frame):
        return ""
    return f"Grey is the interval of none#2 over none{extent}, as in the tables."


def told_from_noise_sentence(frame: pd.DataFrame, mark: str) -> str:
    """Return the rule of a mark for overheads told from noise; empty if the rounds are too few.

    The grey may be lopsided. The rule is not: two equal arms could have run in the other order.

    Args:
        mark: look of the values that are told from noise.
    """
    judgements = frame["told_from_noise"].dropna()
    if judgements.empty:
        return ""
    rule = "an interval without 0 and a value beyond the grey's farther end"
    if judgements.eq(True).any():
        return f"{mark} means told from noise: {rule}."
    return f"No overhead is told from noise, which takes {rule}."
