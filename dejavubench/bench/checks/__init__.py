"""Verification outside the clock: bytes, tokens and logits."""
