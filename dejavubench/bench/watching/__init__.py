"""Heartbeats of the ranks, and the process that ends a job in which a rank hangs."""
