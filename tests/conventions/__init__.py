"""The conventions of the code as functions: each one returns the places that break it.

``tests/test_house.py`` and a few other tests call them. They read source files as syntax trees and
texts, and import nothing of the package. :mod:`conventions.source_tree` has what they share.
"""
