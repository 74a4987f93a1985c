"""Records → what each figure shows, as pandas tables with captions.

A :class:`Drawing` is one file. The sizes that a figure does not mix give drawings of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dejavubench.analysis.columns import values_by_column
from dejavubench.analysis.comparison.comparable import NotComparableError, require_comparable
from dejavubench.analysis.figures import captions, descriptions
from dejavubench.analysis.figures.figure import Drawing, Figure, NothingToDrawError
from dejavubench.analysis.figures.registry import figure_of, load_figure
from dejavubench.analysis.figures.shared_columns import destinations_of
from dejavubench.analysis.tables.headings import HEADINGS, format_setting
from dejavubench.analysis.tables.process_columns import POINT_COLUMNS
from dejavubench.records import Run

if TYPE_CHECKING:
    import pandas as pd


def make_drawings(
    runs: Sequence[Run], is_joined: bool = False, name: str | None = None
) -> tuple[list[Drawing], list[str]]:
    """Return all that can be drawn, and why the rest cannot.

    Args:
        is_joined: put all runs of a figure in one drawing, as those of the link figure always are.
        name: figure to draw of each run, whatever the run was made for.

    Raises:
        NotComparableError: runs together differ in machine or sizes, or hold the same point twice.
        RecordError: a record names a point or an arm that the header does not have.
    """
    by_figure: dict[Figure, list[Run]] = {}
    complaints: list[str] = []
    for run in runs:
        try:
            figure = figure_of(run) if name is None else load_figure(name)
            if figure.joins_runs:
                figure.rows(run)  # an incomplete run must not stop the others
            by_figure.setdefault(figure, []).append(run)
        except NothingToDrawError as error:
            complaints.append(str(error))
    drawings_and_suffixes: list[tuple[Drawing, str]] = []
    for figure, members in by_figure.items():
        for group in [members] if is_joined or figure.joins_runs else [[run] for run in members]:
            try:
                suffix = "-".join(run.path.name for run in group)
                drawings_and_suffixes += [
                    (drawing, suffix) for drawing in _draw_figure(figure, group)
                ]
            except NothingToDrawError as error:
                complaints.append(str(error))
    return _make_names_unique(drawings_and_suffixes), complaints


def _make_names_unique(drawings_and_suffixes: Sequence[tuple[Drawing, str]]) -> list[Drawing]:
    """Make names unique: with the run's folder, and a number where folders have one name."""
    counts_of_names = Counter(drawing.name for drawing, _ in drawings_and_suffixes)
    name_counts: Counter[str] = Counter()
    unique_drawings = []
    for drawing, suffix in drawings_and_suffixes:
        name = f"{drawing.name}-{suffix}" if counts_of_names[drawing.name] > 1 else drawing.name
        name_counts[name] += 1
        unique_drawings.append(
            replace(drawing, name=name if name_counts[name] == 1 else f"{name}-{name_counts[name]}")
        )
    return unique_drawings


def _draw_figure(figure: Figure, runs: Sequence[Run]) -> list[Drawing]:
    """Return the drawings of one figure: one for each set of sizes that it does not mix."""
    import pandas as pd

    swept_names = captions.list_swept_settings(runs)
    shared_names = [
        name for name in (*POINT_COLUMNS, *swept_names) if name not in figure.mixed_sizes
    ]
    if len(runs) > 1:
        require_comparable(runs, shared_names)
    rows = [values_by_column(row) for run in runs for row in figure.rows(run)]
    if not rows:
        raise NothingToDrawError(
            f"{', '.join(run.path.name for run in runs)}: no measured round for {figure.name}"
        )
    # One frame for all runs: the caption and the checks see what is drawn.
    frame = pd.DataFrame(rows)
    _refuse_repeated_rows(frame, [*POINT_COLUMNS, *swept_names], figure.keys)
    figure.check(frame)
    # Sizes that the figure cannot show side by side give drawings of their own.
    rows_of_drawings = (
        [drawing_rows for _, drawing_rows in frame.groupby(shared_names, sort=False, dropna=False)]
        if shared_names
        else [frame]
    )
    # Only sizes that differ are in file names, so that a single drawing has a short one.
    varying_names = [name for name in shared_names if name != "model" and frame[name].nunique() > 1]
    return [
        _make_drawing(figure, runs, drawing_rows.reset_index(drop=True), varying_names)
        for drawing_rows in rows_of_drawings
    ]


def _make_drawing(
    figure: Figure, runs: Sequence[Run], drawing_rows: pd.DataFrame, varying_names: Sequence[str]
) -> Drawing:
    """Return one drawing, named for its figure, its models and the sizes that vary."""
    models = list(dict.fromkeys(drawing_rows["model"]))
    models_text = "-".join(models) if len(models) <= 3 else f"{len(models)}-models"
    name_words = [
        figure.name,
        models_text,
        *(_shorten_size(name, drawing_rows[name].iloc[0]) for name in varying_names),
    ]
    return Drawing(
        figure=figure,
        name="-".join(name_words),
        title=f"{figure.title} ({models[0]})" if len(models) == 1 else figure.title,
        frame=drawing_rows,
        caption=captions.make_caption(
            runs,
            drawing_rows,
            figure.reading,
            figure.remarks(runs, drawing_rows),
            figure.has_error_bars,
        ),
        destinations=destinations_of(runs),
        description=descriptions.make_description(
            runs, drawing_rows, figure.method, figure.details(runs, drawing_rows)
        ),
    )


def _shorten_size(name: str, value: object) -> str:
    """Return a size as a part of a file name: b8, p500, tp2."""
    prefix = {
        "ubatch_size": "b",
        "input_len": "p",
        "output_len": "t",
        "tensor_para_size": "tp",
        "pipeline_para_size": "pp",
        "threads": "threads",
        "staging_mib": "mib",
        "staging_slots": "slots",
        "confine": "confined-",
    }
    return f"{prefix.get(name, '')}{format_setting(value)}"


def _refuse_repeated_rows(frame: pd.DataFrame, columns: Sequence[str], keys: Sequence[str]) -> None:
    repeated_rows = frame[frame.duplicated([*columns, "arm", *keys], keep=False)]
    if not repeated_rows.empty:
        first_row = repeated_rows.iloc[0]
        row_text = ", ".join(
            f"{HEADINGS[name]} {format_setting(first_row[name])}"
            for name in columns
            if first_row[name]
        )
        runs = ", ".join(dict.fromkeys(repeated_rows["run"]))
        raise NotComparableError(
            f"{runs} hold the same point and arm ({row_text}, arm {first_row['arm']}). "
            "Give one of them."
        )
