"""A forecast in words: what each level will cost, and where the answer changes."""

from __future__ import annotations

from collections.abc import Sequence

from dejavubench.analysis.number_texts import signed_percent, three_digits
from dejavubench.analysis.prediction.compute import Basis
from dejavubench.analysis.prediction.table import Forecast, ForecastRow
from dejavubench.dejavulib.levels import LEVELS as SWITCHES

_COMPUTE = {
    Basis.MEASURED: "measured at these sizes",
    Basis.INTERPOLATED: "interpolated between two measured prompt lengths",
    Basis.EXTRAPOLATED: "EXTRAPOLATED from two measured prompt lengths",
    Basis.SCALED: "SCALED by arithmetic and bytes from other sizes, not measured",
}


def rate_text(rate: float) -> str:
    """Return a rate in bytes per second as people write it."""
    for unit, size in (("GB/s", 1e9), ("MB/s", 1e6), ("kB/s", 1e3)):
        if rate >= 0.9995 * size:
            return f"{three_digits(rate / size)} {unit}"
    return f"{three_digits(rate)} B/s"


def answers(forecast: Forecast) -> list[str]:
    """Return the sentences that answer first: costs per level, and where they cross."""
    return [
        sentence
        for mode in forecast.modes
        for sentence in (_cost(forecast, mode), _free(forecast, mode), _layerwise(forecast, mode))
        if sentence
    ]


def _cost(forecast: Forecast, mode: str) -> str:
    rows = [row for row in forecast.answers if row.mode == mode]
    costs = "; ".join(f"level {row.level} {_cost_text(row)}" for row in reversed(rows))
    return f"{mode} at {rate_text(forecast.rate)}, expected overhead: {costs}."


def _cost_text(row: ForecastRow) -> str:
    low, high = signed_percent(row.low_pct), signed_percent(row.high_pct)
    return f"{signed_percent(row.overhead_pct)} % ({low} to {high})"


def _free(forecast: Forecast, mode: str) -> str:
    """Say from which rate on each level costs nothing."""
    words = []
    for level in dict.fromkeys(row.level for row in reversed(forecast.answers) if row.mode == mode):
        rate = forecast.costs_nothing_from(mode, level)
        words.append(
            f"level {level} on no link"
            if rate is None
            else f"level {level} from {rate_text(rate)} on"
        )
    return f"{mode} costs nothing (at most {forecast.limit_pct:.2g} %): {', '.join(words)}."


def _layerwise(forecast: Forecast, mode: str) -> str:
    """Say from which prompt length on streaming layer by layer is faster."""
    levels = {row.level for row in forecast.answers if row.mode == mode}
    if not {"1", "2"} <= levels:
        return ""
    length = forecast.layerwise_pays_from(mode)
    if length is None:
        return (
            f"{mode}: layer-by-layer streaming (level 2 against 1) pays at no prompt of up to "
            f"{forecast.most_length:,} tokens at {rate_text(forecast.rate)}."
        )
    return f"{mode}: layer-by-layer streaming (level 2 against 1) pays from prompt {length:,} on."


def _speeds(forecast: Forecast) -> str:
    """Return the measured speeds of the run's links; a range if points differ."""
    rates: dict[str, list[float]] = {}
    for arm in forecast.run.arms:
        rates.setdefault(f"{arm.mode} ({arm.link.probe})", []).append(1e3 * arm.link.rate)
    words = []
    for name, known in rates.items():
        low, high = rate_text(min(known)), rate_text(max(known))
        words.append(f"{name} {low}" if low == high else f"{name} {low} to {high}")
    return ", ".join(words)


def _bases(rows: Sequence[ForecastRow]) -> str:
    """Return where the compute times of some rows come from."""
    return "; ".join(dict.fromkeys(_COMPUTE[row.compute] for row in rows)) or "none"


def remarks(forecast: Forecast) -> list[str]:
    """Return remarks that a reader needs to judge the numbers."""
    rows = forecast.answers
    length = forecast.target.point.input_len
    others = [row for row in forecast.over_lengths if row.input_len != length]
    lines = [
        f"from {forecast.run.name}; measured speed of its link: {_speeds(forecast)}",
        f"compute times: {_bases(rows)}",
        f"compute times of the other prompts: {_bases(others)}",
        "a rate is what large messages reach, not the nominal rate of a link",
        "intervals: bootstrap over rounds, and the model's own error",
    ]
    borrowed = dict.fromkeys(
        f"{row.mode}@{row.level} from {row.arm}"
        for row in rows
        if row.arm != f"{row.mode}@{row.level}"
    )
    if borrowed:
        lines.append(f"costs of a level that was not measured: {', '.join(borrowed)}")
    busy = dict.fromkeys(
        arm.name for arm in forecast.run.arms if SWITCHES[arm.level].overlapped and arm.is_link_busy
    )
    if busy:
        lines.append(
            f"{', '.join(busy)}: the measured link was busy to the end. Contention is that of a "
            "busy link; a faster one may have less"
        )
    if not all(row.is_held for row in rows):
        lines.append(
            "NOT HELD AGAINST MEASUREMENT: setups with several sources or other sinks. Each worker "
            "is taken to have a link of its own and its share of compute and bytes"
        )
    return lines
