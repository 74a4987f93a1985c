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
        steps: sum over the decode steps of the time from ready to complete.
        alone: median over the steps' chunks of the time that each took once the chunk before it
            was complete.
        gather, post, sink: medians of these parts of a chunk, by phase.
    """

    prompt: PhaseShape
    step: PhaseShape | None
    from_device: bool
    tail: dict[int, float] = field(default_factory=dict)
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
    for item in read_source_times(run.path, run.damaged):
        if not isinstance(item, TimedChunks):
            continue
        _, listed, times = item
        point = points.get(times.point)
        number = times.round
        if point is None or times.arm not in point.arms or number is None:
            continue
        if number not in point.arms[times.arm].times.total:
            continue
        key = times.point, times.arm
        if key not in rounds:
            rounds[key] = ChunkRounds(
                _shape(listed, "prompt"), _step_shape(listed), times.copied is not None
            )
        _add(rounds[key], number, listed, times)
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


def _add(rounds: ChunkRounds, number: int, listed: ChunkList, times: ChunkTimes) -> None:
    ready, complete = _column(times.ready), _column(times.complete)
    begun, gathered, posted = map(_column, (times.begun, times.gathered, times.posted))
    # From a device, a chunk is posted once the helper has seen that its copy is over.
    seen = _column(times.seen or times.copied or times.gathered)
    before = np.concatenate([ready[:1], complete[:-1]])
    alone = complete - np.maximum(ready, before)
    phases = np.array([chunk.phase for chunk in listed.chunks])
    for phase in ("prompt", "tokens"):
        of_phase = phases == phase
        if not of_phase.any():
            continue
        rounds.gather[phase][number] = _median(gathered - begun, of_phase)
        rounds.post[phase][number] = _median(posted - np.maximum(seen, gathered), of_phase)
        if times.sink_ns is not None:
            rounds.sink[phase][number] = _median(_column(times.sink_ns), of_phase)
    prompt = phases == "prompt"
    rounds.tail[number] = complete[prompt].max() - ready[prompt].max()
    if not prompt.all():
        steps = np.array([chunk.step for chunk in listed.chunks])
        rounds.steps[number] = sum(
            complete[steps == step].max() - ready[steps == step].max()
            for step in sorted(set(steps[~prompt]))
        )
        rounds.alone[number] = _median(alone, ~prompt)


def _column(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.float64) / NS_PER_MS


def _median(values: np.ndarray, chosen: np.ndarray) -> float:
    return float(np.median(np.maximum(values[chosen], 0.0)))
