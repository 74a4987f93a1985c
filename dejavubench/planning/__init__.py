"""Memory, bytes and times of a run ahead of it, and who sends what to whom."""
