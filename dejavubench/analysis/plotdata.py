"""Records → what each of the paper's figures shows, as pandas tables with captions.

A :class:`Drawing` is one file. Fig 2 and Appendix A hold all models of a run, Fig 7 and Fig 25 one
model each. The link figure holds one model of all runs that were made for it, since each run has
had a link of its own. :mod:`plots` draws them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

from dejavubench.analysis import captions
from dejavubench.analysis.blocks import SIZE_HEADINGS
from dejavubench.analysis.columns import flat
from dejavubench.analysis.compare import NotComparableError, require_comparable
from dejavubench.analysis.figurerows import ROWS, Figure, NothingToDrawError, link_rows
from dejavubench.analysis.plotstyle import FIG7_PANELS, FIG25_PANELS
from dejavubench.analysis.rows import POINT_COLUMNS
from dejavubench.records import Run
from dejavubench.records.destinations import Destinations

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Drawing:
    """One figure.

    Attributes:
        name: of its files.
        frame: the data that is drawn.
        caption: text below it.
        destinations: labels and colours of the modes in ``frame``.
    """

    figure: Figure
    name: str
    title: str
    frame: pd.DataFrame
    caption: str
    destinations: Destinations


def figure_of(run: Run) -> Figure:
    """Return the figure that the run was made for or, where it does not say, that its arms fit.

    Raises:
        NothingToDrawError: the figure is unknown, or there is nothing to compare streaming to.
    """
    match run.header.figure:
        case "fig2" | "appendix_a" | "fig7" | "fig25" | "link":
            return run.header.figure
        case None:
            pass
        case other:
            raise NothingToDrawError(
                f"{run.path.name}: figure {other!r} is not one of {', '.join(get_args(Figure))}"
            )
    streaming = [arm for arm in run.header.arms if arm.streams]
    if not streaming:
        return "fig2"
    if len(streaming) == len(run.header.arms):
        raise NothingToDrawError(
            f"{run.path.name}: no baseline was measured, so there is nothing to compare the "
            "streaming to. Run it again with --compare."
        )
    if all(arm.swaps for arm in streaming):
        raise NothingToDrawError(
            f"{run.path.name}: swapping has no figure; its table shows its cost"
        )
    return "fig7" if len({arm.level for arm in streaming}) > 1 else "fig25"


def drawings(runs: Sequence[Run], together: bool = False) -> tuple[list[Drawing], list[str]]:
    """Return all that can be drawn, and why the rest cannot.

    Args:
        together: put all runs of a figure in one drawing, as those of the link figure always are.

    Raises:
        NotComparableError: runs together differ in machine or sizes, or hold the same point twice.
        RecordError: a record names a point or an arm that the header does not have.
    """
    by_figure: dict[Figure, list[Run]] = {}
    complaints: list[str] = []
    for run in runs:
        try:
            figure = figure_of(run)
            if figure == "link":
                link_rows(run)  # an incomplete session must not stop the others
            by_figure.setdefault(figure, []).append(run)
        except NothingToDrawError as error:
            complaints.append(str(error))
    found: list[tuple[Drawing, str]] = []
    for figure, members in by_figure.items():
        for group in [members] if together or figure == "link" else [[run] for run in members]:
            try:
                suffix = "-".join(run.path.name for run in group)
                found += [(drawing, suffix) for drawing in _draw(figure, group)]
            except NothingToDrawError as error:
                complaints.append(str(error))
    return _apart(found), complaints


def _apart(found: Sequence[tuple[Drawing, str]]) -> list[Drawing]:
    """Make names unique: with the run's folder, and a number where folders have one name."""
    names = Counter(drawing.name for drawing, _ in found)
    taken: Counter[str] = Counter()
    apart = []
    for drawing, suffix in found:
        name = f"{drawing.name}-{suffix}" if names[drawing.name] > 1 else drawing.name
        taken[name] += 1
        apart.append(replace(drawing, name=name if taken[name] == 1 else f"{name}-{taken[name]}"))
    return apart


def _draw(figure: Figure, runs: Sequence[Run]) -> list[Drawing]:
    import pandas as pd

    held = _held(figure)
    if len(runs) > 1:
        require_comparable(runs, held)
    rows = [flat(row) for run in runs for row in ROWS[figure](run)]
    if not rows:
        raise NothingToDrawError(
            f"{', '.join(run.path.name for run in runs)}: no measured round for {figure}"
        )
    frame = pd.DataFrame(rows)
    _refuse_twice(frame)
    if figure == "link":
        _refuse_other_paths(frame)
    parts = [part for _, part in frame.groupby(held, sort=False)] if held else [frame]
    varying = [name for name in held if name != "model" and frame[name].nunique() > 1]
    return [_drawing(figure, runs, part.reset_index(drop=True), varying) for part in parts]


def _drawing(
    figure: Figure, runs: Sequence[Run], part: pd.DataFrame, varying: Sequence[str]
) -> Drawing:
    models = list(dict.fromkeys(part["model"]))
    named = "-".join(models) if len(models) <= 3 else f"{len(models)}-models"
    words = [figure, named, *(_short(name, part[name].iloc[0]) for name in varying)]
    return Drawing(
        figure,
        "-".join(words),
        captions.title(figure, models),
        part,
        captions.caption(figure, runs, part),
        captions.destinations(runs),
    )


def _held(figure: Figure) -> list[str]:
    """Return the sizes that are equal within one drawing; Fig 2 and Appendix A mix all sizes."""
    if figure in ("fig2", "appendix_a"):
        return []
    if figure == "link":
        return list(POINT_COLUMNS)
    panels = FIG7_PANELS if figure == "fig7" else FIG25_PANELS
    return [name for name in POINT_COLUMNS if name not in panels]


def _short(name: str, value: object) -> str:
    prefix = {
        "ubatch_size": "b",
        "input_len": "p",
        "output_len": "t",
        "tensor_para_size": "tp",
        "pipeline_para_size": "pp",
    }
    return f"{prefix.get(name, '')}{value}"


def _refuse_twice(frame: pd.DataFrame) -> None:
    keys = [*POINT_COLUMNS, "arm", *(name for name in ("phase", "link") if name in frame)]
    twice = frame[frame.duplicated(keys, keep=False)]
    if not twice.empty:
        first = twice.iloc[0]
        where = ", ".join(
            f"{SIZE_HEADINGS[name]} {first[name]}" for name in POINT_COLUMNS if first[name]
        )
        runs = ", ".join(dict.fromkeys(twice["run"]))
        raise NotComparableError(
            f"{runs} hold the same point and arm ({where}, arm {first['arm']}). Give one of them."
        )


def _refuse_other_paths(frame: pd.DataFrame) -> None:
    """Refuse links between hosts beside links within one: they are not speeds of one link."""
    for mode, part in frame.groupby("mode", sort=False):
        if part["hosts"].nunique(dropna=False) > 1:
            words = [
                f"{row['hosts']} ({row['run']})"
                for _, row in part.drop_duplicates("hosts").iterrows()
            ]
            raise NotComparableError(
                f"these runs cannot be compared: {mode} connects {', '.join(words)}"
            )
