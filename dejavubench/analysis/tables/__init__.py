"""Tables of runs and text logs: rows of columns, cells for people, notes, and file formats."""
