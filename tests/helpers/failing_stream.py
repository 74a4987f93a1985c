"""For tests of output in this process: a standard stream that fails."""

from __future__ import annotations

import io


class Failing(io.StringIO):
    """A stream that fails when it is flushed, as one that has a buffer does."""

    encoding = "utf-8"

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def flush(self) -> None:
        raise self.error
