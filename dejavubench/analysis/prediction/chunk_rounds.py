"""Times of chunks → the numbers of each round that a prediction needs, per point and arm."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from dejavubench.analysis.facts.samples import PointSamples
from dejavubench.records import ChunkList, ChunkTimes, Run, TimedChunks, read_source_times

NS_PER_MS = 1e6


@dataclass(frozen=True)
class PhaseShape:
    """The chunks of the prompt, or those of one decode step.

    Attributes:
        nbytes: mean size of a chunk.
        extents: number of extents of the phase.
    """

    nbytes: float
    extents: float


@dataclass
class ChunkRounds:
    """The chunks of one arm by round; all times are in ms.

    Attributes:
        from_device: chunks are copied from a device, by the device.
        tail: time from the prompt's last chunk being ready until all of its chunks are complete.
        early_layers: how long before the end of its share of the prompt a layer's keys and values
            were in place, as a part of that share. Empty, unless layers left one by one.
        prompt_stall: time from the end of the prompt's compute until its chunks are complete.
        steps: sum over the decode steps of the time from ready to complete.
        alone: median over the steps' chunks of the time that each took once the chunk before it
            was complete.
        gather, post, sink: medians of these parts of a chunk, by phase.
    """

    prompt: PhaseShape
    step: PhaseShape | None
    from_device: bool
    tail: dict[int, float] = field(default_factory=dict)
    early_layers: dict[int, float] = field(default_factory=dict)
    prompt_stall: dict[int, float] = field(default_factory=dict)
    steps: dict[int, float] = field(default_factory=dict)
    alone: dict[int, float] = field(default_factory=dict)
    gather: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    post: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    sink: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))


def chunk_rounds(
    run: Run, points: Mapping[str, PointSamples]
) -> dict[tuple[str, str], ChunkRounds]:
    """Return the chunks of each point and arm by round; empty for a run without chunk times.

    Warm-ups and rounds that were cut short are left out. The runs have one source and one
    microbatch in flight.

    Raises:
        RecordError: a file cannot be read, or does not belong to the run.
    """
    rounds: dict[tuple[str, str], ChunkRounds] = {}
    for record in read_source_times(run.path, run.damaged_files):
        if not isinstance(record, TimedChunks):
            continue
        _, listed, times = record
        point = points.get(times.point)
        round_number = times.round
        if point is None or times.arm not in point.arms or round_number is None:
            continue
        if round_number not in point.arms[times.arm].times.total:
            continue
        point_and_arm = times.point, times.arm
        if point_and_arm not in rounds:
            rounds[point_and_arm] = ChunkRounds(
                _shape(listed, "prompt"), _step_shape(listed), times.copied is not None
            )
        add_round(rounds[point_and_arm], round_number, listed, times)
    return rounds


def _shape(listed: ChunkList, phase: str) -> PhaseShape:
    chunks = [chunk for chunk in listed.chunks if chunk.phase == phase]
    return PhaseShape(
        float(np.mean([chunk.nbytes for chunk in chunks])),
        sum(chunk.extents for chunk in chunks),
    )


def _step_shape(listed: ChunkList) -> PhaseShape | None:
    steps = {chunk.step for chunk in listed.chunks if chunk.phase == "tokens"}
    if not steps:
        return None
    shape = _shape(listed, "tokens")
    return PhaseShape(shape.nbytes, shape.extents / len(steps))


def add_round(rounds: ChunkRounds, round_number: int, listed: ChunkList, times: ChunkTimes) -> None:
    """Add the numbers of one round, as :class:`ChunkRounds` defines them."""
    ready = _column(times.ready)
    complete = _column(times.complete)
    begun = _column(times.begun)
    gathered = _column(times.gathered)
    posted = _column(times.posted)
    # From a device, a chunk is posted once the helper has seen that its copy is over.
    noticed = _column(times.seen or times.copied or times.gathered)
    # The chunk before has left the link by then, so what is left is the time of this one alone.
    previous_complete = np.concatenate([ready[:1], complete[:-1]])
    alone = complete - np.maximum(ready, previous_complete)
    phases = np.array([chunk.phase for chunk in listed.chunks])
    for phase in ("prompt", "tokens"):
        is_in_phase = phases == phase
        if not is_in_phase.any():
            continue
        rounds.gather[phase][round_number] = _median(gathered - begun, is_in_phase)
        rounds.post[phase][round_number] = _median(
            posted - np.maximum(noticed, gathered), is_in_phase
        )
        if times.sink_ns is not None:
            rounds.sink[phase][round_number] = _median(_column(times.sink_ns), is_in_phase)
    is_prompt = phases == "prompt"
    tail = complete[is_prompt].max() - ready[is_prompt].max()
    rounds.tail[round_number] = rounds.prompt_stall[round_number] = tail
    layer_ready = np.unique(ready[is_prompt])
    if len(layer_ready) > 1:
        layer_ms = (layer_ready[-1] - layer_ready[0]) / (len(layer_ready) - 1)
        # A layer's attention and MLP follow its keys and values. So the first layer's are ready
        # early, and the last layer's before the prompt's compute ends.
        early_ms = max(0.0, layer_ms - layer_ready[0])
        rounds.early_layers[round_number] = early_ms / layer_ms
        rounds.prompt_stall[round_number] = max(0.0, tail - early_ms)
    if not is_prompt.all():
        steps = np.array([chunk.step for chunk in listed.chunks])
        rounds.steps[round_number] = sum(
            complete[steps == step].max() - ready[steps == step].max()
            for step in sorted(set(steps[~is_prompt]))
        )
        rounds.alone[round_number] = _median(alone, ~is_prompt)


def _column(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.float64) / NS_PER_MS


def _median(values: np.ndarray, is_chosen: np.ndarray) -> float:
    """Return the median of the chosen times; clocks of two threads can make one negative."""
    return float(np.median(np.maximum(values[is_chosen], 0.0)))
