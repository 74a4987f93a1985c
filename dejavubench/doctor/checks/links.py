"""Links between ranks, as messages of MPI have found them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dejavubench.doctor.checks.check import JobCheck
from dejavubench.doctor.checks.cores import is_busy
from dejavubench.doctor.facts.job import Job
from dejavubench.doctor.findings import Finding, bad, ok, warn
from dejavubench.doctor.links import Link
from dejavubench.units import format_binary_nbytes

SLOW_LATENCY_US = 50.0
"""Latency within a host from which messages take sockets, or ranks wait for cores."""

SLOW_GB_S = 1.0
"""Bandwidth within a host from which the same holds."""

SLOW_BETWEEN_GB_S = 0.12
"""Bandwidth between hosts: that of 1 Gbit/s."""

SLOW_INFINIBAND_LATENCY_US = 20.0
"""Latency that sockets have even on fast networks, and InfiniBand has not."""

MOST_LATENCY_RATIO = 3.0
"""Ratio of the median latency to the least one from which both are shown."""


def judge_links(job: Job) -> Iterator[tuple[tuple[int, ...], Finding]]:
    """Judge each probed pair of ranks; say how many pairs were not probed."""
    infiniband_hosts = {
        host.host
        for host in job.hosts
        if any(port.state == "ACTIVE" for port in host.network.infiniband)
    }
    busy_hosts = {host.host for host in job.hosts if is_busy(host.load)}
    for link in job.links:
        # A link can use InfiniBand only if both ends have it.
        surroundings = Surroundings(
            set(link.hosts) <= infiniband_hosts, not busy_hosts.isdisjoint(link.hosts)
        )
        yield link.ranks, _judge_link(link, surroundings)
    unprobed_count = job.pair_count - len(job.links)
    if unprobed_count and job.links:
        yield job.everyone, ok(f"{unprobed_count} other pairs of ranks were not probed")


@dataclass(frozen=True)
class Surroundings:
    """Both hosts of a link have an active InfiniBand adapter; other programs use one of them."""

    have_infiniband: bool
    is_loaded: bool


def _judge_link(link: Link, surroundings: Surroundings) -> Finding:
    """Return whether latency and rate of a link are those to expect of its kind."""
    ends_text = "same host" if link.same_host else f"{link.hosts[0]} to {link.hosts[1]}"
    if link.problem is not None:
        advice = "Look at the firewall between the hosts, and at UCX_NET_DEVICES or UCX_TLS."
        return bad(f"{ends_text}: {link.problem}", advice)
    rate_forth, rate_back = map(format_rate, link.gb_s)
    reading = (
        f"{ends_text}: {format_latencies(link)}; {rate_forth} there, {rate_back} back, in messages "
        f"of {format_binary_nbytes(link.nbytes)}"
    )
    # Within a host, shared memory takes a microsecond or two: what takes 50 goes another way, or
    # waits for a core.
    if link.same_host and (link.latency_us > SLOW_LATENCY_US or min(link.gb_s) < SLOW_GB_S):
        advice = (
            "MPI may take sockets, or ranks share a core: see UCX, CMA and cores for ranks above."
        )
        if surroundings.is_loaded:
            advice = "Other programs have the cores: see load above. End them and look again."
        return warn(f"{reading}: slow for one host", advice)
    if (
        not link.same_host
        and surroundings.have_infiniband
        and link.latency_us > SLOW_INFINIBAND_LATENCY_US
    ):
        return warn(
            f"{reading}: late for InfiniBand, so MPI may use another network",
            "Choose the adapter: UCX_NET_DEVICES=mlx5_0:1, or your MPI's own option.",
        )
    if not link.same_host and min(link.gb_s) < SLOW_BETWEEN_GB_S:
        return warn(
            f"{reading}: no more than 1 Gbit/s",
            "Choose a faster interface if there is one: UCX_NET_DEVICES.",
        )
    return ok(reading)


def format_latencies(link: Link) -> str:
    """Return the median latency, with the least one if that is far below."""
    median = format_latency(link.latency_us)
    if link.latency_us <= MOST_LATENCY_RATIO * link.least_us:
        return median
    return f"{median} (at best {format_latency(link.least_us)})"


def format_latency(microseconds: float) -> str:
    """Return a latency with three digits: ``1.29 µs``, ``1.19 ms``."""
    if microseconds < 1000:
        return f"{microseconds:.3g} µs"
    return f"{microseconds / 1000:.3g} ms"


def format_rate(gb_s: float) -> str:
    """Return a rate with three digits: ``1.07 GB/s``, ``51.1 MB/s``."""
    return f"{gb_s:.3g} GB/s" if gb_s >= 1 else f"{1000 * gb_s:.3g} MB/s"


CHECKS = (JobCheck("link", judge_links),)
