"""One worker's part in one point: its model, caches, prompts, and the streams to or from it."""
