"""Reports of runs and text logs: the order of their parts, and the formats they are written in."""
