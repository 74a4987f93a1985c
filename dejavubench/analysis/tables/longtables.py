"""Tables with rows of their own beside those of points and arms.

Each has a name: its key in json, and its choice of ``process --table`` for csv.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dejavubench.analysis.samples import PointSamples
from dejavubench.analysis.tables.chunkrows import (
    ChunkRow,
    chunk_blocks,
    chunk_notes,
    chunk_rows,
)
from dejavubench.analysis.tables.extentrows import ExtentRow, extent_blocks, extent_rows
from dejavubench.analysis.tables.layout import Block
from dejavubench.analysis.tables.partrows import PartRow, part_blocks, part_notes, part_rows
from dejavubench.analysis.tables.rows import Row
from dejavubench.records import Run


@dataclass(frozen=True)
class LongTable:
    """A table with several rows for each arm.

    Attributes:
        row: dataclass of its rows, whose fields are the columns.
        rows: makes the rows of a run from its samples.
        blocks: makes the tables for people, led by the cells of the arms' rows.
        notes: says how the rows are made.
    """

    name: str
    row: type[Any]
    rows: Callable[[Run, Mapping[str, PointSamples]], list[Any]]
    blocks: Callable[[list[Row], list[Any]], list[Block]]
    notes: Callable[[Run, list[Any]], list[str]] = lambda run, rows: []


LONG_TABLES = (
    LongTable("overhead", PartRow, part_rows, part_blocks, part_notes),
    LongTable("chunks", ChunkRow, chunk_rows, chunk_blocks, chunk_notes),
    LongTable("extents", ExtentRow, extent_rows, extent_blocks),
)
