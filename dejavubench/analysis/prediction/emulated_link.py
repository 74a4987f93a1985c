"""The link between two emulated hosts: a token bucket, as ``scripts/two_hosts.py`` sets it up."""

from __future__ import annotations

BURST_S = 0.5e-3
"""Seconds of the rate that pass at once after a pause: few bytes compared with a step's."""

LEAST_BURST_NBYTES = 10_000
"""Bytes of some packets. With a smaller burst the bucket cannot be emptied at its rate."""

PAYLOAD_SHARE = 1448 / 1514
"""Share of TCP's payload in the packets that a bucket counts: Ethernet frames of 1514 bytes."""


def burst_nbytes(rate: float) -> int:
    """Return the bytes that pass at once after a pause, for a rate in bytes per second."""
    return max(LEAST_BURST_NBYTES, round(rate * BURST_S))
