"""Samples of a run: one series a quantity, for each point and arm.

A series holds one value per measured round; warm-ups are left out. Within a round, times are the
median over a source's microbatches (and steps), then the maximum over sources. Bytes, copies and
CPU seconds are sums.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from dejavubench.analysis.scenarios.handover import HandoverSamples
from dejavubench.analysis.scenarios.swap import SwapSamples
from dejavubench.records import ArmFailure, ArmInfo, PointInfo, Restart, Verification

RoundValues = dict[int, float]
"""Values by the number of the round."""

Quantity = Literal["total", "prompt", "token", "tokens"]
"""Series of :class:`PhaseTimes` that arms are compared by."""


@dataclass
class PhaseTimes:
    """Times by round, in ms.

    Attributes:
        total: the whole request; with several microbatches in flight, the makespan.
        prompt, token, tokens: the prompt, one step, and all steps together, from the begin of the
            first one to the last token.
        drain: the wait at the end of one microbatch.
        steps: every single step, one list for each source.
        prompt_event, token_event: times between CUDA events; empty on a CPU.
    """

    total: RoundValues = field(default_factory=dict)
    prompt: RoundValues = field(default_factory=dict)
    token: RoundValues = field(default_factory=dict)
    tokens: RoundValues = field(default_factory=dict)
    drain: RoundValues = field(default_factory=dict)
    steps: dict[int, list[list[float]]] = field(default_factory=dict)
    prompt_event: RoundValues = field(default_factory=dict)
    token_event: RoundValues = field(default_factory=dict)

    def series(self, quantity: Quantity) -> RoundValues:
        """Return the series of a quantity by its name."""
        series: RoundValues = getattr(self, quantity)
        return series


@dataclass
class Stalls:
    """Times by round that the model waited for streaming, in ms.

    Attributes:
        iteration: stall of a whole iteration, the drain apart.
        prompt, tokens: stall in one microbatch's prompt, and in all of its steps.
        drain: wait for the last byte, over all microbatches of a source.
    """

    iteration: RoundValues = field(default_factory=dict)
    prompt: RoundValues = field(default_factory=dict)
    tokens: RoundValues = field(default_factory=dict)
    drain: RoundValues = field(default_factory=dict)


@dataclass
class StreamSamples:
    """Bytes and copies of one iteration, by round.

    Attributes:
        nbytes: bytes that all sources streamed.
        prompt_copies: copies or messages for one microbatch's prompt.
        token_copies: copies or messages for one step.
        lag_nbytes: largest lag of all rounds and sources.
        left_nbytes: bytes of one source that were not complete when its last token was known; the
            most of any source.
    """

    nbytes: RoundValues = field(default_factory=dict)
    prompt_copies: RoundValues = field(default_factory=dict)
    token_copies: RoundValues = field(default_factory=dict)
    lag_nbytes: int = 0
    left_nbytes: RoundValues = field(default_factory=dict)


@dataclass
class CpuSeconds:
    """CPU seconds of one iteration by round, summed over the ranks of a role."""

    model: RoundValues = field(default_factory=dict)
    helper: RoundValues = field(default_factory=dict)
    sink: RoundValues = field(default_factory=dict)


class StreamAloneTime(NamedTuple):
    """The arm's chunks at level 3 without compute: the slowest source's time, all bytes."""

    ms: float
    nbytes: int


class SourceAloneTimes(NamedTuple):
    """One source's chunks at level 3 without compute: the best time of each kind, its bytes.

    Attributes:
        isolated_ms: while the other sources stream nothing.
        together_ms: while all sources stream.
    """

    isolated_ms: float
    together_ms: float
    nbytes: int


@dataclass
class ArmSamples:
    """Measurements of one arm at one point, in groups.

    Attributes:
        restarts: one per source, of a run that restarts a killed run's request.
        warmup_count: iterations that were recorded as warm-up.
        checks: verifications in the order of the records.
        stream_alone: T_alone, of the best pass of each source.
        sources_alone: the streams of each source by its rank, if there are several.
        failure: reason why the arm stopped while the run went on.
    """

    point_info: PointInfo
    info: ArmInfo
    times: PhaseTimes = field(default_factory=PhaseTimes)
    stalls: Stalls = field(default_factory=Stalls)
    stream: StreamSamples = field(default_factory=StreamSamples)
    cpu: CpuSeconds = field(default_factory=CpuSeconds)
    handover: HandoverSamples = field(default_factory=HandoverSamples)
    swap: SwapSamples = field(default_factory=SwapSamples)
    restarts: list[Restart] = field(default_factory=list)
    warmup_count: int = 0
    checks: list[Verification] = field(default_factory=list)
    stream_alone: StreamAloneTime | None = None
    sources_alone: dict[int, SourceAloneTimes] = field(default_factory=dict)
    failure: ArmFailure | None = None

    @property
    def why_failed(self) -> str | None:
        """Reason why the times cannot be shown; None if they can."""
        if self.failure is not None:
            failure = self.failure
            failed_at = f"iteration {failure.iteration}, phase {failure.phase}, rank {failure.rank}"
            return f"{failed_at}: {failure.error}"
        check = self.failed_check
        if check is None:
            return None
        difference = check.where or (
            "tokens differ from none's" if check.tokens_equal is False else "bytes differ"
        )
        return f"iteration {check.iteration}: {difference}"

    @property
    def failed_check(self) -> Verification | None:
        """The first verification that found other bytes or other tokens; None without one."""
        return next(
            (check for check in self.checks if not check.ok or check.tokens_equal is False), None
        )


@dataclass
class PointSamples:
    """The arms of one point; arms that did not run are not in ``arms``."""

    info: PointInfo
    arms: dict[str, ArmSamples] = field(default_factory=dict)

    def baseline_arms(self) -> list[ArmSamples]:
        """Return ``none`` and its repeat, as far as they exist and are verified."""
        arms_by_role = {
            arm.info.role: arm for arm in self.arms.values() if arm.info.role != "streaming"
        }
        arms = [arms_by_role[role] for role in ("baseline", "repeat") if role in arms_by_role]
        return [arm for arm in arms if arm.why_failed is None]

    def baselines(self, quantity: Quantity = "total") -> list[RoundValues]:
        """Return the series of the baselines that have this quantity."""
        series_of_arms = [arm.times.series(quantity) for arm in self.baseline_arms()]
        return [series for series in series_of_arms if series]
