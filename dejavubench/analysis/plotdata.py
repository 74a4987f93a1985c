"""Records → what each of the paper's figures shows, as pandas tables; :mod:`plots` draws them, a CSV keeps them.

A :class:`Drawing` is one file: Fig 2 and Appendix A hold all models of a run, Fig 7 and Fig 25 one model each, the link
figure one model of all runs that were made for it, for each run has had a link of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from dejavubench.analysis import captions, link, machine, stats, tables
from dejavubench.analysis.compare import NotComparableError, require_comparable
from dejavubench.analysis.samples import ArmSamples, PointSamples, collect
from dejavubench.analysis.tables import POINT_COLUMNS
from dejavubench.records import PointInfo, Run

if TYPE_CHECKING:
    import pandas as pd

Figure = Literal["fig2", "appendix_a", "fig7", "fig25", "link"]
Row = dict[str, Any]

LEVEL_LABELS = {
    "0": "Naive streaming",
    "0-batched": "Naive, one wait a step",
    "1": "+ buffered copies",
    "2": "+ layer-by-layer streaming",
    "3": "DéjàVu (all)",
}
PHASES = ("total", "prompt", "token")
FIG7_PANELS = ("kv_layout", "mode")
FIG25_PANELS = ("ubatch_size", "input_len", "output_len")


class NothingToDrawError(Exception):
    """A run without what its figure needs; the message says what is missing."""


@dataclass(frozen=True)
class Drawing:
    """One figure: ``name`` is that of its files, ``frame`` what is drawn, ``caption`` what stands below it."""

    figure: Figure
    name: str
    title: str
    frame: pd.DataFrame
    caption: str


def figure_of(run: Run) -> Figure:
    """The figure that the run was made for, or, where it does not say, that its arms fit.

    Raises:
        NothingToDrawError: a figure that is not known, or streaming with nothing to compare it to.
    """
    match run.header.figure:
        case "fig2" | "appendix_a" | "fig7" | "fig25" | "link":
            return run.header.figure
        case None:
            pass
        case other:
            raise NothingToDrawError(
                f"{run.path.name}: figure {other!r} is not one of {', '.join(get_args(Figure))}"
            )
    streaming = [arm for arm in run.header.arms if arm.mode != "none"]
    if not streaming:
        return "fig2"
    if len(streaming) == len(run.header.arms):
        raise NothingToDrawError(
            f"{run.path.name}: streaming without a none arm, so there is nothing to compare it to; --compare adds it"
        )
    if all(arm.mode.startswith("swap-") for arm in streaming):
        raise NothingToDrawError(
            f"{run.path.name}: swapping has no figure; its table has what it cost"
        )
    return "fig7" if len({arm.level for arm in streaming}) > 1 else "fig25"


def drawings(runs: Sequence[Run], together: bool = False) -> tuple[list[Drawing], list[str]]:
    """All that can be drawn, each run by itself or (``together``) all runs of a figure in one; and what could not be.

    Runs of the link figure are always together.

    Raises:
        NotComparableError: runs together that differ in machine or sizes, or hold the same point twice.
        RecordError: a record names a point or an arm that the header does not have.
    """
    by_figure: dict[Figure, list[Run]] = {}
    complaints: list[str] = []
    for run in runs:
        try:
            figure = figure_of(run)
            if figure == "link":
                _link_rows(
                    run
                )  # one session that lacks something, cut short maybe, does not stop the others
            by_figure.setdefault(figure, []).append(run)
        except NothingToDrawError as error:
            complaints.append(str(error))
    found: list[tuple[Drawing, str]] = []
    for figure, members in by_figure.items():
        for group in [members] if together or figure == "link" else [[run] for run in members]:
            try:
                suffix = "-".join(run.path.name for run in group)
                found += [(drawing, suffix) for drawing in _draw(figure, group)]
            except NothingToDrawError as error:
                complaints.append(str(error))
    return _apart(found), complaints


def _apart(found: Sequence[tuple[Drawing, str]]) -> list[Drawing]:
    """Give each drawing a name of its own: with the run's folder, and a number where folders are of one name."""
    names = Counter(drawing.name for drawing, _ in found)
    taken: Counter[str] = Counter()
    apart = []
    for drawing, suffix in found:
        name = f"{drawing.name}-{suffix}" if names[drawing.name] > 1 else drawing.name
        taken[name] += 1
        apart.append(replace(drawing, name=name if taken[name] == 1 else f"{name}-{taken[name]}"))
    return apart


