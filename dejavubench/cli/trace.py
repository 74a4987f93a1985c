"""``dejavubench trace``: one measured iteration → a file for the Perfetto UI."""

from __future__ import annotations

from pathlib import Path

import click

from dejavubench.cli.output import BadInput, check_output, name_left_out, write_to
from dejavubench.cli.params import PATH, ParsedType


def _round(value: str) -> str:
    if value in ("median", "worst") or (value.isdecimal() and int(value) > 0):
        return value
    raise ValueError(f"{value!r} is neither median nor worst, nor a round's number from 1 on")


@click.command()
@click.argument("run", metavar="RUN", type=PATH)
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
    type=ParsedType("round", _round),
    metavar="median|worst|N",
    default="median",
    show_default=True,
    help="Round by its number from 1, or the one with the median TOTAL or the largest overhead.",
)
@click.option("-o", "--output", metavar="FILE", required=True, type=PATH, help="File to write.")
@click.option("--force", is_flag=True, help="Overwrite FILE if it exists.")
def trace(
    run: Path,
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
    from dejavubench.analysis.find_runs import find
    from dejavubench.analysis.tables import health
    from dejavubench.analysis.trace import document
    from dejavubench.analysis.trace.build import build
    from dejavubench.analysis.trace.choice import TraceError, choose
    from dejavubench.records import RecordError

    wanted = find([run])
    if wanted.bad or wanted.logs:
        raise BadInput(
            "\n".join([*wanted.bad, *(f"{log} is no run's folder" for log in wanted.logs)])
        )
    if len(wanted.runs) > 1:
        listed = "\n".join(f"  {run.path}" for run in wanted.runs)
        raise BadInput(f"{run} holds {len(wanted.runs)} runs. Give one of them:\n{listed}")
    try:
        timeline = build(wanted.runs[0], choose(wanted.runs[0], point_id, arm_name, round_choice))
    except (TraceError, RecordError) as error:
        raise BadInput(str(error)) from None
    write_to(output, force, lambda file: document.write(timeline, file))
    click.echo(str(timeline.choice), err=True)
    for note in timeline.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"{output}: open it at ui.perfetto.dev", err=True)
    name_left_out(health.damage(wanted.runs[0]))
