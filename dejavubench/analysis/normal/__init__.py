"""Is it normal? An arm's rate beside those of measured machines of the same path and class."""
