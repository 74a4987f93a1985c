"""Everything before the first measurement: ranks, devices, communicators and the run's folder."""
