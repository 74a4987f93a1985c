"""One self-contained HTML page of runs: answers, figures, tables, notes, settings, machine.

:mod:`run_page` makes the contents, :mod:`render` fills the templates. The parts of a report
(:data:`~dejavubench.analysis.reports.report_order.REPORT_PARTS`) decide what is shown, so that a
new part appears here as it does in ``process``.
"""
