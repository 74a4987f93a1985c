"""Columns of ``process``: one row for each point and arm of a run, or for each rank of a text log.

A name that ends in a unit is in that unit. ``_low`` and ``_high`` are the ends of a 95 % bootstrap
interval, ``_iqr`` is an interquartile range. A value that is missing is None.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Annotated, Any, Self

from dejavubench.analysis.columns import columns_of, names_of, values_by_column
from dejavubench.analysis.numbers.stats import Verdict
from dejavubench.analysis.scenarios.handover import HandoverTimes
from dejavubench.analysis.scenarios.restart import RestartTotals
from dejavubench.analysis.scenarios.swap import SwapTotals
from dejavubench.analysis.tables.host_columns import HostConditions
from dejavubench.records import PointInfo
from dejavubench.records.destination_info import NO_STREAMING

if TYPE_CHECKING:
    import pandas as pd


NO_ROUNDS = "no rounds"
"""Status of an arm that the run ended before."""

TOO_SHORT = "too short"
"""Status of a rank of a text log with too few iterations."""


@dataclass
class PointColumns:
    """Columns that a point's record holds under the same names."""

    @classmethod
    def of_point(cls, point: PointInfo) -> Self:
        """Return the columns with the values of a point's record."""
        return cls(**{column.name: getattr(point, column.name) for column in fields(cls)})


@dataclass
class Sizes(PointColumns):
    """Sizes of the point, as the run recorded them; missing for a text log."""

    model: Annotated[str | None, "Name of the model."] = None
    data_type: Annotated[str | None, "Data type of the weights and of the cache."] = None
    kv_layout: Annotated[str | None, "Layout of the KV cache in memory."] = None
    ubatch_size: Annotated[int | None, "Requests per microbatch."] = None
    input_len: Annotated[int | None, "Tokens per prompt."] = None
    output_len: Annotated[int | None, "New tokens per request."] = None
    tensor_para_size: Annotated[int | None, "Tensor-parallel size of the sources."] = None
    pipeline_para_size: Annotated[int | None, "Pipeline depth of the sources."] = None
    sinks: Annotated[str | None, "Setup of the sinks; empty if it is that of the sources."] = None
    handed_over: Annotated[
        int | None,
        "New tokens after which the sinks go on with the request; 0 if they only receive.",
    ] = None


@dataclass
class SettingColumns(PointColumns):
    """Settings of the point that a sweep may vary; missing if the records do not tell them."""

    threads: Annotated[int | None, "Threads per rank."] = None
    staging_mib: Annotated[int | None, "Size of each staging slot."] = None
    staging_slots: Annotated[int | None, "Staging slots per source."] = None
    confine: Annotated[bool | None, "Whether each source has one core."] = None


@dataclass
class Times:
    """Medians over rounds; within a round, the maximum over sources."""

    samples: Annotated[int | None, "Measured rounds, or iterations of a text log."] = None
    warmups: Annotated[int | None, "Warm-up iterations, which count in no other column."] = None
    prompt_ms: Annotated[
        float | None,
        "Time of the prompt phase, from submission until the first new token is known.",
    ] = None
    prompt_low_ms: Annotated[float | None, "Lower end of the interval of prompt_ms."] = None
    prompt_high_ms: Annotated[float | None, "Upper end of the interval of prompt_ms."] = None
    prompt_iqr_ms: Annotated[float | None, "Interquartile range of prompt_ms."] = None
    token_ms: Annotated[float | None, "Time of one decode step, median over the steps."] = None
    token_low_ms: Annotated[float | None, "Lower end of the interval of token_ms."] = None
    token_high_ms: Annotated[float | None, "Upper end of the interval of token_ms."] = None
    token_iqr_ms: Annotated[float | None, "Interquartile range of token_ms."] = None
    total_ms: Annotated[
        float | None,
        "Time of the whole request, drain included; with several microbatches, the makespan.",
    ] = None
    total_low_ms: Annotated[float | None, "Lower end of the interval of total_ms."] = None
    total_high_ms: Annotated[float | None, "Upper end of the interval of total_ms."] = None
    total_iqr_ms: Annotated[float | None, "Interquartile range of total_ms."] = None
    drain_ms: Annotated[float | None, "Wait at the end of a request for its last byte."] = None


