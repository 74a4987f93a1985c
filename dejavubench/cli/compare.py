"""``dejavubench compare``: two runs → what changed, and a gate for continuous integration."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from dejavubench import units
from dejavubench.analysis.comparison.metric import Metric
from dejavubench.cli.output import BadInput, add_table_options, check_output, write_to
from dejavubench.cli.params import PATH, ParsedType
from dejavubench.errors import ExitStatus

if TYPE_CHECKING:
    from dejavubench.analysis.comparison.build import Comparison
    from dejavubench.analysis.comparison.operands import Operand


PICTURE_SUFFIXES = (".png", ".pdf", ".svg")
"""Suffixes of pictures that matplotlib draws."""


def _parse_limit(value: object) -> float:
    """Return a percentage or fraction; 0 as well, which forbids any slow-down that is shown."""
    return 0.0 if str(value).strip() in ("0", "0%", "0 %") else units.parse_fraction(value)


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option(
    "--metric",
    type=click.Choice([str(known_metric) for known_metric in Metric]),
    default=str(Metric.TOTAL),
    show_default=True,
    help="Time to compare: the whole request, its prompt, one token, or the 99th percentile.",
)
@click.option(
    "--fail-above",
    "limit",
    metavar="P%",
    type=ParsedType("limit", _parse_limit),
    help="Judge the change: exit with 4 if an arm is shown to be slower by more than P%, with 0 if "
    "all are shown not to be, else with 3.",
)
@click.option(
    "--figure",
    metavar="PICTURE",
    type=PATH,
    help="Draw A beside B, too: a file that ends in .png, .pdf or .svg.",
)
@add_table_options("Format: csv and json hold every column; markdown is for a pull request.")
def compare(
    a: str,
    b: str,
    metric: str,
    limit: float | None,
    figure: Path | None,
    style: str,
    output: Path | None,
    force: bool,
) -> None:
    """Show how B differs from A, arm by arm, and judge the change.

    A and B are folders of a run each. They can also be folders of equally many runs, which were
    measured in turns (A B A B). FOLDER:mpi@3 takes one arm of a run, FOLDER:p001 one point.

    Runs of other machines, models or sizes are refused. One setting may differ, such as threads:
    it is then what is compared.
    """
    from dejavubench.analysis.comparison.build import compare as compare_operands
    from dejavubench.analysis.comparison.comparable import NotComparableError

    if figure is not None:
        _check_picture(figure, force)
    try:
        comparison = compare_operands(
            _read_operand("A", a), _read_operand("B", b), Metric(metric), limit
        )
    except NotComparableError as error:
        raise BadInput(str(error)) from None
    _write(comparison, style, output, force)
    if figure is not None:
        _draw(comparison, figure, force)
    sys.exit(comparison.exit_status)


def _write(comparison: Comparison, style: str, output: Path | None, force: bool) -> None:
    """Write a comparison; name its result on stderr where stdout does not show it."""
    from dejavubench.analysis.comparison import document
    from dejavubench.cli.console import make_console

    def write(file: IO[str]) -> None:
        if style == "table":
            document.show(comparison, make_console(file=file))
        else:
            document.write(comparison, style, file)

    write_to(output, force, write)
    if style == "csv" or output is not None:
        click.echo(document.format_result_line(comparison), err=True)


def _check_picture(path: Path, force: bool) -> None:
    """Refuse a picture that could not be written, before the long work.

    Raises:
        BadInput: its suffix is unknown, or it cannot be written.
    """
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise BadInput(f"--figure {path}: use a file that ends in {', '.join(PICTURE_SUFFIXES)}")
    check_output(path, force)


def _draw(comparison: Comparison, path: Path, force: bool) -> None:
    from dejavubench.analysis.figures.files import save_pictures
    from dejavubench.analysis.figures.side_by_side import make_drawing

    try:
        save_pictures(make_drawing(comparison), [path], force)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}") from None


def _read_operand(name: str, text: str) -> Operand:
    """Read one operand; damaged records end the command with status 1, whatever the gate says."""
    from dejavubench.analysis.comparison.operands import parse_selection, read_operand
    from dejavubench.records import RecordError

    try:
        return read_operand(name, parse_selection(text))
    except RecordError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(ExitStatus.FAILED)
