"""Progress on rank 0's stderr: a bar on a terminal, now and then a line when it is piped."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from dejavubench.bench.recording.measured_so_far import MeasuredSoFar
from dejavubench.bench.recording.time_left import TimeLeft

QUIET_S = 5.0
"""Seconds between two lines where stderr is no terminal."""

BAR_WIDTH = 15
"""Characters of the bar."""


class ProgressBar:
    """Counts iterations over all points, and says what goes on.

    Args:
        total: number of iterations; None if precision decides it.
        time_left: estimates the time left.
        measured_so_far: counts what was measured.
        is_shown: false on all ranks but one.
    """

    def __init__(
        self, total: int | None, time_left: TimeLeft, measured_so_far: MeasuredSoFar, is_shown: bool
    ) -> None:
        self.time_left = time_left
        self.measured_so_far = measured_so_far
        self._total = total
        self._completed_count = 0
        self._is_shown = is_shown
        self._last_line_s = float("-inf")
        self._bar = None
        if is_shown and sys.stderr.isatty():
            # Imported only for a bar: under mpirun stderr is mostly a pipe, and rich takes a while.
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn
            from rich.table import Column

            # One line on any terminal: where it is narrow, the end of the description is cut.
            cut = Column(no_wrap=True, overflow="ellipsis")
            columns = (
                BarColumn(bar_width=BAR_WIDTH),
                TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True)),
                TextColumn("{task.description}", table_column=cut),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=total, left="")

    def __enter__(self) -> ProgressBar:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def begin_point(self, point_id: str) -> None:
        """Note that the next point begins, with loading."""
        self.time_left.begin_point()
        self.measured_so_far.begin(point_id)

    def print_line(self, text: str) -> None:
        """Print one line now."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        elif self._is_shown:
            print(text, file=sys.stderr, flush=True)
            self._last_line_s = time.monotonic()

    def announce(self, text: str) -> None:
        """Print what begins: before the first iteration always, later after a long silence."""
        if self._bar:
            self._bar.update(self._task, description=text)
        if self._completed_count == 0 or (self._is_quiet() and not self._bar):
            self.print_line(text)

    def advance(self, title: str) -> None:
        """Count one iteration that is done.

        Args:
            title: names the iteration.
        """
        self._completed_count += 1
        if self._bar:
            left_text = self.time_left.describe()
            self._bar.update(
                self._task, completed=self._completed_count, description=title, left=left_text
            )
        elif self._is_shown and self._is_quiet():
            of_total = "" if self._total is None else f"/{self._total}"
            self.print_line(
                f"{self._completed_count}{of_total} iterations, {title}; "
                f"{self.time_left.describe()}"
            )

    def _is_quiet(self) -> bool:
        return time.monotonic() - self._last_line_s > QUIET_S
