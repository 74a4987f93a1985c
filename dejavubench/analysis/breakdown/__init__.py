"""Breakdown of a request: where its time and its bytes go, and what bounds them."""
