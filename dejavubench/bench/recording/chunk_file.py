"""The times of one rank's chunks, written outside the clock to a file beside its records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dejavubench import records
from dejavubench.bench.engine.clock import MicrobatchClock
from dejavubench.bench.recording.microbatches import IterationId
from dejavubench.config.arms import Arm
from dejavubench.dejavulib.chunk_times import MOST_TIMED_CHUNKS, LatencyPart
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.receiver import CacheReceiver
from dejavubench.dejavulib.transfers import PlannedChunk
from dejavubench.records.chunk_times import ChunkRecord
from dejavubench.records.line_writer import LineWriter


class ChunkFile:
    """``chunks-<rank>.jsonl`` of a run's folder, made when there is something to write."""

    def __init__(self, folder: Path, rank: int, session: int = 1) -> None:
        self._path = folder / records.name_chunk_file(rank, session)
        self._lines: LineWriter | None = None
        self._listed_chunks: set[tuple[str, str, int]] = set()

    def write(
        self,
        arm: Arm,
        iteration_id: IterationId,
        clocks: Sequence[MicrobatchClock],
        managers: Sequence[CacheManager],
    ) -> None:
        """Append the times of each microbatch's chunks, where they were taken.

        Before an arm's first times at a point, its chunks are listed.

        Args:
            managers: one per microbatch, with the times of all its chunks.
        """
        for microbatch, (clock, manager) in enumerate(zip(clocks, managers, strict=True)):
            if manager.times is not None:
                self._write(arm, iteration_id, microbatch, clock, manager)

    def _write(
        self,
        arm: Arm,
        iteration_id: IterationId,
        microbatch: int,
        clock: MicrobatchClock,
        manager: CacheManager,
    ) -> None:
        """Append one microbatch's times, after the list of its chunks at the first time."""
        key = iteration_id["point"], arm.name, microbatch
        if key not in self._listed_chunks:
            self._listed_chunks.add(key)
            self.append(_make_chunk_list(arm, iteration_id["point"], microbatch, manager))
        self.append(_make_chunk_times(iteration_id, microbatch, clock, manager))

    def write_arrivals(
        self,
        arm: Arm,
        iteration_id: IterationId,
        began_ns: int,
        receivers: Sequence[tuple[int, CacheReceiver]],
    ) -> None:
        """Append the times of each stream that this sink has received.

        Args:
            began_ns: when it began to receive.
            receivers: each with the number of its microbatch.
        """
        for microbatch, receiver in receivers:
            received_ns = [arrival.received_ns for arrival in receiver.arrivals]
            record = records.SinkChunkTimes(
                **iteration_id,
                ubatch=microbatch,
                peer=receiver.stream.peer_rank,
                stream=receiver.stream.id,
                began_ns=began_ns,
                received=None
                if None in received_ns
                else [moment - began_ns for moment in received_ns if moment is not None],
                scattered=[arrival.scattered_ns - began_ns for arrival in receiver.arrivals],
            )
            self.append(record)

    def append(self, record: ChunkRecord) -> None:
        """Write one line and hand it to the kernel, which keeps it if this process dies."""
        if self._lines is None:
            self._lines = LineWriter(self._path)
        self._lines.write(record.model_dump_json() + "\n")

    @property
    def seal(self) -> dict[str, str]:
        """The digest of the file by its name; empty if there is no file."""
        return {} if self._lines is None else self._lines.seal

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._lines is not None:
            self._lines.close()


def _make_chunk_list(
    arm: Arm, point_id: str, microbatch: int, manager: CacheManager
) -> records.ChunkList:
    return records.ChunkList(
        point=point_id,
        arm=arm.name,
        ubatch=microbatch,
        prompt_parts=_list_parts(manager.parts(0)),
        token_parts=_list_parts(manager.parts(1)),
        chunks=[
            _make_chunk_entry(planned_chunk) for planned_chunk in manager.chunks[:MOST_TIMED_CHUNKS]
        ],
        more=max(0, len(manager.chunks) - MOST_TIMED_CHUNKS),
    )


def _list_parts(parts: tuple[LatencyPart, ...]) -> list[records.ChunkPart]:
    return [records.ChunkPart(name=part.name, until=part.until) for part in parts]


def _make_chunk_entry(planned_chunk: PlannedChunk) -> records.ListedChunk:
    chunk = planned_chunk.chunk
    return records.ListedChunk(
        phase="tokens" if chunk.step else "prompt",
        step=chunk.step,
        layer=planned_chunk.layer,
        layers=chunk.region.layers.size,
        nbytes=chunk.nbytes,
        extents=planned_chunk.extent_count,
        peer=planned_chunk.stream.peer,
        stream=planned_chunk.stream.id,
    )


def _make_chunk_times(
    iteration_id: IterationId, microbatch: int, clock: MicrobatchClock, manager: CacheManager
) -> records.ChunkTimes:
    """Return a microbatch's times. Raises ValueError: a chunk is not complete yet."""
    times = manager.times
    assert times is not None
    if times.finished_count != times.chunk_count:
        raise ValueError(f"{times.finished_count} of {times.chunk_count} chunks are complete")
    # Counted from the prompt's submission: small numbers, and the same zero as the steps have.
    began_ns = round(clock.steps_began_s[0] * 1e9)
    return records.ChunkTimes.model_validate(
        {
            **iteration_id,
            "ubatch": microbatch,
            "began_ns": began_ns,
            **times.columns(began_ns),
            "beyond": times.beyond,
            "beyond_ns": times.beyond_ns if times.beyond else {},
        }
    )
