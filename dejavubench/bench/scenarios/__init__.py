"""The ways that requests can go. Each scenario prepares, runs, records and verifies."""
