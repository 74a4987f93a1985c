"""Rules for the files of hosts' conditions."""

from __future__ import annotations

from collections.abc import Iterator

from dejavubench.analysis.hostrounds import host_rounds
from dejavubench.records import RecordError, Run


def of_this_run(run: Run) -> Iterator[str]:
    """Each file can be read, is of this run, and names points and arms of it."""
    try:
        host_rounds(run)
    except RecordError as error:
        yield str(error)


RULES = (of_this_run,)
