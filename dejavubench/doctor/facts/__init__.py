"""Readers of facts: each file reads one subject and judges nothing."""
