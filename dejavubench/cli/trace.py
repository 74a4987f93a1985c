"""``dejavubench trace``: one measured iteration → a file for the Perfetto UI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dejavubench.cli.output import BadInput, check_output, name_left_out, write_to
from dejavubench.cli.params import PATH, ParsedType

if TYPE_CHECKING:
    from dejavubench.records import Run


def _parse_round(value: str) -> str:
    if value in ("median", "worst") or (value.isdecimal() and int(value) > 0):
        return value
    raise ValueError(f"{value!r} is neither median nor worst, nor a round's number from 1 on")


@click.command()
@click.argument("folder", metavar="RUN", type=PATH)
@click.option(
    "--point", "point_id", metavar="ID", help="Point, such as p000. [default: the first one]"
)
@click.option(
    "--arm",
    "arm_name",
    metavar="ARM",
    help="Arm, such as mpi@3. [default: the one with the largest overhead]",
)
@click.option(
    "--round",
    "round_choice",
    type=ParsedType("round", _parse_round),
    metavar="median|worst|N",
    default="median",
    show_default=True,
    help="Round by its number from 1, or the one with the median TOTAL or the largest overhead.",
)
@click.option("-o", "--output", metavar="FILE", required=True, type=PATH, help="File to write.")
@click.option("--force", is_flag=True, help="Overwrite FILE if it exists.")
def trace(
    folder: Path,
    point_id: str | None,
    arm_name: str | None,
    round_choice: str,
    output: Path,
    force: bool,
) -> None:
    """Write a timeline of one measured iteration, which opens in the Perfetto UI.

    RUN is the folder of one run. Each rank is a process. Its lanes show the model's steps, the
    waits of the model, the parts of each chunk's way, and the sink.
    """
    check_output(output, force)
    from dejavubench.analysis.tables import ending_part
    from dejavubench.analysis.trace import document
    from dejavubench.analysis.trace.build import build
    from dejavubench.analysis.trace.choice import TraceError, choose
    from dejavubench.records import RecordError

    run = _find_one_run(folder)
    try:
        timeline = build(run, choose(run, point_id, arm_name, round_choice))
    except (TraceError, RecordError) as error:
        raise BadInput(str(error)) from None
    write_to(output, force, lambda file: document.write(timeline, file))
    click.echo(str(timeline.choice), err=True)
    for note in timeline.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"{output}: open it at ui.perfetto.dev", err=True)
    name_left_out(ending_part.list_damage(run))


def _find_one_run(folder: Path) -> Run:
    """Return the run of a folder.

    Raises:
        BadInput: it holds none, or several.
    """
    from dejavubench.analysis.find_runs import find

    found_runs = find([folder])
    if found_runs.bad or found_runs.logs:
        files = [f"{log} is no run's folder. Give the folder of one run" for log in found_runs.logs]
        raise BadInput("\n".join([*found_runs.bad, *files]))
    if len(found_runs.runs) > 1:
        run_list = "\n".join(f"  {run.path}" for run in found_runs.runs)
        raise BadInput(f"{folder} holds {len(found_runs.runs)} runs. Give one of them:\n{run_list}")
    return found_runs.runs[0]
