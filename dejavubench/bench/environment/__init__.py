"""The machine that a session runs on, as its records describe it."""
