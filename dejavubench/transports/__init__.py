"""The benchmark's part of each destination, a module each, and the registry that finds them.

Importing a module of this package loads neither torch nor MPI; the methods that stream do.
"""
