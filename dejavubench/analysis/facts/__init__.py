"""Facts from the records of a run: runs, arms, rounds, hosts and bytes, before any arithmetic."""
