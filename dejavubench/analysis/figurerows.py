"""Records → the rows that each figure shows, and that the CSV beside it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from dejavubench.analysis import link, machine, stats
from dejavubench.analysis.columns import flat
from dejavubench.analysis.figurecolumns import (
    ArmColumns,
    LevelRow,
    LinkRow,
    NoiseColumns,
    OverheadColumns,
    PromptTokenRow,
    TotalRow,
)
from dejavubench.analysis.rows import Sizes
from dejavubench.analysis.samples import ArmSamples, PointSamples, collect
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.records import Run

Figure = Literal["fig2", "appendix_a", "fig7", "fig25", "link"]

PHASES = ("total", "prompt", "token")


class NothingToDrawError(Exception):
    """A run without the records that its figure needs; the message says which are missing."""


def level_label(level: str) -> str:
    """Return the paper's label of a level, without its number."""
    return LEVELS[level].label if level in LEVELS else f"level {level}"


def _shown_arms(run: Run) -> list[tuple[PointSamples, ArmSamples]]:
    """Return arms with measured rounds whose bytes were right."""
    return [
        (point, arm)
        for point in collect(run).values()
        for arm in point.arms.values()
        if arm.total and arm.why_failed is None and not point.point.skipped
    ]


def _prompt_token_rows(run: Run) -> list[PromptTokenRow]:
    rows = []
    for point, arm in _shown_arms(run):
        if arm.arm.role != "baseline" or not arm.prompt:
            continue
        ratios = stats.paired_ratios(arm.prompt, [arm.token]) if arm.token else ()
        prompt, token = _ends(_estimate(arm.prompt)), _ends(_estimate(arm.token))
        ratio = _ends(stats.estimate(ratios) if len(ratios) else None)
        rows.append(
            PromptTokenRow(
                run.path.name,
                point.point.id,
                Sizes.of(point.point),
                arm.arm.name,
                len(arm.total),
                *prompt,
                *token,
                *ratio,
            )
        )
    return rows


def _level_rows(run: Run) -> list[LevelRow]:
    rows = []
    for point, arm in _shown_arms(run):
        if arm.arm.level is None:
            continue
        for phase in PHASES:
            overhead = stats.paired_overhead(getattr(arm, phase), point.baselines(phase))
            if overhead is None:
                continue
            slowdown, low, high = _ends(overhead.shifted(1.0))
            rows.append(
                LevelRow(
                    run=run.path.name,
                    point=point.point.id,
                    sizes=Sizes.of(point.point),
                    arm=_arm(run, arm),
                    label=level_label(arm.arm.level),
                    phase=phase,
                    samples=overhead.samples,
                    slowdown=slowdown,
                    slowdown_low=low,
                    slowdown_high=high,
                    noise=_noise(point, phase),
                )
            )
    return rows


def _total_rows(run: Run) -> list[TotalRow]:
    rows = []
    for point, arm in _shown_arms(run):
        streaming = arm.arm.role == "streaming"
        overhead = stats.paired_overhead(arm.total, point.baselines()) if streaming else None
        total, low, high = _ends(_estimate(arm.total))
        rows.append(
            TotalRow(
                run=run.path.name,
                point=point.point.id,
                sizes=Sizes.of(point.point),
                arm=_arm(run, arm),
                samples=len(arm.total),
                total_ms=total,
                total_low_ms=low,
                total_high_ms=high,
                overhead=OverheadColumns(*_ends(overhead, 100)),
                noise=_noise(point),
            )
        )
    return rows if any(row.arm.role == "streaming" for row in rows) else []


