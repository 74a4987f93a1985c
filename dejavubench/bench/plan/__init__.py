"""The arms and points of a run, and each worker's place in them: resolved once, handed down."""
