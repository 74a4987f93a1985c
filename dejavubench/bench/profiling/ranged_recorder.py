"""A recorder that names the phases of a scenario for a profiler."""

from __future__ import annotations

from pathlib import Path

from dejavubench.bench.recording.recorder import Recorder
from dejavubench.dejavulib.ranged_streamer import Ranges, name_range
from dejavubench.records import lanes


class RangedRecorder(Recorder):
    """A recorder that pushes a range for each phase, within one for the iteration of an arm.

    A phase lasts until the next one is recorded, or the file is closed. All phases are recorded by
    one thread, the model's, outside of the ranges of its steps.

    Args:
        ranges: where they are pushed. All others are those of :class:`Recorder`.
    """

    def __init__(
        self,
        ranges: Ranges,
        folder: Path,
        rank: int,
        has_several_points: bool,
        to_stdout: bool,
        session: int = 1,
    ) -> None:
        super().__init__(folder, rank, has_several_points, to_stdout, session)
        self._ranges = ranges
        self._iteration: str | None = None
        self._open_count = 0

    def mark_phase(self, phase: str, **details: str | int | None) -> None:
        """Record that a phase begins, as :meth:`Recorder.mark_phase`."""
        super().mark_phase(phase, **details)
        iteration = None
        if details.get("arm") is not None:
            iteration = (
                f"{details.get('point')} {details['arm']}, iteration {details.get('iteration')}"
            )
        # Of an arm's iteration only the innermost range, its phase, ends with each new phase.
        is_same_iteration = iteration is not None and iteration == self._iteration
        self._end(1 if is_same_iteration else 0)
        if iteration is not None and not is_same_iteration:
            self._begin(iteration)
        self._iteration = iteration
        self._begin(name_range(lanes.PHASES, phase))

    def close(self) -> None:
        """End the range of the last phase, and close the file."""
        self._end(0)
        super().close()

    def _begin(self, name: str) -> None:
        self._ranges.push(name)
        self._open_count += 1

    def _end(self, remaining_count: int) -> None:
        """End ranges until this number of them is left."""
        while self._open_count > remaining_count:
            self._ranges.pop()
            self._open_count -= 1
