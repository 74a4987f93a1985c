"""Shared parts of the tests: real jobs, synthetic records, caches, peers and fakes."""
