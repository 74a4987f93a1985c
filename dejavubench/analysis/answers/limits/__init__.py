"""The limit of an arm: measured facts about it, and the rules that name the limit by them.

Records become the facts of :mod:`~dejavubench.analysis.answers.limits.evidence`. Each rule has a
condition over these facts, the numbers that it writes, and what to try. docs/method/answers.md
gives the reason for each rule.
"""
