"""For tests of figures: calls of `dejavubench process --figures`, and the data that were drawn."""

from __future__ import annotations

from pathlib import Path

from click.testing import Result
from PIL import Image

from helpers import cli_calls


def call_figures(*arguments: object) -> Result:
    return cli_calls.call("figures", *arguments)


def refusal_of(result: Result) -> str:
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert len(result.stderr.splitlines()) == 1
    return result.stderr.strip()


def draw_figures(folder: Path, out: Path, *options: object) -> list[str]:
    """Draw the figures of a run, each as PNG, PDF and CSV with content; return their names."""
    figures_call = call_figures(folder, "-o", out, *options)
    assert figures_call.exit_code == 0, figures_call.output
    figure_names = [Path(line).stem for line in figures_call.stdout.splitlines()]
    for name in figure_names:
        with Image.open(out / f"{name}.png") as image:
            assert min(image.size) > 250
            assert len(image.convert("L").getcolors() or ()) > 20
        assert (out / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (out / f"{name}.pdf").stat().st_size > 5000
    assert len(list(out.iterdir())) == 3 * len(figure_names)
    return figure_names
