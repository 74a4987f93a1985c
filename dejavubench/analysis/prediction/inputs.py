"""Inputs of a prediction: points without streaming, and arms over links, by round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dejavubench.analysis.breakdown.least_work import Work
from dejavubench.analysis.facts.samples import RoundValues
from dejavubench.analysis.numbers import stats
from dejavubench.analysis.prediction.chunk_rounds import ChunkRounds
from dejavubench.records import PointInfo

RESAMPLE_COUNT = 200
"""Resamples of the rounds that a prediction is made for, to find its interval."""


MS_PER_S = 1e3
"""Milliseconds of a second: rates are in bytes per second, the model's in bytes per millisecond."""


@dataclass(frozen=True)
class PointInputs:
    """A point without streaming.

    Attributes:
        work: least work of one microbatch.
        prompt_ms, tokens_ms: geometric mean of the baselines, by round.
        noise: reach of the second ``none`` against the first, as a fraction; None without it.
    """

    info: PointInfo
    work: Work
    prompt_ms: RoundValues
    tokens_ms: RoundValues
    noise: float | None

    @property
    def step_count(self) -> int:
        """Decode steps that the sources compute."""
        return (self.info.handed_over or self.info.output_len) - 1

    @cached_property
    def medians(self) -> dict[str, np.ndarray]:
        """Medians of prompt and tokens, in ms, as :func:`resample_medians` makes them."""
        return resample_medians({"prompt": self.prompt_ms, "tokens": self.tokens_ms})


@dataclass(frozen=True)
class LinkInputs:
    """The link that an arm went over.

    Attributes:
        rate: its speed in bytes per second: the median of a probe's samples, or what --link states.
        origin: name of that probe, or the option with its value.
        message_ms: time of one small message by the probe; 0 without it.
        packet_nbytes: bytes on the wire that each message of level 0 takes beside its own; 0 if the
            counters of the interface do not tell.
        burst_nbytes: bytes that the link passes at once after a pause; 0 unless it is emulated.
    """

    rate: float
    origin: str
    message_ms: float = 0.0
    packet_nbytes: float = 0.0
    burst_nbytes: float = 0.0

    @property
    def rate_per_ms(self) -> float:
        """Its speed in bytes per millisecond, as the model of time has it."""
        return self.rate / MS_PER_S


@dataclass(frozen=True)
class StagingInputs:
    """How an arm's chunks were cut: staging slots, and steps that moved as one."""

    slot_count: int
    slot_nbytes: float
    flush_interval: int


@dataclass(frozen=True)
class ArmInputs:
    """One arm over a link, at one point.

    Attributes:
        prompt_added_ms, tokens_added_ms: how much longer prompt and all steps took than without
            streaming, by round.
        overhead: of TOTAL, as a fraction.
    """

    name: str
    mode: str
    level: str
    point: PointInputs
    chunks: ChunkRounds
    link: LinkInputs
    staging: StagingInputs
    prompt_added_ms: RoundValues
    tokens_added_ms: RoundValues
    overhead: stats.Estimate

    @property
    def is_link_busy(self) -> bool:
        """Whether the last steps of a level 3 waited for the link: for longer than a step."""
        if self.chunks.step is None or not self.point.step_count:
            return False
        chunk_ms = self.medians["steps"][0] / self.point.step_count
        return bool(chunk_ms > self.point.medians["tokens"][0] / self.point.step_count)

    @cached_property
    def medians(self) -> dict[str, np.ndarray]:
        """Medians of the arm's series in ms, as :func:`resample_medians` makes them."""
        chunks = self.chunks
        series = {
            "prompt_added": self.prompt_added_ms,
            "tokens_added": self.tokens_added_ms,
            "tail": chunks.tail_ms,
            "prompt_stall": chunks.prompt_stall_ms,
        }
        if chunks.step is not None:
            series |= {"steps": chunks.steps_ms, "alone": chunks.alone_ms}
        if chunks.layer_lead_share:
            series["layer_lead_share"] = chunks.layer_lead_share
        rounds_by_part = {
            "gather": chunks.gather_ms,
            "post": chunks.post_ms,
            "sink": chunks.sink_ms,
        }
        for part, rounds_by_phase in rounds_by_part.items():
            for phase, ms_by_round in rounds_by_phase.items():
                series[f"{part}_{phase}"] = ms_by_round
        return resample_medians(series)


@dataclass(frozen=True)
class RunInputs:
    """Inputs from one run: its points without streaming, and its arms over links.

    :func:`.join_runs.join_runs` makes one of several runs.

    Attributes:
        run_count: runs that the inputs are from.
        machine: identifier of the machine, or the name of its CPU in older records.
        on_gpu: the model ran on a CUDA device.
    """

    name: str
    machine: str | None
    on_gpu: bool
    points: tuple[PointInputs, ...]
    arms: tuple[ArmInputs, ...]
    run_count: int = 1

    def arms_of(self, mode: str, level_names: Iterable[str]) -> list[ArmInputs]:
        """Return the arms of a destination at the first of some levels that was measured."""
        for level_name in level_names:
            arms = [arm for arm in self.arms if (arm.mode, arm.level) == (mode, level_name)]
            if arms:
                return arms
        return []


def resample_medians(series: Mapping[str, RoundValues]) -> dict[str, np.ndarray]:
    """Return the medians of series over the rounds that all have, for each resample of rounds.

    The rounds are the same in all series of a resample. The first element is that of the rounds as
    they were measured. So each array has 1 + :data:`RESAMPLE_COUNT` elements.
    """
    first_series, *other_series = series.values()
    rounds = sorted(set(first_series).intersection(*other_series))
    # A fixed seed: the same records must give the same prediction, and series of one run stay
    # paired.
    rng = np.random.default_rng(stats.SEED)
    picked_indices = rng.integers(0, len(rounds), size=(RESAMPLE_COUNT, len(rounds)))
    picked_indices = np.vstack([np.arange(len(rounds)), picked_indices])
    return {
        name: np.median(
            np.array([ms_by_round[round_number] for round_number in rounds])[picked_indices], axis=1
        )
        for name, ms_by_round in series.items()
    }
