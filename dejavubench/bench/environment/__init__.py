"""The machine that a run takes place on, as its records describe it."""
