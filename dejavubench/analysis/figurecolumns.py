"""Columns of the CSV beside each figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dejavubench.analysis.rows import Sizes


@dataclass
class ArmColumns:
    """The arm of a row."""

    arm: Annotated[str, "Name of the arm."]
    mode: Annotated[str, "Destination, or the name of its loopback on one GPU."]
    role: Annotated[str, "baseline, repeat or streaming."]
    level: Annotated[str | None, "Level of DéjàVuLib's optimisations; missing for a baseline."]
    durability: Annotated[str | None, "Condition on which a chunk counts as written."]
    hosts: Annotated[str | None, "Place of the destination relative to the source."]


@dataclass
class NoiseColumns:
    """The second baseline against the first, paired round by round."""

    noise_floor_pct: Annotated[float | None, "Overhead of the second baseline over the first."]
    noise_floor_low_pct: Annotated[float | None, "Lower end of its 95 % interval."]
    noise_floor_high_pct: Annotated[float | None, "Upper end of its 95 % interval."]


@dataclass
class OverheadColumns:
    """TOTAL over the geometric mean of the same round's baselines, less one; median over rounds."""

    overhead_pct: Annotated[float | None, "Overhead; missing for a baseline."]
    overhead_low_pct: Annotated[float | None, "Lower end of its 95 % interval."]
    overhead_high_pct: Annotated[float | None, "Upper end of its 95 % interval."]


@dataclass
class PromptTokenRow:
    """Fig 2 and Appendix A: one row per point, of the first baseline."""

    run: Annotated[str, "Folder of the run."]
    point: Annotated[str, "Point of the sweep."]
    sizes: Sizes
    arm: Annotated[str, "Name of the arm."]
    samples: Annotated[int, "Measured rounds."]
    prompt_ms: Annotated[float | None, "Time of the prompt phase, median over rounds."]
    prompt_low_ms: Annotated[float | None, "Lower end of its 95 % interval."]
    prompt_high_ms: Annotated[float | None, "Upper end of its 95 % interval."]
    token_ms: Annotated[float | None, "Time of one decode step, median over rounds."]
    token_low_ms: Annotated[float | None, "Lower end of its 95 % interval."]
    token_high_ms: Annotated[float | None, "Upper end of its 95 % interval."]
    prompt_over_token: Annotated[float | None, "Prompt time over token time, paired by round."]
    prompt_over_token_low: Annotated[float | None, "Lower end of its 95 % interval."]
    prompt_over_token_high: Annotated[float | None, "Upper end of its 95 % interval."]


@dataclass
class LevelRow:
    """Fig 7: one row per point, streaming arm and phase."""

    run: Annotated[str, "Folder of the run."]
    point: Annotated[str, "Point of the sweep."]
    sizes: Sizes
    arm: ArmColumns
    label: Annotated[str, "The paper's label of the level."]
    phase: Annotated[str, "total, prompt or token."]
    samples: Annotated[int, "Rounds that the arm and its baselines have in common."]
    slowdown: Annotated[
        float | None,
        "The phase's time over the geometric mean of the round's baselines, median over rounds.",
    ]
    slowdown_low: Annotated[float | None, "Lower end of its 95 % interval."]
    slowdown_high: Annotated[float | None, "Upper end of its 95 % interval."]
    noise: NoiseColumns


@dataclass
class TotalRow:
    """Fig 25: one row per point and arm."""

    run: Annotated[str, "Folder of the run."]
    point: Annotated[str, "Point of the sweep."]
    sizes: Sizes
    arm: ArmColumns
    samples: Annotated[int, "Measured rounds."]
    total_ms: Annotated[float | None, "Time of the whole request, median over rounds."]
    total_low_ms: Annotated[float | None, "Lower end of its 95 % interval."]
    total_high_ms: Annotated[float | None, "Upper end of its 95 % interval."]
    overhead: OverheadColumns
    noise: NoiseColumns


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


FIGURE_ROWS = (PromptTokenRow, LevelRow, TotalRow, LinkRow)
