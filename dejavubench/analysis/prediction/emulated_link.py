"""The link between two emulated hosts: a token bucket, as ``scripts/two_hosts.py`` sets it up."""

from __future__ import annotations

BURST_S = 0.5e-3
"""Seconds of the rate that pass at once after a pause: few bytes compared with a step's."""

MTU_NBYTES = 9000
"""Largest packet of the link: jumbo frames. The kernel sets a timer for each packet that waits in
the bucket, and its interrupts take the model's core. With 1500 bytes the prompt took 6 % longer
beside 1 Gbit/s, and with 9000 bytes 2 %. A network card does this work by itself.
"""

LEAST_BURST_NBYTES = 10_000
"""Bytes of more than one packet. A smaller burst would let no packet pass."""

PAYLOAD_SHARE = (MTU_NBYTES - 52) / (MTU_NBYTES + 14)
"""Share of TCP's payload in the packets that a bucket counts: 52 bytes of IP and TCP headers are
part of the MTU, 14 bytes of Ethernet's header are not.
"""


def compute_burst_nbytes(rate: float) -> int:
    """Return the bytes that pass at once after a pause, for a rate in bytes per second."""
    return max(LEAST_BURST_NBYTES, round(rate * BURST_S))
