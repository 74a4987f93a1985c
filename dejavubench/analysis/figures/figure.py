"""A figure: which runs it takes, its data, how it is drawn, and the text below it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from dejavubench.analysis.figures import descriptions
from dejavubench.records import ArmInfo, Run
from dejavubench.records.destination_info import Destinations

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Picture


class NothingToDrawError(Exception):
    """A run without the records that its figure needs; the message says which are missing."""


@dataclass(frozen=True)
class QuickRun:
    """The run of a figure in ``make figures``.

    Attributes:
        flags: those that make it shorter than ``configs/cpu/<figure>.toml`` asks for.
    """

    rank_count: int
    flags: str


class Figure(ABC):
    """One figure. Its subclass, and the object ``FIGURE``, stand in a file of its name.

    Attributes:
        name: as in :data:`~dejavubench.records.figures.FIGURES`.
        title: its heading; the model is added where there is one.
        row: dataclass of its rows. Its fields are the columns of the CSV beside the figure.
        method: sentences that say exactly how the values were computed; picture files carry them.
        reading: sentence of the caption that says how to read the figure.
        mixed_sizes: sizes that may differ within one drawing. Other sizes give drawings of their
            own.
        keys: columns that tell rows of equal sizes and arms apart.
        joins_runs: one drawing always holds all runs that were made for the figure.
        has_error_bars: whether it draws intervals, which the caption then explains.
        quick_run: its run in ``make figures``; None if it is not part of it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    row: ClassVar[type[Any]]
    method: ClassVar[str]
    reading: ClassVar[str] = ""
    mixed_sizes: ClassVar[tuple[str, ...]] = ()
    keys: ClassVar[tuple[str, ...]] = ()
    joins_runs: ClassVar[bool] = False
    has_error_bars: ClassVar[bool] = True
    quick_run: ClassVar[QuickRun | None] = None

    def fits(self, run: Run) -> bool:
        """Return whether a run that names no figure is drawn as this one."""
        return False

    @abstractmethod
    def rows(self, run: Run) -> list[Any]:
        """Return a run's rows. Raises NothingToDrawError: the run lacks what the figure needs."""

    def check(self, frame: pd.DataFrame) -> None:
        """Raise NotComparableError if the rows do not belong in one drawing."""
        return

    @abstractmethod
    def draw(self, frame: pd.DataFrame, destinations: Destinations) -> Picture:
        """Draw the rows. Only here is matplotlib loaded."""

    def remarks(self, runs: Sequence[Run], frame: pd.DataFrame) -> list[str]:
        """Return the caption's sentences that are this figure's own; an empty one is left out."""
        return []

    def details(self, runs: Sequence[Run], frame: pd.DataFrame) -> list[str]:
        """Return the sentences that only this figure's description has; empty ones are left out."""
        return [descriptions.noise_sentence(frame)]


class Drawable(Protocol):
    """An object that draws rows: a figure, or the picture of a comparison."""

    def draw(self, frame: pd.DataFrame, destinations: Destinations) -> Picture:
        """Draw the rows. Only here is matplotlib loaded."""


@dataclass(frozen=True)
class Drawing:
    """One file of a figure.

    Attributes:
        name: of its files.
        frame: the data that is drawn.
        caption: text below it.
        destinations: labels and colours of the modes in ``frame``.
        description: text that its files carry.
    """

    figure: Drawable
    name: str
    title: str
    frame: pd.DataFrame
    caption: str
    destinations: Destinations
    description: str = ""


def list_streaming_arms(run: Run) -> list[ArmInfo]:
    """Return the run's arms that stream, in the run's order."""
    return [arm for arm in run.header.arms if arm.is_streaming]
