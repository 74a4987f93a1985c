"""What the requests of an arm go through. Each scenario prepares, runs, records and verifies."""
