"""The arms and points that run, and each worker's part in a point: resolved once, handed down."""