@dataclass
class Overhead:
    """Overheads paired round by round.

    An overhead is the median over rounds of the arm's time divided by the geometric mean of the
    same round's baselines, less one.
    """

    baseline: Annotated[
        str | None, "Arms that the overhead is relative to, or why there is none."
    ] = None
    overhead_pct: Annotated[float | None, "Overhead of total_ms."] = None
    overhead_low_pct: Annotated[float | None, "Lower end of the interval of overhead_pct."] = None
    overhead_high_pct: Annotated[float | None, "Upper end of the interval of overhead_pct."] = None
    target_pct: Annotated[float | None, "Largest overhead that --target-overhead allows."] = None
    verdict: Annotated[
        Verdict | None,
        "Overhead against its target: met, missed, or unresolved while the interval holds both.",
    ] = None
    token_overhead_pct: Annotated[float | None, "Overhead of token_ms."] = None
    token_overhead_low_pct: Annotated[
        float | None, "Lower end of the interval of token_overhead_pct."
    ] = None
    token_overhead_high_pct: Annotated[
        float | None, "Upper end of the interval of token_overhead_pct."
    ] = None
    token_noise_floor_pct: Annotated[
        float | None, "token_ms of the second baseline over that of the first, less one."
    ] = None
    token_noise_floor_low_pct: Annotated[
        float | None, "Lower end of the interval of token_noise_floor_pct."
    ] = None
    token_noise_floor_high_pct: Annotated[
        float | None, "Upper end of the interval of token_noise_floor_pct."
    ] = None
    noise_floor_pct: Annotated[float | None, "Overhead of the second baseline over the first."] = (
        None
    )
    noise_floor_low_pct: Annotated[
        float | None, "Lower end of the interval of noise_floor_pct."
    ] = None
    noise_floor_high_pct: Annotated[
        float | None, "Upper end of the interval of noise_floor_pct."
    ] = None


@dataclass
class StreamTotals:
    """Streaming in one iteration: bytes and copies are sums over sources, a stall is a maximum."""

    stall_ms: Annotated[float | None, "Time that the model waited for streaming, drain apart."] = (
        None
    )
    largest_lag_bytes: Annotated[int | None, "Most bytes that were in place but not complete."] = (
        None
    )
    streamed_bytes: Annotated[int | None, "Bytes that all sources streamed."] = None
    copies_per_prompt: Annotated[int | None, "Copies or messages for one microbatch's prompt."] = (
        None
    )
    copies_per_token: Annotated[float | None, "Copies or messages for one decode step."] = None


@dataclass
class StreamRates:
    """Rates of the stream, in 10⁹ bytes per second, and the ceilings that bound them."""

    alone_ms: Annotated[
        float | None, "Time of the arm's chunks at level 3 while nothing is computed (T_alone)."
    ] = None
    alone_gb_per_s: Annotated[float | None, "Bytes streamed alone, divided by alone_ms."] = None
    total_gb_per_s: Annotated[float | None, "Bytes streamed, divided by total_ms."] = None
    ceiling: Annotated[str | None, "Name of the ceiling that bounds the stream."] = None
    ceiling_gb_per_s: Annotated[
        float | None, "That ceiling, summed over the ranks that measured it."
    ] = None
    ceiling_share_pct: Annotated[float | None, "alone_gb_per_s as a share of ceiling_gb_per_s."] = (
        None
    )
    hidden_pct: Annotated[
        float | None,
        "Share of alone_ms that hides behind compute; missing if alone_ms is below the noise.",
    ] = None


@dataclass
class Cpu:
    """CPU seconds of one iteration, summed over the ranks of a role."""

    cpu_model_s: Annotated[float | None, "CPU time of the threads that compute."] = None
    cpu_helper_s: Annotated[float | None, "CPU time of the threads that stream."] = None
    cpu_sink_s: Annotated[float | None, "CPU time of the sinks."] = None
    statistic: Annotated[str | None, "Statistic that the times are."] = None


@dataclass
class Events:
    """Times between CUDA events on the model's stream; missing on a CPU."""

    prompt_event_ms: Annotated[float | None, "The prompt phase between CUDA events."] = None
    token_event_ms: Annotated[float | None, "One decode step between CUDA events."] = None


@dataclass
class Speed:
    """The model alone against the machine; on rows of baselines without a pipeline."""

    prompt_tflop_per_s: Annotated[float | None, "Floating-point rate of the prompt phase."] = None
    prompt_share_pct: Annotated[float | None, "That rate as a share of the ceiling matmul."] = None
    token_gb_per_s: Annotated[
        float | None, "Weights and cache read per decode step, over token_ms."
    ] = None
    token_share_pct: Annotated[float | None, "That rate as a share of the ceiling memory-read."] = (
        None
    )


