"""Verification outside the clock: bytes and tokens."""
