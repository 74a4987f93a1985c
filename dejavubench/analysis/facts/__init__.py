"""What the records of a run say: runs, arms, rounds, hosts and bytes, before any arithmetic."""
