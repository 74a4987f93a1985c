"""The ranks' heartbeats, and the watchdog process that ends a job in which a rank hangs."""
