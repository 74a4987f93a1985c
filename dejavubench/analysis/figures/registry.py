"""Every figure by its name in :data:`~dejavubench.records.figures.FIGURES`."""

from __future__ import annotations

from importlib import import_module

from dejavubench.analysis.figures.figure import Figure, NothingToDrawError, list_streaming_arms
from dejavubench.records import Run
from dejavubench.records.figures import FIGURES


def load_figure(name: str) -> Figure:
    """Return the figure of a name. Each has a module of its name with a constant ``FIGURE``.

    Raises:
        KeyError: no figure has the name.
    """
    if name not in FIGURES:
        raise KeyError(name)
    module_figure: Figure = import_module(f"{__package__}.{name}").FIGURE
    return module_figure


def load_figures() -> tuple[Figure, ...]:
    """Return all figures, in the order of their names."""
    return tuple(load_figure(name) for name in FIGURES)


def figure_of(run: Run) -> Figure:
    """Return the figure that the run was made for or, where it does not say, that its arms fit.

    Raises:
        NothingToDrawError: the figure is unknown, or there is nothing to compare streaming to.
    """
    name = run.header.figure
    if name is not None:
        if name not in FIGURES:
            raise NothingToDrawError(
                f"{run.path.name}: figure {name!r} is not one of {', '.join(FIGURES)}"
            )
        return load_figure(name)
    arms = list_streaming_arms(run)
    if arms and len(arms) == len(run.header.arms):
        raise NothingToDrawError(
            f"{run.path.name}: no baseline was measured, so there is nothing to compare the "
            "streaming to. Run it again with --compare."
        )
    if arms and all(arm.is_swapping for arm in arms):
        raise NothingToDrawError(
            f"{run.path.name}: swapping has no figure; its table shows its cost"
        )
    return next(named_figure for named_figure in load_figures() if named_figure.fits(run))
