"""Answers in words: what each arm costs, which arm costs less, and what limits it.

Numbers come from :mod:`~dejavubench.analysis.numbers.stats`, sentences from here.
docs/method/answers.md states each rule with its reason.
"""
