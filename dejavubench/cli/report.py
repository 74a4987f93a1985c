"""``dejavubench report``: runs → one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path

import click

from dejavubench.cli.output import BadInput, check_output, name_left_out, write_to
from dejavubench.cli.params import PATH
from dejavubench.cli.read_reports import parts_of, read_reports
from dejavubench.whole_file import is_stream

PAGE_SUFFIXES = (".html", ".htm")


@click.command()
@click.argument("paths", metavar="RUN...", nargs=-1, required=True, type=PATH)
@click.option(
    "-o",
    "--output",
    metavar="FILE.html",
    required=True,
    type=PATH,
    help="File to write.",
)
@click.option(
    "--against",
    metavar="shipped|PATH",
    default="shipped",
    show_default=True,
    help="Table of measured machines to say what is normal: that of this package, of the runs in a "
    "folder, or one made by scripts/make_shipped.py.",
)
@click.option("--force", is_flag=True, help="Overwrite FILE.html if it exists.")
def report(paths: tuple[Path, ...], output: Path, against: str, force: bool) -> None:
    """Write one HTML page of runs, to read, to print or to send.

    RUN is a run's folder, a folder of run folders, or a text log, as for process. The page holds
    answers, figures, all tables, notes, settings, the machine, the command to repeat the run, and
    the timeline of a median round. It is one file and loads nothing. Damaged input is left out and
    named on the page and on stderr; the exit status is then 1.
    """
    _check_suffix(output)
    check_output(output, force)
    from dejavubench.analysis.page.render import render
    from dejavubench.analysis.page.run_page import ShownRun, make_page
    from dejavubench.config.experiment import OPTIONS, help_of

    read_result = read_reports(paths, parts_of(against))
    left_out = [*read_result.bad, *read_result.damage]
    page = make_page(
        [ShownRun(run_report, run) for run_report, run in read_result.shown],
        left_out,
        {key: help_of(key) for key in OPTIONS},
    )
    text = render(page)
    write_to(output, force, lambda file: file.write(text))
    click.echo(f"page: {output}", err=True)
    name_left_out(left_out)


def _check_suffix(output: Path) -> None:
    """Refuse a file that a browser would not open as a page.

    Raises:
        BadInput: its suffix is another one.
    """
    if output.suffix.lower() not in PAGE_SUFFIXES and not is_stream(output):
        raise BadInput(f"--output {output}: the page is HTML. Use a name that ends in .html")
