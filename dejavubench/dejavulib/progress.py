"""Progress reports: how a program learns that the library gets on.

The library reports each thing that it has done and each wait that it is in. By default nobody
listens. A program that wants to know sets :data:`listener`, for example::

    from . import progress

    class Counter:
        count = 0

        def count_progress(self) -> None:
            self.count += 1

        def waiting(self, patient: bool) -> contextlib.AbstractContextManager[None]:
            return contextlib.nullcontext()

    progress.listener = Counter()
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class ProgressListener(Protocol):
    """Receiver of progress reports. Its methods cost time in the middle of streaming."""

    def count_progress(self) -> None:
        """Note one more thing done, such as a chunk received. Called from any thread."""

    def waiting(self, patient: bool) -> AbstractContextManager[None]:
        """Return a context that lasts as long as a wait. Entered in any thread.

        Args:
            patient: the wait has a deadline of its own, so nobody else has to end it.
        """


class _SilentListener:
    """The listener until a program sets one."""

    def count_progress(self) -> None:
        return

    def waiting(self, patient: bool) -> AbstractContextManager[None]:
        return nullcontext()


# Read as `progress.listener` at each report: a name imported from here would stay silent.
listener: ProgressListener = _SilentListener()
"""The listener of this process."""