def _draw(figure: Figure, runs: Sequence[Run]) -> list[Drawing]:
    import pandas as pd

    held = _held(figure)
    if len(runs) > 1:
        require_comparable(runs, held)
    rows = [row for run in runs for row in _ROWS[figure](run)]
    if not rows:
        raise NothingToDrawError(
            f"{', '.join(run.path.name for run in runs)}: no measured round that {figure} needs"
        )
    frame = pd.DataFrame(rows)
    _refuse_twice(frame)
    if figure == "link":
        _refuse_other_paths(frame)
    parts = [part for _, part in frame.groupby(held, sort=False)] if held else [frame]
    varying = [name for name in held if name != "model" and frame[name].nunique() > 1]
    return [_drawing(figure, runs, part.reset_index(drop=True), varying) for part in parts]


def _drawing(
    figure: Figure, runs: Sequence[Run], part: pd.DataFrame, varying: Sequence[str]
) -> Drawing:
    models = list(dict.fromkeys(part["model"]))
    named = "-".join(models) if len(models) <= 3 else f"{len(models)}-models"
    words = [figure, named, *(_short(name, part[name].iloc[0]) for name in varying)]
    return Drawing(
        figure,
        "-".join(words),
        captions.title(figure, models),
        part,
        captions.caption(figure, runs, part),
    )


def _held(figure: Figure) -> list[str]:
    """The sizes that are the same within one drawing; Fig 2 and Appendix A set any of them side by side."""
    if figure in ("fig2", "appendix_a"):
        return []
    if figure == "link":
        return list(POINT_COLUMNS)
    panels = FIG7_PANELS if figure == "fig7" else FIG25_PANELS
    return [name for name in POINT_COLUMNS if name not in panels]


def _short(name: str, value: object) -> str:
    prefix = {
        "ubatch_size": "b",
        "input_len": "p",
        "output_len": "t",
        "tensor_para_size": "tp",
        "pipeline_para_size": "pp",
    }
    return f"{prefix.get(name, '')}{value}"


def _refuse_twice(frame: pd.DataFrame) -> None:
    keys = [*POINT_COLUMNS, "arm", *(name for name in ("phase", "link") if name in frame)]
    twice = frame[frame.duplicated(keys, keep=False)]
    if not twice.empty:
        first = twice.iloc[0]
        where = ", ".join(f"{name} {first[name]}" for name in POINT_COLUMNS)
        runs = ", ".join(dict.fromkeys(twice["run"]))
        raise NotComparableError(
            f"{runs} hold the same point and arm ({where}, {first['arm']}); give one of them"
        )


def _refuse_other_paths(frame: pd.DataFrame) -> None:
    """A link between two hosts and one within a host are not two speeds of one link."""
    for mode, part in frame.groupby("mode", sort=False):
        if part["hosts"].nunique(dropna=False) > 1:
            words = [
                f"{row['hosts']} ({row['run']})"
                for _, row in part.drop_duplicates("hosts").iterrows()
            ]
            raise NotComparableError(
                f"these runs cannot be compared, {mode} goes between: {', '.join(words)}"
            )


# What each figure shows.


def _shown_arms(run: Run) -> list[tuple[PointSamples, ArmSamples]]:
    """Arms with measured rounds whose bytes were right."""
    return [
        (point, arm)
        for point in collect(run).values()
        for arm in point.arms.values()
        if arm.total and arm.why_failed is None and not point.point.skipped
    ]


def _sizes(run: Run, point: PointInfo) -> Row:
    return {"run": run.path.name, "point": point.id} | {
        name: getattr(point, name) for name in POINT_COLUMNS
    }


def _spread(name: str, item: stats.Estimate | None, unit: str = "") -> Row:
    if item is None:
        return dict.fromkeys((f"{name}{unit}", f"{name}_low{unit}", f"{name}_high{unit}"))
    return {
        f"{name}{unit}": item.median,
        f"{name}_low{unit}": item.low,
        f"{name}_high{unit}": item.high,
    }


def _prompt_token_rows(run: Run) -> list[Row]:
    rows = []
    for point, arm in _shown_arms(run):
        if arm.arm.mode != "none" or arm.arm.role == "repeat" or not arm.prompt:
            continue
        ratio = stats.paired_ratios(arm.prompt, [arm.token]) if arm.token else ()
        row = _sizes(run, point.point) | {"arm": arm.arm.name, "samples": len(arm.total)}
        row |= _spread("prompt", stats.estimate(arm.prompt.values()), "_ms")
        row |= _spread("token", stats.estimate(arm.token.values()) if arm.token else None, "_ms")
        rows.append(
            row | _spread("prompt_over_token", stats.estimate(ratio) if len(ratio) else None)
        )
    return rows


def _level_rows(run: Run) -> list[Row]:
    rows = []
    for point, arm in _shown_arms(run):
        if arm.arm.level is None:
            continue
        for phase in PHASES:
            overhead = stats.paired_overhead(getattr(arm, phase), point.baselines(phase))
            if overhead is None:
                continue
            row = _sizes(run, point.point) | _arm_columns(run, arm)
            row |= {
                "label": LEVEL_LABELS.get(arm.arm.level, f"level {arm.arm.level}"),
                "phase": phase,
            }
            row |= {"samples": overhead.samples} | _spread("slowdown", overhead.shifted(1.0))
            rows.append(row | _noise(stats.noise_floor(point.baselines(phase))))
    return rows


