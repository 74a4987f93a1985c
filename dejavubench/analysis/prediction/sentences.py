"""A forecast in words: what each level will cost, and where the answer changes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dejavubench.analysis.number_texts import (
    format_3_digits,
    format_percent_interval,
    format_signed_percent,
)
from dejavubench.analysis.prediction.compute import Basis
from dejavubench.analysis.prediction.inputs import ArmInputs
from dejavubench.analysis.prediction.table import (
    BORROWED_ERROR_PCT,
    FREE_PCT,
    GAIN_PCT,
    Forecast,
    ForecastRow,
)
from dejavubench.analysis.prediction.target import Target, compute_distance

_ORIGIN_OF_COMPUTE = {
    Basis.MEASURED: "measured at these sizes",
    Basis.INTERPOLATED: "interpolated between two measured prompt lengths",
    Basis.EXTRAPOLATED: "EXTRAPOLATED from two measured prompt lengths",
    Basis.SCALED: "SCALED by arithmetic and bytes from other sizes, not measured",
}


_REMAINING_CAUSES = {
    "0": "the messages' own time",
    "1": "waits for chunks, and contention",
    "2": "waits for chunks, and contention",
    "3": "contention",
}
"""Causes of the overhead that each level keeps over an endless link."""

BUSY_MARK = "*"
"""Marks overheads whose contention was measured on a link that was busy to the end."""

BORROWED_MARK = "†"
"""Marks overheads whose costs are those of another level."""

SAME_RATE = 0.05
"""Relative difference up to which two rates are about the same."""


def format_bytes_per_s(rate: float) -> str:
    """Return a rate in bytes per second as people write it."""
    for unit, unit_rate in (("GB/s", 1e9), ("MB/s", 1e6), ("kB/s", 1e3)):
        if rate >= 0.9995 * unit_rate:
            return f"{format_3_digits(rate / unit_rate)} {unit}"
    return f"{format_3_digits(rate)} B/s"


def write_answers(forecast: Forecast) -> list[str]:
    """Return the sentences that answer first: costs per level, and where they cross."""
    targets = [forecast.target, *forecast.other_targets]
    sentences = [
        sentence
        for mode in forecast.modes
        for sentence in (
            _describe_link(forecast, mode),
            *(_describe_cost(forecast, mode, target) for target in targets),
            _describe_free(forecast, mode),
            _describe_layerwise(forecast, mode),
        )
        if sentence
    ]
    noise = _describe_noise(forecast)
    return [*sentences, noise] if noise else sentences


def format_overhead(row: ForecastRow, unit: str = "") -> str:
    """Return a predicted overhead with its interval, and the marks of what weakens it.

    Args:
        unit: stands behind the overhead.
    """
    marks = (BUSY_MARK if row.busy_arms else "") + (BORROWED_MARK if row.is_borrowed else "")
    return (
        f"{format_signed_percent(row.overhead_pct)}{unit} "
        f"{format_percent_interval(row.low_pct, row.high_pct)}{marks}"
    )


def _describe_link(forecast: Forecast, mode: str) -> str:
    """Describe the asked link as faster or slower than the measured ones."""
    slowest_rate, fastest_rate = forecast.find_measured_rates(mode)
    asked_text = format_bytes_per_s(forecast.rate)
    measured_text = f"the measured {_name_links(forecast)}, "
    measured_text += _format_range(slowest_rate, fastest_rate)
    if forecast.rate > (1 + SAME_RATE) * fastest_rate:
        return f"{mode}: {asked_text} is faster than {measured_text}."
    if forecast.rate < (1 - SAME_RATE) * slowest_rate:
        return f"{mode}: {asked_text} is slower than {measured_text}."
    if forecast.run.run_count > 1:
        return f"{mode}: {asked_text} is in the range of {measured_text}."
    return f"{mode}: {asked_text} is about as fast as {measured_text}."


def _name_links(forecast: Forecast) -> str:
    """Return the noun for the links of the measured runs."""
    return "link" if forecast.run.run_count == 1 else "links"


def _format_range(slowest_rate: float, fastest_rate: float) -> str:
    """Return two rates as a range, or as one if they read the same."""
    slowest_text = format_bytes_per_s(slowest_rate)
    fastest_text = format_bytes_per_s(fastest_rate)
    return slowest_text if slowest_text == fastest_text else f"{slowest_text} to {fastest_text}"


def _describe_cost(forecast: Forecast, mode: str, target: Target) -> str:
    point = target.point
    rows = [row for row in forecast.rows_of(target) if row.mode == mode]
    costs = "; ".join(
        f"level {row.level} {format_overhead(row, ' %')}{_bracket_measured(forecast, row, target)}"
        for row in reversed(rows)
    )
    return (
        f"{mode} at {format_bytes_per_s(forecast.rate)}, {point.model}, batch {point.ubatch_size}, "
        f"prompt {point.input_len:,}: expected overhead {costs}."
    )


def _bracket_measured(forecast: Forecast, row: ForecastRow, target: Target) -> str:
    """Return in brackets what a level was measured to cost at the target's sizes; or nothing."""
    arms = [
        arm
        for arm in forecast.run.arms
        if (arm.mode, arm.level) == (row.mode, row.level)
        and compute_distance(arm.point.info, target.point) == (0, 0.0)
    ]
    if not arms or row.is_borrowed:
        return ""
    arm = min(arms, key=lambda arm: abs(math.log(arm.link.rate / row.rate)))
    link = f" at {format_bytes_per_s(arm.link.rate)}" if forecast.run.run_count > 1 else ""
    return f" (measured {format_signed_percent(100 * arm.overhead.median)} %{link})"


