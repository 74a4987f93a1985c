"""The link figure: overhead against the speed of the link, measured and predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

from dejavubench.analysis import prediction
from dejavubench.analysis.columns import values_by_column
from dejavubench.analysis.comparison.comparable import NotComparableError
from dejavubench.analysis.facts.arm_destinations import info_of
from dejavubench.analysis.facts.samples import ArmSamples, PointSamples, Quantity
from dejavubench.analysis.figures import captions, style
from dejavubench.analysis.figures.figure import Figure, NothingToDrawError
from dejavubench.analysis.figures.framing import add_legend
from dejavubench.analysis.figures.link_drawing import (
    LINE_POINTS,
    draw_level,
    explain_lines,
    format_speed,
    mark_speeds,
    mark_switch,
    set_axes,
    shade_noise,
)
from dejavubench.analysis.figures.shared_columns import (
    ArmColumns,
    NoiseColumns,
    OverheadColumns,
    destinations_of,
    level_label,
    list_shown_arms,
    make_arm_columns,
    make_noise_columns,
    split_estimate,
)
from dejavubench.analysis.numbers import stats
from dejavubench.analysis.tables.process_columns import SettingColumns, Sizes
from dejavubench.records import Run
from dejavubench.records.destination_info import Destinations, find_destination

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Picture


LEVEL_SHIFT = 1.04
"""Factor between the places of two levels at one speed; the caption states it."""


@dataclass
class LinkRow:
    """Link figure: one row per session, point and arm, with the prediction for that session."""

    run: Annotated[str, "Folder of the run."]
    point: Annotated[str, "Point of the sweep."]
    sizes: Sizes
    arm: ArmColumns
    link: Annotated[str, "Rate that the link was limited to, as given."]
    samples: Annotated[int, "Rounds that the arm and its baselines have in common."]
    link_mb_per_s: Annotated[float, "Measured speed of the link, median of its samples."]
    overhead: OverheadColumns
    noise: NoiseColumns
    layers: Annotated[int, "Layers of the model."]
    steps: Annotated[int, "Decode steps that are streamed."]
    flush_interval: Annotated[int, "Decode steps whose keys and values move as one."]
    none_prompt_ms: Annotated[float, "Time of the prompt phase without streaming."]
    none_token_ms: Annotated[float, "Time of one decode step without streaming."]
    prompt_bytes: Annotated[float, "Keys and values of the prompt."]
    step_bytes: Annotated[float, "Keys and values of one decode step."]
    messages: Annotated[float, "Messages of the whole request."]
    message_us: Annotated[float | None, "Time of one small message; used at level 0 alone."]
    predicted_ms: Annotated[
        float | None, "Predicted TOTAL; missing where a level has no prediction."
    ] = None
    predicted_overhead_pct: Annotated[float | None, "Predicted overhead."] = None
    setting: SettingColumns = field(default_factory=SettingColumns)


class LinkFigure(Figure):
    """A panel per destination; points are measured, lines predicted, a colour per level."""

    name = "link"
    title = "Overhead against the speed of the link, level by level: measured and predicted"
    row = LinkRow
    method = (
        "Points: TOTAL divided by the geometric mean of the same round's none TOTALs, less one, "
        "median over rounds. Lines: predicted from bytes, the times of none and the link's rate "
        "alone (docs/METHOD.md)."
    )
    reading = (
        "Levels are set 4 % apart. Lines are predicted from bytes, the times of none and the "
        "link's rate."
    )
    keys = ("link",)
    joins_runs = True  # each run has had a link of its own

    def rows(self, run: Run) -> list[LinkRow]:
        """Return each arm over a link, with its overhead and the prediction for the session.

        Raises:
            NothingToDrawError: the session did not measure its link, or several sources shared it.
        """
        rows = []
        for point, arm in list_shown_arms(run):
            info = info_of(run, arm.info)
            overhead = stats.estimate_paired_overhead(arm.times.total, point.baselines())
            if info is None or info.link_rate is None or overhead is None:
                continue
            if point.info.tensor_para_size * point.info.pipeline_para_size > 1:
                raise NothingToDrawError(
                    f"{run.path.name}: the link figure predicts the traffic of one source, "
                    "not several"
                )
            speed = prediction.find_ceiling(run, info.link_rate, point.info.id)
            if speed is None:
                raise NothingToDrawError(
                    f"{run.path.name}: without the ceiling {info.link_rate}, the speed of the "
                    "link is unknown"
                )
            # Only level 0 needs it, so a session without the probe still predicts the others.
            message_us = info.message and prediction.find_ceiling(run, info.message, point.info.id)
            row = _make_link_row(run, point, arm, overhead, speed, message_us or None)
            # GB/s · 10⁶ = bytes per ms.
            _predict(row, 1e6 * speed)
            rows.append(row)
        return rows

    def check(self, frame: pd.DataFrame) -> None:
        """Refuse links between hosts beside links within one: they are not speeds of one link."""
        for mode, mode_rows in frame.groupby("mode", sort=False):
            if mode_rows["hosts"].nunique(dropna=False) > 1:
                connected_hosts = [
                    f"{row['hosts']} ({row['run']})"
                    for _, row in mode_rows.drop_duplicates("hosts").iterrows()
                ]
                raise NotComparableError(
                    f"these runs cannot be compared: {mode} connects {', '.join(connected_hosts)}"
                )

    def draw(self, frame: pd.DataFrame, destinations: Destinations) -> Picture:
        """Draw one panel per destination: measured points and predicted lines per level."""
        modes = list(dict.fromkeys(frame["mode"]))
        picture, axes = style.make_panels(1, len(modes), 3.6, sharex=True, sharey=True)
        speeds = frame["link_mb_per_s"]
        # Lines of predictions go a little beyond the measured links, on both ends of the log axis.
        speed_range = speeds.min() / 1.3, speeds.max() * 1.3
        set_axes(axes[0, 0], frame, speed_range, (style.WIDTH - 1) / len(modes))
        looks = _make_looks(sorted(set(frame["level"])))
        labels_of_levels = [f"{name}: {level_label(name)}" for name in looks]
        for ax, mode in zip(axes[0], modes, strict=True):
            mode_rows = frame[frame["mode"] == mode]
            shade_noise(ax, mode_rows)
            speeds_by_colour = {}
            for level_index, (level_name, look) in enumerate(looks.items()):
                # Set the levels apart, so that error bars do not hide each other.
                speed_factor = LEVEL_SHIFT ** (level_index - (len(looks) - 1) / 2)
                level_rows = mode_rows[mode_rows["level"] == level_name].sort_values(
                    "link_mb_per_s"
                )
                speed = (
                    None
                    if level_rows.empty
                    else draw_level(ax, level_rows, look, speed_factor, speed_range)
                )
                if speed is not None:
                    speeds_by_colour[look["color"]] = speed
            lines = mark_speeds(ax, speeds_by_colour, speed_range)
            explain_lines(ax)
            mark_switch(ax, with_names=mode == modes[-1])
            hosts = mode_rows["hosts"].iloc[0]
            title = f"to {find_destination(mode, destinations).label}, {hosts}"
            ax.set_title(title, pad=4 + LINE_POINTS * lines)
            ax.set_xlabel("measured speed of the link (log)")
        axes[0, 0].set_ylabel("overhead over none, paired by round (%)")
        handles, labels = style.collect_legend(axes.flat)
        # Levels first; matplotlib names lines before points.
        order = sorted(
            range(len(labels)), key=lambda label_index: labels[label_index] not in labels_of_levels
        )
        add_legend(
            picture,
            [handles[label_index] for label_index in order],
            [labels[label_index] for label_index in order],
        )
        return picture

    def remarks(self, runs: Sequence[Run], frame: pd.DataFrame) -> list[str]:
        """Return the meaning of grey, and how many intervals hold their session's prediction."""
        predicted_rows = frame[frame["predicted_overhead_pct"].notna()].to_dict("records")
        return [
            captions.grey_sentence(frame, " in that session"),
            f"{prediction.count_in_interval(predicted_rows)} of {len(predicted_rows)} intervals "
            "hold their session's prediction.",
        ]

    def details(self, runs: Sequence[Run], frame: pd.DataFrame) -> list[str]:
        """Return the links' speeds as they were measured, and the noise."""
        return [_speeds_sentence(runs, frame), *super().details(runs, frame)]