def link_rows(run: Run) -> list[LinkRow]:
    """Return each arm over a link, with its overhead and the prediction for the session.

    Raises:
        NothingToDrawError: the session did not measure its link, or several sources shared it.
    """
    rows = []
    for point, arm in _shown_arms(run):
        info = machine.info_of(run, arm.arm)
        overhead = stats.paired_overhead(arm.total, point.baselines())
        if info is None or info.link_rate is None or overhead is None:
            continue
        if point.point.tensor_para_size * point.point.pipeline_para_size > 1:
            raise NothingToDrawError(
                f"{run.path.name}: the link figure predicts the traffic of one source, not several"
            )
        speed = link.measured(run, info.link_rate, point.point.id)
        if speed is None:
            raise NothingToDrawError(
                f"{run.path.name}: without the ceiling {info.link_rate}, the speed of the link is "
                "unknown"
            )
        message_us = info.message and link.measured(run, info.message, point.point.id)
        row = _link_row(run, point, arm, overhead, speed, message_us or None)
        _predict(row, 1e6 * speed)
        rows.append(row)
    return rows


def _link_row(
    run: Run,
    point: PointSamples,
    arm: ArmSamples,
    overhead: stats.Estimate,
    speed: float,
    message_us: float | None,
) -> LinkRow:
    """Return a row without its prediction; ``speed`` in GB/s."""
    prompt_nbytes, step_nbytes, steps = link.split_nbytes(point.point)
    none_ms = {name: _over_both(point, name) for name in ("prompt", "total")}
    tokens_ms = none_ms["total"] - none_ms["prompt"]
    messages = _middle(arm.prompt_copies) + steps * (_middle(arm.token_copies) if steps else 0.0)
    return LinkRow(
        run=run.path.name,
        point=point.point.id,
        sizes=Sizes.of(point.point),
        arm=_arm(run, arm),
        link=run.header.experiment.get("link") or "not recorded",
        samples=overhead.samples,
        link_mb_per_s=1e3 * speed,
        overhead=OverheadColumns(*_ends(overhead, 100)),
        noise=_noise(point),
        layers=point.point.layer_num,
        steps=steps,
        none_prompt_ms=none_ms["prompt"],
        none_token_ms=tokens_ms / steps if steps else 0.0,
        prompt_bytes=prompt_nbytes,
        step_bytes=step_nbytes,
        messages=messages,
        message_us=message_us,
    )


def _predict(row: LinkRow, rate: float) -> None:
    """Add the prediction for a link of ``rate`` bytes per ms, unless the level has none."""
    request, level = link.typical([flat(row)]), row.arm.level
    if request is not None and level is not None:
        row.predicted_ms = request.predicted_ms(level, rate)
        row.predicted_overhead_pct = request.overhead_pct(level, rate)


# ---- parts of rows ----


def _arm(run: Run, arm: ArmSamples) -> ArmColumns:
    info = arm.arm
    return ArmColumns(
        arm=info.name,
        mode=machine.destination(run, info),
        role=info.role,
        level=info.level,
        durability=info.durability,
        hosts=machine.hosts(run, info),
    )


def _noise(point: PointSamples, quantity: str = "total") -> NoiseColumns:
    return NoiseColumns(*_ends(stats.noise_floor(point.baselines(quantity)), 100))


def _ends(
    item: stats.Estimate | None, scale: float = 1.0
) -> tuple[float | None, float | None, float | None]:
    """Return median and interval; the interval of a single sample is NaN."""
    if item is None:
        return None, None, None
    return scale * item.median, scale * item.low, scale * item.high


def _estimate(series: Mapping[int, float]) -> stats.Estimate | None:
    return stats.estimate(series.values()) if series else None


def _over_both(point: PointSamples, quantity: str) -> float:
    return stats.estimate(
        ms for series in point.baselines(quantity) for ms in series.values()
    ).median


def _middle(series: Mapping[int, float]) -> float:
    return stats.estimate(series.values()).median


ROWS: dict[Figure, Callable[[Run], list[Any]]] = {
    "fig2": _prompt_token_rows,
    "appendix_a": _prompt_token_rows,
    "fig7": _level_rows,
    "fig25": _total_rows,
    "link": link_rows,
}
"""Makes the rows of each figure."""
