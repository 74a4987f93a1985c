"""Calls of `dejavubench process --figures`, and the data that were drawn."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result
from PIL import Image

from dejavubench.cli.figures import figures


def call(*arguments: object) -> Result:
    return CliRunner().invoke(figures, [str(argument) for argument in arguments])


def failed(result: Result) -> str:
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert len(result.stderr.splitlines()) == 1
    return result.stderr.strip()


def drawn(folder: Path, out: Path, *options: object) -> list[str]:
    """Names of the figures of a run; each must have a PNG and a PDF worth the name, and a CSV."""
    result = call(folder, "-o", out, *options)
    assert result.exit_code == 0, result.output
    names = [Path(line).stem for line in result.stdout.splitlines()]
    for name in names:
        with Image.open(out / f"{name}.png") as image:
            assert min(image.size) > 250
            assert len(image.convert("L").getcolors() or ()) > 20
        assert (out / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (out / f"{name}.pdf").stat().st_size > 5000
    assert len(list(out.iterdir())) == 3 * len(names)
    return names
