"""Records → tables → figures. Of our code only :mod:`dejavubench.records` is imported here; never torch, never MPI."""
