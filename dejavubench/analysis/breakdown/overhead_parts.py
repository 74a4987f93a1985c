"""Overhead, split into the stall, the drain and the rest, from paired rounds.

In each round, a part is compared with the geometric mean of that round's baselines:

- overhead: the arm's time less that of the baselines;
- stall: the time that the model's thread spent in the library, to hand chunks over or to wait;
- drain: the wait at the end for the last byte, part of the total alone;
- rest: the overhead less stall and drain. The arm slowed down the model itself, by contention.

Each part is the median over rounds, so parts need not add up to the overhead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from dejavubench.analysis.facts.samples import ArmSamples, PointSamples, RoundValues
from dejavubench.analysis.numbers import stats

Phase = Literal["prompt", "tokens", "total"]
"""Phases of a request: the prompt, all steps together, and the whole."""

PartName = Literal["overhead", "stall", "drain", "rest"]
"""Parts that an overhead is cut into; ``overhead`` is their sum."""

PHASES: tuple[Phase, ...] = get_args(Phase)
"""The phases in the order of tables."""

PARTS: tuple[PartName, ...] = get_args(PartName)
"""The parts in the order of tables."""

MEASURED_PARTS: tuple[PartName, ...] = ("stall", "drain")
"""Parts that a clock measures. The others are differences of two arms."""


@dataclass(frozen=True)
class OverheadPart:
    """One part of an arm's overhead in one phase.

    Attributes:
        ms: the part in milliseconds.
        share: the part as a fraction of TOTAL of the same round's baselines.
    """

    phase: Phase
    part: PartName
    ms: stats.Estimate
    share: stats.Estimate


def compute_overhead_parts(point: PointSamples, samples: ArmSamples) -> list[OverheadPart]:
    """Return the parts of each phase; none without a baseline or a common round."""
    baseline_totals = point.baselines()
    if not baseline_totals or not samples.info.is_streaming:
        return []
    none_totals = stats.compute_geometric_mean(baseline_totals)
    estimates = []
    for phase in PHASES:
        baselines = point.baselines(phase)
        if not baselines:
            continue
        # Baselines hand over no chunks, so all of the arm's stall and drain is added time.
        parts = _compute_parts_by_round(
            samples.times.series(phase), baselines, _read_measured_parts(samples, phase)
        )
        estimates += _estimate_parts(phase, parts, none_totals)
    return estimates


def _read_measured_parts(samples: ArmSamples, phase: Phase) -> dict[PartName, RoundValues]:
    """Return the measured parts of a phase by round."""
    match phase:
        case "prompt":
            return {"stall": samples.stalls.prompt}
        case "tokens":
            return {"stall": samples.stalls.tokens}
        case "total":
            return {"stall": samples.stalls.iteration, "drain": samples.stalls.drain}


def _compute_parts_by_round(
    times: RoundValues,
    baselines: Sequence[RoundValues],
    measured_parts: Mapping[PartName, RoundValues],
) -> dict[PartName, RoundValues]:
    """Return all parts in ms for each round that has them all."""
    parts: dict[PartName, RoundValues] = {
        part: {} for part in ("overhead", *measured_parts, "rest")
    }
    for round_number, mean in stats.compute_geometric_mean(baselines).items():
        if all(round_number in series for series in (times, *measured_parts.values())):
            overhead_ms = times[round_number] - mean
            measured_ms = {part: series[round_number] for part, series in measured_parts.items()}
            parts["overhead"][round_number] = overhead_ms
            for part, ms in measured_ms.items():
                parts[part][round_number] = ms
            # Negative where the stall hides behind the device, as on a GPU.
            parts["rest"][round_number] = overhead_ms - sum(measured_ms.values())
    return parts


def _estimate_parts(
    phase: Phase, parts: Mapping[PartName, RoundValues], none_totals: Mapping[int, float]
) -> list[OverheadPart]:
    """Return a phase's parts as medians over the rounds whose baselines have a TOTAL."""
    rounds = [round_number for round_number in parts["overhead"] if round_number in none_totals]
    if not rounds:
        return []
    return [
        OverheadPart(
            phase,
            part,
            stats.estimate(series[round_number] for round_number in rounds),
            # Of TOTAL for each phase, so that shares of prompt and tokens can be compared.
            stats.estimate(
                series[round_number] / none_totals[round_number] for round_number in rounds
            ),
        )
        for part, series in parts.items()
    ]
