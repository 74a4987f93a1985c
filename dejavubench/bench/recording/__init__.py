"""What a session writes: records, text logs and progress."""