def _describe_noise(forecast: Forecast) -> str:
    """Describe the noise of a run that is too noisy for a forecast; empty if it is not."""
    noise_pct = forecast.noise_pct
    if noise_pct <= FREE_PCT:
        return ""
    return (
        f"The run's own noise is ±{format_3_digits(noise_pct)} % of TOTAL: smaller overheads of a "
        "forecast are not known. Measure more rounds, on a quiet machine."
    )


def _describe_free(forecast: Forecast, mode: str) -> str:
    """Describe from which rate on each level costs nothing, and what no link takes away."""
    levels = dict.fromkeys(row.level for row in reversed(forecast.answers) if row.mode == mode)
    costs = "; ".join(_describe_free_from(forecast, mode, level_name) for level_name in levels)
    return f"{mode} at prompt {forecast.target.point.input_len:,}: {costs}."


def _describe_free_from(forecast: Forecast, mode: str, level_name: str) -> str:
    """Describe the rate from which a level costs nothing or, if there is none, what remains."""
    rate = forecast.costs_nothing_from(mode, level_name)
    if rate is not None:
        return (
            f"level {level_name} costs nothing (upper end at most {FREE_PCT:g} %) from "
            f"{format_bytes_per_s(rate)} on"
        )
    remaining_cost = forecast.find_remaining_cost(mode, level_name)
    # The levels are those that the run predicts.
    assert remaining_cost is not None
    if remaining_cost.pct <= FREE_PCT or not remaining_cost.is_shown:
        return f"level {level_name} is not shown to cost nothing at any rate with this noise"
    text = (
        f"level {level_name} always costs: {format_signed_percent(remaining_cost.pct)} % remain "
        f"that are not the link's ({_REMAINING_CAUSES[level_name]})"
    )
    if remaining_cost.saturating_rate is None:
        return text
    return (
        f"{text}, and from {format_bytes_per_s(remaining_cost.saturating_rate)} on a faster link "
        f"saves less than {GAIN_PCT:g} %"
    )