def _total_rows(run: Run) -> list[Row]:
    rows = []
    for point, arm in _shown_arms(run):
        streaming = arm.arm.role == "streaming"
        overhead = stats.paired_overhead(arm.total, point.baselines()) if streaming else None
        row = _sizes(run, point.point) | _arm_columns(run, arm) | {"samples": len(arm.total)}
        row |= _spread("total", stats.estimate(arm.total.values()), "_ms")
        row |= _percent(_spread("overhead", overhead, "_pct"))
        rows.append(row | _noise(stats.noise_floor(point.baselines())))
    return rows if any(row["mode"] != "none" for row in rows) else []


def _link_rows(run: Run) -> list[Row]:
    """Each arm over a link, with its overhead and what is predicted of it from the session's own times and rate.

    Raises:
        NothingToDrawError: the session did not measure its link, or several sources shared it.
    """
    rows = []
    for point, arm in _shown_arms(run):
        info, baselines = point.point, point.baselines()
        overhead = stats.paired_overhead(arm.total, baselines)
        if arm.arm.mode not in link.RATE_OF_MODE or overhead is None:
            continue
        if info.tensor_para_size * info.pipeline_para_size > 1:
            raise NothingToDrawError(
                f"{run.path.name}: the link figure predicts what one source sends, not several"
            )
        name = link.RATE_OF_MODE[arm.arm.mode]
        speed = link.measured(run, name, info.id)
        if speed is None:
            raise NothingToDrawError(
                f"{run.path.name}: no ceiling {name}, so it is not known how fast its link was"
            )
        row = (
            _sizes(run, info)
            | _arm_columns(run, arm)
            | {"link": run.header.experiment.get("link") or "not recorded"}
        )
        row |= {"samples": overhead.samples, "link_mb_per_s": 1e3 * speed}
        row |= _percent(_spread("overhead", overhead, "_pct")) | _noise(
            stats.noise_floor(baselines)
        )
        rows.append(row | _predicted(run, point, arm, speed))
    return rows


def _predicted(run: Run, point: PointSamples, arm: ArmSamples, speed: float) -> Row:
    """What the prediction is made from, and for a level that has one TOTAL and overhead; ``speed`` in GB/s."""
    prompt_nbytes, step_nbytes, steps = link.split_nbytes(point.point)
    none_ms = {name: _over_both(point, name) for name in ("prompt", "total")}
    message_us = link.measured(run, link.MESSAGE_OF_MODE[arm.arm.mode], point.point.id)
    tokens_ms = none_ms["total"] - none_ms["prompt"]
    row: Row = {
        "layers": point.point.layer_num,
        "steps": steps,
        "none_prompt_ms": none_ms["prompt"],
        "none_token_ms": tokens_ms / steps if steps else 0.0,
        "prompt_bytes": prompt_nbytes,
        "step_bytes": step_nbytes,
        "messages": _middle(arm.prompt_copies)
        + steps * (_middle(arm.token_copies) if steps else 0.0),
        "message_us": message_us,
    }
    request, level = link.typical([row | {"level": arm.arm.level}]), arm.arm.level
    if request is None or level is None:
        return row | {"predicted_ms": None, "predicted_overhead_pct": None}
    predicted_ms = request.predicted_ms(level, 1e6 * speed)
    return row | {
        "predicted_ms": predicted_ms,
        "predicted_overhead_pct": request.overhead_pct(level, 1e6 * speed),
    }


def _over_both(point: PointSamples, quantity: str) -> float:
    return stats.estimate(
        ms for series in point.baselines(quantity) for ms in series.values()
    ).median


def _middle(series: Mapping[int, float]) -> float:
    return stats.estimate(series.values()).median


def _arm_columns(run: Run, arm: ArmSamples) -> Row:
    info = arm.arm
    row = {
        "arm": info.name,
        "mode": machine.destination(run, info),
        "role": info.role,
        "level": info.level,
    }
    return row | {"durability": info.durability, "hosts": tables.hosts(run, info)}


def _noise(floor: stats.Estimate | None) -> Row:
    return _percent(_spread("noise_floor", floor, "_pct"))


def _percent(row: Row) -> Row:
    return {name: None if value is None else 100 * value for name, value in row.items()}


_ROWS: dict[Figure, Callable[[Run], list[Row]]] = {
    "fig2": _prompt_token_rows,
    "appendix_a": _prompt_token_rows,
    "fig7": _level_rows,
    "fig25": _total_rows,
    "link": _link_rows,
}
