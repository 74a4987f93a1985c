"""Descriptions that picture files carry: all that a caption has no room for.

``exiftool`` or ``pdfinfo`` shows them. A description states versions, all sizes and the exact
method, so that a picture without its records can still be traced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dejavubench.analysis.figures import captions
from dejavubench.analysis.number_texts import format_noise_range
from dejavubench.analysis.tables.headings import HEADINGS, format_setting
from dejavubench.analysis.tables.process_columns import POINT_COLUMNS
from dejavubench.records import Run

if TYPE_CHECKING:
    import pandas as pd


def make_description(
    runs: Sequence[Run], frame: pd.DataFrame, method: str, details: Sequence[str]
) -> str:
    """Return the sentences on a figure that its file carries.

    Args:
        frame: the data that is drawn.
        method: how the values were computed.
        details: sentences that only this figure has; empty ones are left out.
    """
    sizes_and_settings = (*_list_named_sizes(frame), *captions.list_swept_settings(runs))
    sizes = [f"{HEADINGS[name]} {_format_values(frame, name)}" for name in sizes_and_settings]
    sentences = [
        captions.describe_machine(runs[0]),
        f"Model {captions.format_models(runs, frame)}, {', '.join(sizes)}.",
        method,
        _paths_sentence(frame),
        *details,
        f"Runs: {', '.join(run.path.name for run in runs)}.",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def noise_sentence(frame: pd.DataFrame) -> str:
    """Return the noise floor of TOTAL; empty if it was not measured."""
    if not captions.has_noise(frame):
        return ""
    # Fig 7 has a floor for each phase; this is that of TOTAL.
    total_rows = frame[frame["phase"] == "total"] if "phase" in frame else frame
    # Of several points, the range that covers all of their intervals.
    low, high = total_rows["noise_floor_low_pct"].min(), total_rows["noise_floor_high_pct"].max()
    return f"Noise floor of TOTAL (none#2 / none): {format_noise_range(low, high)} %."


def _list_named_sizes(frame: pd.DataFrame) -> list[str]:
    """Return the sizes that are named: sinks only if they differ from the sources."""
    # "" and 0 mean: as the sources, and no hand-over.
    unset_names = {name for name in ("sinks", "handed_over") if not frame[name].any()}
    return [name for name in POINT_COLUMNS if name not in {"model", *unset_names}]


def _format_values(frame: pd.DataFrame, name: str) -> str:
    return "/".join(format_setting(value) for value in dict.fromkeys(frame[name]))


def _paths_sentence(frame: pd.DataFrame) -> str:
    if "hosts" not in frame:
        return ""
    texts = []
    for (mode, hosts), hosts_rows in frame[frame["hosts"].notna()].groupby(
        ["mode", "hosts"], sort=False
    ):
        durability = "/".join(dict.fromkeys(hosts_rows["durability"].dropna()))
        texts.append(f"{mode}: {hosts}" + (f", durability {durability}" if durability else ""))
    return "; ".join(texts) + "." if texts else ""
