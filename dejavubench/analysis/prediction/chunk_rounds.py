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
        extent_count: number of extents of the phase.
    """

    nbytes: float
    extent_count: float


@dataclass
class ChunkRounds:
    """The chunks of one arm by round.

    Attributes:
        from_device: chunks are copied from a device, by the device.
        tail_ms: time from the prompt's last chunk being ready until all of its chunks are complete.
        layer_lead_share: how long before the end of its share of the prompt a layer's keys and
            values were in place, as a part of that share. Empty, unless layers left one by one.
        prompt_stall_ms: time from the end of the prompt's compute until its chunks are complete.
        steps_ms: sum over the decode steps of the time from ready to complete.
        alone_ms: median over the steps' chunks of the time that each took once the chunk before it
            was complete.
        gather_ms, post_ms, sink_ms: medians of these parts of a chunk, by phase.
    """

    prompt: PhaseShape
    step: PhaseShape | None
    from_device: bool
    tail_ms: dict[int, float] = field(default_factory=dict)
    layer_lead_share: dict[int, float] = field(default_factory=dict)
    prompt_stall_ms: dict[int, float] = field(default_factory=dict)
    steps_ms: dict[int, float] = field(default_factory=dict)
    alone_ms: dict[int, float] = field(default_factory=dict)
    gather_ms: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    post_ms: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    sink_ms: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))


def collect_chunk_rounds(
    run: Run, points: Mapping[str, PointSamples]
) -> dict[tuple[str, str], ChunkRounds]:
    """Return the chunks of each point and arm by round; empty for a run without chunk times.

    Warm-ups and rounds that were cut short are left out. The runs have one source and one
    microbatch in flight.

    Raises:
        RecordError: a file cannot be read, or does not belong to the run.
    """
    rounds_by_arm: dict[tuple[str, str], ChunkRounds] = {}
    for record in read_source_times(run.path, run.damaged_files):
        if not isinstance(record, TimedChunks):
            continue
        _, chunk_list, chunk_times = record
        point = points.get(chunk_times.point)
        round_number = chunk_times.round
        if point is None or chunk_times.arm not in point.arms or round_number is None:
            continue
        if round_number not in point.arms[chunk_times.arm].times.total:
            continue
        point_and_arm = chunk_times.point, chunk_times.arm
        if point_and_arm not in rounds_by_arm:
            rounds_by_arm[point_and_arm] = ChunkRounds(
                _shape_of_phase(chunk_list, "prompt"),
                _make_step_shape(chunk_list),
                chunk_times.copied is not None,
            )
        add_round(rounds_by_arm[point_and_arm], round_number, chunk_list, chunk_times)
    return rounds_by_arm


def _shape_of_phase(chunk_list: ChunkList, phase: str) -> PhaseShape:
    chunks = [chunk for chunk in chunk_list.chunks if chunk.phase == phase]
    return PhaseShape(
        float(np.mean([chunk.nbytes for chunk in chunks])),
        sum(chunk.extents for chunk in chunks),
    )


def _make_step_shape(chunk_list: ChunkList) -> PhaseShape | None:
    steps = {chunk.step for chunk in chunk_list.chunks if chunk.phase == "tokens"}
    if not steps:
        return None
    shape = _shape_of_phase(chunk_list, "tokens")
    return PhaseShape(shape.nbytes, shape.extent_count / len(steps))


def add_round(
    rounds: ChunkRounds, round_number: int, chunk_list: ChunkList, chunk_times: ChunkTimes
) -> None:
    """Add the numbers of one round, as :class:`ChunkRounds` defines them."""
    ready_ms = _to_ms(chunk_times.ready)
    complete_ms = _to_ms(chunk_times.complete)
    begun_ms = _to_ms(chunk_times.begun)
    gathered_ms = _to_ms(chunk_times.gathered)
    posted_ms = _to_ms(chunk_times.posted)
    # From a device, a chunk is posted once the helper has seen that its copy is over.
    noticed_ms = _to_ms(chunk_times.seen or chunk_times.copied or chunk_times.gathered)
    # The chunk before has left the link by then, so what is left is the time of this one alone.
    previous_complete_ms = np.concatenate([ready_ms[:1], complete_ms[:-1]])
    alone_ms = complete_ms - np.maximum(ready_ms, previous_complete_ms)
    phases = np.array([chunk.phase for chunk in chunk_list.chunks])
    for phase in ("prompt", "tokens"):
        is_in_phase = phases == phase
        if not is_in_phase.any():
            continue
        rounds.gather_ms[phase][round_number] = _compute_median_ms(
            gathered_ms - begun_ms, is_in_phase
        )
        rounds.post_ms[phase][round_number] = _compute_median_ms(
            posted_ms - np.maximum(noticed_ms, gathered_ms), is_in_phase
        )
        if chunk_times.sink_ns is not None:
            rounds.sink_ms[phase][round_number] = _compute_median_ms(
                _to_ms(chunk_times.sink_ns), is_in_phase
            )
    is_prompt = phases == "prompt"
    tail_ms = complete_ms[is_prompt].max() - ready_ms[is_prompt].max()
    rounds.tail_ms[round_number] = rounds.prompt_stall_ms[round_number] = tail_ms
    layer_ready_ms = np.unique(ready_ms[is_prompt])
    if len(layer_ready_ms) > 1:
        layer_ms = (layer_ready_ms[-1] - layer_ready_ms[0]) / (len(layer_ready_ms) - 1)
        # A layer's attention and MLP follow its keys and values. So the first layer's are ready
        # early, and the last layer's before the prompt's compute ends.
        early_ms = max(0.0, layer_ms - layer_ready_ms[0])
        rounds.layer_lead_share[round_number] = early_ms / layer_ms
        rounds.prompt_stall_ms[round_number] = max(0.0, tail_ms - early_ms)
    if not is_prompt.all():
        chunk_steps = np.array([chunk.step for chunk in chunk_list.chunks])
        rounds.steps_ms[round_number] = sum(
            complete_ms[chunk_steps == step].max() - ready_ms[chunk_steps == step].max()
            for step in sorted(set(chunk_steps[~is_prompt]))
        )
        rounds.alone_ms[round_number] = _compute_median_ms(alone_ms, ~is_prompt)


def _to_ms(stamps_ns: list[int]) -> np.ndarray:
    return np.array(stamps_ns, dtype=np.float64) / NS_PER_MS


def _compute_median_ms(times_ms: np.ndarray, is_chosen: np.ndarray) -> float:
    """Return the median of the chosen times; clocks of two threads can make one negative."""
    return float(np.median(np.maximum(times_ms[is_chosen], 0.0)))
