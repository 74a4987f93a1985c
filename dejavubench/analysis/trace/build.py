"""From a run's records to the processes of a trace."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dejavubench.analysis.trace import sink_lanes, source_lanes
from dejavubench.analysis.trace.choice import ChosenIteration, TraceError
from dejavubench.analysis.trace.clocks import RankClock, clocks_of
from dejavubench.analysis.trace.events import Process
from dejavubench.analysis.trace.missing_times import explain_missing_times, require_undamaged
from dejavubench.records import (
    ChunkTimes,
    Microbatch,
    PhaseMark,
    RankInfo,
    Run,
    SinkChunkTimes,
    TimedArrivals,
    TimedChunks,
    read_chunk_times,
    read_sink_times,
)


@dataclass(frozen=True)
class Trace:
    """One measured iteration.

    Attributes:
        zero_ns: the first moment, by the clock of rank 0's host.
        notes: what a reader must know about what is shown, and what is not.
    """

    run: Run
    choice: ChosenIteration
    processes: list[Process]
    clocks: list[RankClock]
    zero_ns: int
    notes: list[str]


def build(run: Run, choice: ChosenIteration) -> Trace:
    """Collect what was measured of one iteration.

    Raises:
        TraceError: the records are older than the times that a trace needs, or a file of chunks'
            times is damaged.
        RecordError: a file of chunks' times cannot be read.
    """
    require_undamaged(run)
    clocks = clocks_of(run)
    timed_microbatches = [
        chunks for chunks in read_chunk_times(run.path) if _is_chosen(choice, chunks.times)
    ]
    arrivals = [
        sink_chunks
        for sink_chunks in read_sink_times(run.path)
        if _is_chosen(choice, sink_chunks.times)
    ]
    processes = []
    for _, info in sorted(
        run.records_of(RankInfo), key=lambda rank_and_info: rank_and_info[1].rank
    ):
        clock = clocks[info.rank]
        # Without an offset, lanes of two hosts side by side would show an order that nobody
        # measured.
        if clock.is_known:
            process = Process(info.rank, f"rank {info.rank}, {info.role}, {clock}")
            _fill_process(process, run, choice, clock, timed_microbatches, arrivals)
            processes.append(process)
    moments = [moment for process in processes for moment in process.moments]
    return Trace(
        run=run,
        choice=choice,
        processes=processes,
        clocks=list(clocks.values()),
        zero_ns=min(moments),
        notes=[
            *_make_notes(run, choice, clocks.values(), timed_microbatches),
            *_list_left_out(processes),
        ],
    )


def _fill_process(
    process: Process,
    run: Run,
    choice: ChosenIteration,
    clock: RankClock,
    timed_microbatches: list[TimedChunks],
    arrivals: list[TimedArrivals],
) -> None:
    """Add the lanes of one rank: its marks, and what it did as a source or as a sink."""
    microbatches = [
        microbatch
        for rank, microbatch in run.records_of(Microbatch)
        if rank == process.rank and _is_chosen(choice, microbatch)
    ]
    if any(
        microbatch.began_ns is None or not microbatch.steps_began_ns for microbatch in microbatches
    ):
        raise TraceError(
            f"{run.path} has no times of single steps: the program that wrote it is too old for "
            "a trace. Run the experiment again"
        )
    marks = _select_marks(run, process.rank, choice)
    source_lanes.add_marks(process, marks, clock.to_common)
    if microbatches:
        source_lanes.add_model(process, microbatches, clock.to_common)
        own_chunks = [chunks for chunks in timed_microbatches if chunks.rank == process.rank]
        if own_chunks:
            source_lanes.add_chunks(process, own_chunks, clock.to_common)
    own_arrivals = [
        stream_chunks for stream_chunks in arrivals if stream_chunks.rank == process.rank
    ]
    sink_lanes.add_arrivals(process, own_arrivals, timed_microbatches, clock.to_common)


def _select_marks(run: Run, rank: int, choice: ChosenIteration) -> list[PhaseMark]:
    """Return the marks between the preparation of the iteration and its verification."""
    marks: list[PhaseMark] = []
    is_inside = False
    for rank_of_mark, mark in run.records_of(PhaseMark):
        if rank_of_mark != rank:
            continue
        key = mark.point, mark.arm, mark.iteration
        # Marks have no round; within a run the iteration is unique for a point and arm.
        is_own = key == (choice.point_id, choice.arm_name, choice.iteration)
        # Probes of the arm between two iterations bear the number of the next one.
        is_inside = is_own and (is_inside or mark.phase == "prepare") and mark.phase != "verify"
        if is_inside and mark.phase != "prepare":
            marks.append(mark)
    return marks


def _is_chosen(choice: ChosenIteration, record: Microbatch | ChunkTimes | SinkChunkTimes) -> bool:
    """Return whether a record is of the chosen iteration."""
    key = record.point, record.arm, record.iteration, record.round
    return key == (choice.point_id, choice.arm_name, choice.iteration, choice.round)


def _make_notes(
    run: Run,
    choice: ChosenIteration,
    clocks: Iterable[RankClock],
    timed_microbatches: list[TimedChunks],
) -> list[str]:
    """Describe which lanes are missing, and which clocks were compared only in part."""
    arm = next(info for info in run.header.arms if info.name == choice.arm_name)
    notes = []
    if (arm.is_streaming or arm.is_swapping) and not timed_microbatches:
        notes.append(f"{explain_missing_times(run)}: no lanes of chunks")
    for clock in clocks:
        if not clock.is_known:
            notes.append(
                f"rank {clock.rank} is left out: the clock of its host {clock.host} was not "
                "compared with that of rank 0"
            )
        elif not clock.is_reference and clock.end is None:
            notes.append(
                f"the clock of {clock.host} was compared at the start only: its times are off by "
                "the drift since, too"
            )
    return notes


def _list_left_out(processes: Iterable[Process]) -> list[str]:
    return [note for process in processes for note in process.notes]
