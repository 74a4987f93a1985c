"""Tables of runs and text logs: rows of columns, cells for people, notes, and file formats.

To add a table to the report of a run:

1. Write ``def blocks(run: Run, rows: list[Row]) -> list[Block]`` in a file of its own. It returns
   no block where a record lacks what it needs, as older records do.
2. Add the function to :data:`~dejavubench.analysis.tables.report.MORE_BLOCKS`.

A table with one row per point and arm takes its numbers from columns: add a group of columns at
the end of :class:`~dejavubench.analysis.tables.rows.Row`, name the cells in
:data:`~dejavubench.analysis.tables.textcells.SHOWN`, and let
:func:`~dejavubench.analysis.tables.textcells.block` make the block. Any other table makes its
:class:`~dejavubench.analysis.tables.layout.Block` itself. Its leading columns name the row: the
point (if the run has several), the arm, the phase.

:mod:`~dejavubench.analysis.tables.layout` keeps every table within the width, by whole columns.
So keep cells short, and leave out what all rows have in common: say it in the block's title. No
cell needs line breaks.
"""
