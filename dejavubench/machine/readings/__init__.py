"""Readers of the kernel's and the driver's counters, one file each.

A reader takes the folder of ``proc`` and ``sys``, so that tests can fake both. One that finds
nothing to read raises :class:`~.not_readable.NotReadableError` with the reason. It never guesses.
"""
