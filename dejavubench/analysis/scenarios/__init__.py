"""Samples and columns of the scenarios: hand-over, swapping and restart, one file for each.

A scenario declares the series that it reads of its records, and the group of columns that is made
of them. :mod:`~dejavubench.analysis.facts.samples` keeps the series of each arm,
:mod:`~dejavubench.analysis.tables.process_columns` the columns of each row.
"""