def _make_looks(level_names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return colour, marker and line of each level."""
    colours = style.make_ordered_colours(len(level_names))
    return {
        level_name: {
            "color": colour,
            "marker": style.MARKERS[level_index % len(style.MARKERS)],
            "linestyle": style.LINES[level_index % len(style.LINES)],
        }
        for level_index, (level_name, colour) in enumerate(zip(level_names, colours, strict=True))
    }


def _make_link_row(
    run: Run,
    point: PointSamples,
    arm: ArmSamples,
    overhead: stats.Estimate,
    speed: float,
    message_us: float | None,
) -> LinkRow:
    """Return a row without its prediction; ``speed`` in GB/s."""
    prompt_nbytes, step_nbytes, steps = prediction.split_nbytes(point.info)
    prompt_ms = _median_of_baselines(point, "prompt")
    # Not median token × steps: the gaps between steps belong to the request as well.
    tokens_ms = _median_of_baselines(point, "total") - prompt_ms
    stream = arm.stream
    step_messages = steps * median(stream.token_copies.values()) if steps else 0.0
    return LinkRow(
        run=run.path.name,
        point=point.info.id,
        sizes=Sizes.of_point(point.info),
        arm=make_arm_columns(run, arm),
        link=run.header.experiment.get("link") or "not recorded",
        samples=overhead.sample_count,
        # GB/s · 10³ = MB/s.
        link_mb_per_s=1e3 * speed,
        overhead=OverheadColumns(*split_estimate(overhead, 100)),
        noise=make_noise_columns(point),
        layers=point.info.layer_num,
        steps=steps,
        flush_interval=run.header.experiment.get("flush_interval", 1),
        none_prompt_ms=prompt_ms,
        none_token_ms=tokens_ms / steps if steps else 0.0,
        prompt_bytes=prompt_nbytes,
        step_bytes=step_nbytes,
        messages=median(stream.prompt_copies.values()) + step_messages,
        message_us=message_us,
        setting=SettingColumns.of_point(point.info),
    )


def _predict(row: LinkRow, rate: float) -> None:
    """Add the prediction for a link of ``rate`` bytes per ms, unless the level has none."""
    # The request of this one session, so that its own compute times are predicted with.
    request = prediction.make_typical_request([values_by_column(row)])
    level_name = row.arm.level
    if request is not None and level_name is not None:
        row.predicted_ms = request.predict_ms(level_name, rate)
        row.predicted_overhead_pct = request.predict_overhead_pct(level_name, rate)


def _median_of_baselines(point: PointSamples, quantity: Quantity) -> float:
    return stats.estimate(
        ms for series in point.baselines(quantity) for ms in series.values()
    ).median


def _speeds_sentence(runs: Sequence[Run], frame: pd.DataFrame) -> str:
    """Return the rate of the link, and the speeds from which on overheads stay near zero."""
    speeds_of_arms = []
    for (mode, level_name), level_rows in frame.groupby(["mode", "level"], sort=False):
        request = prediction.make_typical_request(level_rows.to_dict("records"))
        slowest_rate = (
            None if request is None else request.find_slowest_rate_near_zero(str(level_name))
        )
        fastest_above = prediction.find_fastest_above(
            level_rows["link_mb_per_s"].tolist(), level_rows["overhead_low_pct"].tolist()
        )
        speeds = [None if slowest_rate is None else slowest_rate / 1e3, fastest_above]
        speed_texts = ["none" if speed is None else format_speed(speed) for speed in speeds]
        speeds_of_arms.append(f"{mode} level {level_name} {' / '.join(speed_texts)}")
    infos = destinations_of(runs)
    rates = [
        find_destination(mode, infos).link_rate or mode for mode in dict.fromkeys(frame["mode"])
    ]
    return (
        f"Link limited to {', '.join(dict.fromkeys(frame['link']))}; its speed is the median of "
        f"{' and '.join(rates)} in the same session. Speed from which the overhead stays within "
        f"{prediction.NEAR_ZERO_PCT:g} %, predicted / fastest measured whose whole interval is "
        f"above: {'; '.join(speeds_of_arms)}."
    )


FIGURE = LinkFigure()
