"""``dejavubench figures``: records → the paper's figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dejavubench.cli.output import BadInput, name_left_out
from dejavubench.cli.params import PATH

if TYPE_CHECKING:
    from dejavubench.analysis.plotdata import Drawing


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=PATH)
@click.option(
    "-o",
    "--output",
    "folder",
    metavar="DIR",
    required=True,
    type=PATH,
    help="Where PNG, PDF and CSV go; made if it is not there.",
)
@click.option(
    "--together",
    is_flag=True,
    help="Put all runs of a figure in one drawing, if they can be compared.",
)
@click.option("--force", is_flag=True, help="Overwrite files that are in DIR.")
def figures(paths: tuple[Path, ...], folder: Path, together: bool, force: bool) -> None:
    """Draw Fig 2, Appendix A, Fig 7, Fig 25 and the link figure from runs.

    PATH is a run's folder or a folder of run folders (such as logs). A run is drawn as the figure that its
    configuration names, or else as the one that its arms fit. The link figure holds all runs that were made for it,
    each with a link of its own. A run that is damaged is left out and named, and the exit status is then 1.
    """
    from dejavubench.analysis import plotdata
    from dejavubench.analysis.compare import NotComparableError
    from dejavubench.analysis.find import find

    found = find(paths)
    found.bad += [f"{log} is a file; figures are drawn from run folders" for log in found.logs]
    if not found.runs:
        raise BadInput("\n".join(found.bad))
    try:
        drawings, complaints = plotdata.drawings(found.runs, together)
    except NotComparableError as error:
        raise BadInput("\n".join([str(error), *found.bad])) from None
    if not drawings:
        raise BadInput("\n".join(["nothing to draw: " + "; ".join(complaints), *found.bad]))
    for complaint in complaints:
        click.echo(f"left out: {complaint}", err=True)
    _save(drawings, folder, force)
    name_left_out(found.bad)


def _save(drawings: list[Drawing], folder: Path, force: bool) -> None:
    from dejavubench.analysis import plots

    there = [path for drawing in drawings for path in plots.paths(drawing, folder) if path.exists()]
    if there and not force:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise BadInput(f"{there[0]} exists{more}; --force overwrites")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for drawing in drawings:
            plots.save(drawing, folder)
            click.echo(str(plots.paths(drawing, folder)[0]))
    except OSError as error:
        raise BadInput(f"{error.filename or folder}: {error.strerror}") from None
