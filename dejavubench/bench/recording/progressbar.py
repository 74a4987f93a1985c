"""Progress on rank 0's stderr: a bar on a terminal, now and then a line when it is piped."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from dejavubench.units import seconds_text

QUIET_S = 5.0
"""Seconds between two lines where stderr is no terminal."""


class ProgressBar:
    """Counts iterations over all points.

    Args:
        total: iterations that are known to come; more rounds for precision may add to them.
        shown: false on all ranks but one.
    """

    def __init__(self, total: int, shown: bool) -> None:
        self._total = total
        self._done = 0
        self._shown = shown
        self._began = self._said = time.monotonic()
        self._bar = None
        if shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress as Bar

            self._bar = Bar(console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> ProgressBar:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Print one line now."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        elif self._shown:
            print(text, file=sys.stderr, flush=True)
            self._said = time.monotonic()

    def more(self, iterations: int) -> None:
        """Add iterations to those that are to come."""
        self._total += iterations

    def step(self, what: str) -> None:
        """Count one iteration that is done.

        Args:
            what: which iteration it was.
        """
        self._done += 1
        if self._bar:
            self._bar.update(self._task, completed=self._done, total=self._total, description=what)
        elif self._shown and time.monotonic() - self._said > QUIET_S:
            elapsed = time.monotonic() - self._began
            # All iterations count alike: arms take turns, so every stretch has some of each.
            left = elapsed / self._done * (self._total - self._done)
            self.say(
                f"{self._done}/{self._total} iterations, {what}; about {seconds_text(left)} left"
            )
