"""``dejavubench figures``: records → the paper's figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dejavubench.cli.output import BadInput, name_left_out
from dejavubench.cli.params import PATH
from dejavubench.records.figures import FIGURES

if TYPE_CHECKING:
    from dejavubench.analysis.figures.figure import Drawing


HELP = f"""Draw figures from runs: {", ".join(FIGURES)}.

PATH is a run's folder, or a folder of run folders (such as logs). A run is drawn as the figure that
its --figure names, or else as the figure that fits its arms. The link figure shows all runs that
were made for it, each with its own link. A damaged run is left out and named on stderr; the exit
status is then 1.
"""


@click.command(help=HELP)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=PATH)
@click.option(
    "-o",
    "--output",
    "folder",
    metavar="DIR",
    required=True,
    type=PATH,
    help="Folder for PNG, PDF and CSV files; made if it does not exist.",
)
@click.option(
    "--together",
    is_flag=True,
    help="Draw all runs of a figure in one drawing, if they can be compared.",
)
@click.option(
    "--figure",
    "name",
    type=click.Choice(FIGURES),
    help="Figure to draw of each run, whatever the run was made for.",
)
@click.option("--force", is_flag=True, help="Overwrite files in DIR.")
def figures(
    paths: tuple[Path, ...], folder: Path, together: bool, name: str | None, force: bool
) -> None:
    """Draw the figures; exit 1 if a run is damaged or lacks what its figure needs."""
    from dejavubench.analysis.comparison.comparable import NotComparableError
    from dejavubench.analysis.figures.drawings import make_drawings
    from dejavubench.analysis.find_runs import find
    from dejavubench.analysis.tables import ending_part

    found_runs = find(paths)
    found_runs.bad += [
        f"{log} is a file; figures are drawn from the folders of runs" for log in found_runs.logs
    ]
    if not found_runs.runs:
        raise BadInput("\n".join(found_runs.bad))
    try:
        drawings, complaints = make_drawings(found_runs.runs, together, name)
    except NotComparableError as error:
        raise BadInput("\n".join([str(error), *found_runs.bad])) from None
    if not drawings:
        raise BadInput(
            "\n".join(
                [
                    "nothing to draw: "
                    + "; ".join(complaint.rstrip(".") for complaint in complaints),
                    *found_runs.bad,
                ]
            )
        )
    for complaint in complaints:
        click.echo(f"left out: {complaint}", err=True)
    _save(drawings, folder, force)
    damage_texts = [text for run in found_runs.runs for text in ending_part.list_damage(run)]
    name_left_out([*found_runs.bad, *damage_texts])


def _save(drawings: list[Drawing], folder: Path, force: bool) -> None:
    """Write PNG, PDF and CSV of each drawing; refuse first, so that none is written in vain."""
    from dejavubench.analysis.figures import files

    if folder.exists() and not folder.is_dir():
        raise BadInput(
            f"--output {folder} is not a folder. Figures are several files: give a folder"
        )
    existing_files = [
        path for drawing in drawings for path in files.list_paths(drawing, folder) if path.exists()
    ]
    if existing_files and not force:
        exist = (
            "1 file exists"
            if len(existing_files) == 1
            else f"{len(existing_files)} files exist, the first"
        )
        raise BadInput(f"{exist}: {existing_files[0]}. Use --force to overwrite, or another -o")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for drawing in drawings:
            files.save(drawing, folder)
            click.echo(str(files.list_paths(drawing, folder)[0]))
    except OSError as error:
        raise BadInput(f"{error.filename or folder}: {error.strerror}") from None