def _describe_layerwise(forecast: Forecast, mode: str) -> str:
    """Describe from which prompt length on streaming layer by layer is faster."""
    if not forecast.can_compare_layerwise(mode):
        return ""
    length = forecast.layerwise_pays_from(mode)
    if length is None:
        return (
            f"{mode}: layer-by-layer streaming (level 2 against 1) saves {GAIN_PCT:g} % of TOTAL "
            f"at no prompt of up to {forecast.most_length:,} tokens at "
            f"{format_bytes_per_s(forecast.rate)}."
        )
    return (
        f"{mode}: layer-by-layer streaming (level 2 against 1) saves {GAIN_PCT:g} % of TOTAL or "
        f"more from prompt {length:,} on."
    )


def _format_speeds(forecast: Forecast) -> str:
    """Return the measured speeds of the run's links; a range if points differ."""
    rates_by_link: dict[str, list[float]] = {}
    for arm in forecast.run.arms:
        rates_by_link.setdefault(f"{arm.mode} ({arm.link.origin})", []).append(arm.link.rate)
    return ", ".join(
        f"{name} {_format_range(min(measured_rates), max(measured_rates))}"
        for name, measured_rates in rates_by_link.items()
    )


def _describe_measured_arms(forecast: Forecast) -> list[str]:
    """Return the measured overheads of the target's point, to hold beside the forecast."""
    arms_by_link: dict[tuple[str, float], list[ArmInputs]] = {}
    for arm in forecast.run.arms:
        if arm.point.info.id == forecast.target.point.id:
            arms_by_link.setdefault((arm.mode, arm.link.rate), []).append(arm)
    lines = []
    for (mode, rate), arms in sorted(arms_by_link.items()):
        costs = "; ".join(
            f"level {arm.level} {format_signed_percent(100 * arm.overhead.median)} % "
            f"{format_percent_interval(100 * arm.overhead.low, 100 * arm.overhead.high)}"
            for arm in sorted(arms, key=lambda arm: arm.level, reverse=True)
        )
        lines.append(
            f"measured here, {mode} at {format_bytes_per_s(rate)}, prompt "
            f"{arms[0].point.info.input_len:,}: {costs}"
        )
    return lines


def _format_bases(rows: Sequence[ForecastRow]) -> str:
    """Return where the compute times of some rows come from."""
    return "; ".join(dict.fromkeys(_ORIGIN_OF_COMPUTE[row.compute] for row in rows)) or "none"


def write_remarks(forecast: Forecast) -> list[str]:
    """Return remarks that a reader needs to judge the numbers."""
    rows = forecast.answers
    length = forecast.target.point.input_len
    other_lengths = [row for row in forecast.over_lengths if row.input_len != length]
    lines = [
        *forecast.warnings,
        f"from {forecast.run.name}; measured speed of the {_name_links(forecast)}: "
        f"{_format_speeds(forecast)}",
        *_describe_measured_arms(forecast),
        f"compute times: {_format_bases(rows)}",
        f"compute times of the other prompts: {_format_bases(other_lengths)}",
        "a rate is what large messages reach, not the nominal rate of a link",
        "intervals in brackets: bootstrap over rounds, and the model's own error",
    ]
    borrowed_levels = dict.fromkeys(
        f"{row.mode}@{row.level} from {row.arm}" for row in rows if row.is_borrowed
    )
    if borrowed_levels:
        lines.append(
            f"{BORROWED_MARK} costs of a level that was not measured: "
            f"{', '.join(borrowed_levels)}. Its error is {BORROWED_ERROR_PCT:g} % of TOTAL at least"
        )
    shown_rows = [*rows, *forecast.over_lengths]
    shown_rows += [row for target in forecast.other_targets for row in forecast.rows_of(target)]
    busy_arms = dict.fromkeys(arm for row in shown_rows for arm in row.busy_arms)
    if busy_arms:
        lines.append(
            f"{BUSY_MARK} contention is in part that of {', '.join(busy_arms)}, whose measured "
            "link was busy to the end. A faster link may have another one"
        )
    if not all(row.is_held for row in rows):
        lines.append(
            "NOT HELD AGAINST MEASUREMENT: setups with several sources or other sinks. Each worker "
            "is taken to have a link of its own and its share of compute and bytes"
        )
    return lines
