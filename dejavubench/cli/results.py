"""Reports of runs as a table for people, or as a file in the format of its suffix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from dejavubench.cli.output import BadInput, check_output, style_of, write_to
from dejavubench.errors import DataError, UsageError

if TYPE_CHECKING:
    from dejavubench.analysis.reports.report import RunReport

ARM_ROWS = "arms"
"""The rows of csv: one for each point and arm."""


def write_reports(
    reports: Sequence[RunReport],
    style: str,
    output: Path | None,
    force: bool,
    table: str = ARM_ROWS,
) -> None:
    """Write reports to stdout or to a new file.

    Args:
        style: ``table``, ``csv``, ``json`` or ``markdown``.
        table: the rows of csv.

    Raises:
        BadInput: the file exists and ``force`` is off, or it cannot be made.
    """
    from dejavubench.analysis.reports import formats
    from dejavubench.cli.console import make_console

    def write(file: IO[str]) -> None:
        if style == "table":
            formats.show(reports, make_console(file=file))
        else:
            formats.write(reports, style, file, table)

    write_to(output, force, write)


@dataclass(frozen=True)
class ResultFile:
    """The file that a run's results go to when it ends."""

    path: Path
    force: bool

    def check(self) -> None:
        """Check that it can be written, before anything is measured.

        Raises:
            UsageError: it cannot.
        """
        try:
            check_output(self.path, self.force)
            style_of(self.path)
        except BadInput as error:
            raise UsageError(error.message) from None

    def write(self, report: RunReport) -> None:
        """Write the results.

        Raises:
            DataError: they cannot be written any more.
        """
        try:
            write_reports([report], style_of(self.path), self.path, self.force)
        except BadInput as error:
            raise DataError(error.message) from None
