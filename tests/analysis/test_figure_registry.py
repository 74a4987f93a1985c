"""A figure is one file and one name: nothing outside its file asks for it by its name."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, get_args

import pandas as pd
import pytest

from conventions.asked_names import asked_constants
from dejavubench.analysis.columns import names_of
from dejavubench.analysis.figures import registry
from dejavubench.analysis.figures.figure import Figure
from dejavubench.analysis.figures.shared_columns import list_shown_arms
from dejavubench.analysis.figures.style import make_panels
from dejavubench.analysis.tables.process_columns import Sizes
from dejavubench.config.options.workload import WorkloadOptions
from dejavubench.records import Run
from dejavubench.records.destination_info import Destinations
from dejavubench.records.figures import FIGURES, FigureName
from helpers.cli_calls import call
from helpers.paths import CONFIGS, PACKAGE, RESULTS
from helpers.synthetic_runs import write_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

HOME = Path(registry.__file__).parent
NAMES = PACKAGE / "records" / "figures.py"
CLEAR: set[str] = {name for name in FIGURES if name != "link"}
"""Names that mean nothing but a figure. A link is also an option and a column."""

COMMON = {
    *("captions", "descriptions", "drawings", "fig7_drawing", "figure", "files", "framing"),
    *("left_out", "link_drawing", "registry", "shared_columns", "side_by_side", "style", "totals"),
}
"""Modules of the package that are no figures."""


def names_for(subject: ast.expr | None) -> set[str]:
    """Return the names to look for beside a subject: all of them if it is called a figure."""
    is_figure = subject is not None and "figure" in ast.unparse(subject).lower()
    return {*FIGURES} if is_figure else CLEAR


def find_figure_names(text: str) -> list[tuple[int, str]]:
    """Return the line and the name of each place in a source text that asks for a figure."""
    constants = asked_constants(ast.parse(text))
    return sorted(
        {
            (constant.lineno, str(constant.value))
            for constant, subject in constants
            if constant.value in names_for(subject)
        }
    )


def test_no_figure_is_asked_for_by_its_name() -> None:
    offences = [
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != NAMES
        for line, name in find_figure_names(path.read_text())
    ]
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize(
    "text",
    [
        'x = figure == "fig7"',
        'x = drawing.figure.name != "link"',
        'x = name in ("fig2", "appendix_a")',
        'ROWS = {"fig25": rows}',
        'SEVERAL = {"fig2"}',
        'match figure:\n case "link":\n  pass',
        'match name:\n case "fig2" | "fig7":\n  pass',
        'x = titles["fig25"]',
        'x = name.startswith("fig7")',
    ],
)
def test_code_that_asks_for_a_figure_by_its_name_is_found(text: str) -> None:
    assert len(find_figure_names(text)) >= 1


def test_figure_names_in_plain_texts_are_allowed() -> None:
    assert find_figure_names('name = "fig2"; x = row["link"]; y = experiment.get("link")') == []


def test_each_figure_has_a_file_a_config_and_a_row_of_its_own_names() -> None:
    files = {path.stem for path in HOME.glob("*.py")} - {"__init__"}
    assert files - COMMON == set(FIGURES)
    for name in FIGURES:
        figure = registry.load_figure(name)
        assert figure.name == name
        assert (CONFIGS / "cpu" / f"{name}.toml").exists()
        assert {*figure.keys, *figure.mixed_sizes, "run", "arm", "samples"} <= set(
            names_of(figure.row)
        )
    assert len({figure.title for figure in registry.load_figures()}) == len(FIGURES)


def test_the_flag_takes_the_names_of_the_registry() -> None:
    field = WorkloadOptions.model_fields["figure"]
    assert get_args(FigureName) == FIGURES
    for name in FIGURES:
        assert WorkloadOptions(figure=name).figure == name
        assert name in (field.description or "")


def test_matplotlib_is_loaded_only_to_draw() -> None:
    code = (
        "import sys, dejavubench.cli.figures, dejavubench.analysis.figures.drawings as drawings;"
        "from dejavubench.analysis.figures.registry import load_figures; load_figures();"
        "from dejavubench.analysis.find_runs import find; from pathlib import Path;"
        "assert drawings.make_drawings(find([Path(sys.argv[1])]).runs)[0];"
        "print([name for name in ('torch', 'mpi4py', 'matplotlib') if name in sys.modules])"
    )
    run = next(RESULTS.glob("*/records/fig25*"))
    completed = subprocess.run(
        [sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True
    )
    assert completed.stdout.strip() == "[]"


@dataclass
class ToyRow:
    """Toy: one row per point and arm."""

    run: Annotated[str, "Folder of the run."]
    sizes: Sizes
    arm: Annotated[str, "Name of the arm."]
    samples: Annotated[int, "Measured rounds."]


class Toy(Figure):
    name = "toy"
    title = "A toy"
    row = ToyRow
    method = "Rounds are counted."

    def rows(self, run: Run) -> list[ToyRow]:
        return [
            ToyRow(run.path.name, Sizes.of_point(point.info), arm.info.name, len(arm.times.total))
            for point, arm in list_shown_arms(run)
        ]

    def draw(self, frame: pd.DataFrame, destinations: Destinations) -> Picture:
        picture, axes = make_panels(row_count=1, column_count=1, height=3.0)
        axes[0, 0].bar(frame["arm"], frame["samples"])
        return picture


def test_another_figure_is_a_module_and_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("toy")
    module.__dict__["FIGURE"] = Toy()
    monkeypatch.setitem(sys.modules, "dejavubench.analysis.figures.toy", module)
    monkeypatch.setattr(registry, "FIGURES", (*FIGURES, "toy"))
    folder = write_run(tmp_path / "r", rounds=3, figure="toy")
    figures_call = call("figures", folder, "-o", tmp_path / "out")
    assert figures_call.exit_code == 0, figures_call.output
    assert (tmp_path / "out" / "toy-gpt2.png").stat().st_size > 1000
    table = pd.read_csv(tmp_path / "out" / "toy-gpt2.csv")
    assert list(table["samples"]) == [3] * len(table)
    assert list(table.columns) == list(names_of(ToyRow))
