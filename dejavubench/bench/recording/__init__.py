"""Writing records, text logs and progress."""
