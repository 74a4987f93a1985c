"""What the two sides of a ``tcp`` stream have in common, and the sink's. The source's is ``destinations/tcp.py``."""

TOKEN_VARIABLE = "DEJAVUBENCH_TOKEN"
"""The environment variable that holds the token on both sides."""
