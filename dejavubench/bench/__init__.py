"""One measured run: ranks, rounds, clocks, records and verification."""
