"""Tables of runs and text logs: rows of columns, cells for people, notes, and file formats.

To add a part to the report of a run:

1. Write a function from :class:`~dejavubench.analysis.tables.report_part.RunData` to
   :class:`~dejavubench.analysis.tables.report_part.PartContent` in a file of its own. It returns no
   content where a record lacks what it needs, as older records do. ``data.content(OTHER)`` is the
   content of another part, such as its rows.
2. Make a :data:`~dejavubench.analysis.tables.report_part.RunPart` of it at the end of the file.
   Declare the kinds of its notes there, and describe them in docs/reference/notes.md.
3. Name the part in :data:`~dejavubench.analysis.reports.report_order.REPORT_PARTS`, in its place.

Tables, markdown, csv, json, ``process --table`` and docs/reference/columns.md follow from there.

A table with one row per point and arm takes its numbers from columns: add a group of columns at
the end of :class:`~dejavubench.analysis.tables.process_columns.Row`, name the cells in
:data:`~dejavubench.analysis.tables.text_cells.SHOWN_CELLS`, and let
:func:`~dejavubench.analysis.tables.row_blocks.make_block` make the block. Any other table makes its
:class:`~dejavubench.analysis.tables.text_tables.Block` itself. Its leading columns name the row:
the point (if the run has several), the arm, the phase.

:mod:`~dejavubench.analysis.tables.text_tables` keeps every table within the width, by whole
columns. So keep cells short, and leave out what all rows have in common: say it in the block's
title. No cell needs line breaks.
"""
