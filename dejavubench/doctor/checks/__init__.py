"""The checks: small functions that judge facts. Each file has those of one subject."""
