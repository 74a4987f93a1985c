"""The figures: one file each, and the parts that they share.

:mod:`figure` says what a figure is, :mod:`registry` finds them, :mod:`drawings` makes their data
and captions from runs, :mod:`files` draws and saves them. matplotlib is loaded only then.
"""