@dataclass
class Tails:
    """Times of single decode steps, over all rounds; of several sources the largest percentile.

    The overhead divides the arm's percentile by that of both baselines' tokens together. Its
    interval resamples whole rounds.
    """

    token_samples: Annotated[int | None, "Single decode steps of one source."] = None
    token_p50_ms: Annotated[float | None, "Time that half of the steps did not exceed."] = None
    token_p90_ms: Annotated[float | None, "Time that 90 % of the steps did not exceed."] = None
    token_p99_ms: Annotated[
        float | None, "Time that 99 % of the steps did not exceed; missing below 100 steps."
    ] = None
    token_max_ms: Annotated[float | None, "Time of the slowest step."] = None
    p99_overhead_pct: Annotated[float | None, "Overhead of token_p99_ms."] = None
    p99_overhead_low_pct: Annotated[
        float | None, "Lower end of the interval of p99_overhead_pct."
    ] = None
    p99_overhead_high_pct: Annotated[
        float | None, "Upper end of the interval of p99_overhead_pct."
    ] = None
    p99_noise_pct: Annotated[
        float | None, "Overhead of the second baseline's token_p99_ms over the first's."
    ] = None
    p99_noise_low_pct: Annotated[float | None, "Lower end of the interval of p99_noise_pct."] = None
    p99_noise_high_pct: Annotated[float | None, "Upper end of the interval of p99_noise_pct."] = (
        None
    )


@dataclass
class NoiseJudgement:
    """Whether an overhead is told from noise; missing for baselines and older text logs.

    It is told from noise if its interval excludes 0, and if it exceeds the largest difference of
    two identical arms. With fewer than 6 rounds nothing is decided.
    """

    noise_reach_pct: Annotated[
        float | None, "The farther end of the noise floor's interval, with 6 rounds or more."
    ] = None
    told_from_noise: Annotated[
        bool | None, "Whether overhead_pct is told from noise; missing if that is undecided."
    ] = None
    token_told_from_noise: Annotated[
        bool | None, "The same of token_overhead_pct, by the noise of tokens."
    ] = None


@dataclass
class Row:
    """Identity of a row: its run, point and arm, and whether it was measured."""

    run: Annotated[str, "Folder of the run, or path of the text log."]
    point: Annotated[str | None, "Point of the sweep, such as p000; missing for a text log."]
    sizes: Sizes
    arm: Annotated[str, "Name of the arm: a destination and a level."]
    mode: Annotated[str | None, "Destination; none is a baseline."] = None
    level: Annotated[str | None, "Level of DéjàVuLib's optimisations; missing for a baseline."] = (
        None
    )
    durability: Annotated[str | None, "Condition on which a chunk counts as written."] = None
    hosts: Annotated[str | None, "Place of the destination relative to the source."] = None
    status: Annotated[str, "ok, SKIPPED, FAILED, no rounds or too short."] = "ok"
    reason: Annotated[str | None, "Reason for any other status than ok."] = None
    verified: Annotated[
        str | None, "Whether the bytes were compared, and in how many iterations."
    ] = None
    times: Times = field(default_factory=Times)
    overhead: Overhead = field(default_factory=Overhead)
    streaming: StreamTotals = field(default_factory=StreamTotals)
    rates: StreamRates = field(default_factory=StreamRates)
    cpu: Cpu = field(default_factory=Cpu)
    events: Events = field(default_factory=Events)
    handover: HandoverTimes = field(default_factory=HandoverTimes)
    swap: SwapTotals = field(default_factory=SwapTotals)
    restart: RestartTotals = field(default_factory=RestartTotals)
    speed: Speed = field(default_factory=Speed)
    tails: Tails = field(default_factory=Tails)
    conditions: HostConditions = field(default_factory=HostConditions)
    settings: Annotated[
        str | None,
        "Options that differ from their defaults and have no column, as flags; empty if none does.",
    ] = None
    judged: NoiseJudgement = field(default_factory=NoiseJudgement)
    setting: SettingColumns = field(default_factory=SettingColumns)

    @property
    def ok(self) -> bool:
        """Whether the arm ran to its end and was not found wrong."""
        return self.status == "ok"

    @property
    def is_streaming(self) -> bool:
        """Whether the arm is no baseline."""
        return self.mode != NO_STREAMING


COLUMNS = tuple(columns_of(Row))
"""All columns of a row, in the order of csv."""

POINT_COLUMNS = names_of(Sizes)
"""Names of the sizes that a sweep may vary."""

SETTING_COLUMNS = names_of(SettingColumns)
"""Names of the settings that a sweep may vary. The work is the same with all of their values."""


def make_frame(rows: Iterable[Any], row_class: type[Any] = Row) -> pd.DataFrame:
    """Return rows of one class as a pandas table with all its columns."""
    import pandas as pd

    values = [values_by_column(row) for row in rows]
    return pd.DataFrame(values, columns=list(names_of(row_class))).convert_dtypes()
