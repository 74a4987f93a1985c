"""The way of an arm's bytes: which interfaces carried them, from counters of the whole machine.

A share is the growth of an interface's counter during the arm's iteration, less packet headers,
less the growth in a paired window without streaming, over the arm's bytes. The paired windows are
the baselines' iterations of the same round, scaled to equal length. A run without baselines has one
idle window per point instead. A machine that other programs use carries more, never less. So an
interface carried *at least* its share, and silence of all of them names no other way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from dejavubench.analysis.facts.host_rounds import HostRounds
from dejavubench.analysis.facts.samples import ArmSamples, PointSamples
from dejavubench.analysis.facts.source_ranks import list_source_ranks
from dejavubench.records import Run
from dejavubench.records.conditions import CarriedBytes, Window

HEADER_NBYTES = 66
"""Bytes of a packet's headers: Ethernet, IPv4 and TCP with time stamps."""

LEAST_SHOWN_SHARE = 0.05
"""Least share of the bytes with which an interface is named."""

NVLINK = "NVLink"
"""Name of all NVLinks of a host together, which are no network interface."""

LOOPBACK = "lo"
"""The kernel's name of the interface that leads to no other host."""

OFF_NETWORK_TEXT = "not on a network interface"
"""Path of bytes that no counter saw; it names no other way."""


@dataclass(frozen=True)
class BytePath:
    """Interfaces that carried an arm's bytes, with their shares.

    Attributes:
        shares: median over rounds of the share of the bytes, by interface.
        why_unreadable: reason why interfaces could not be read; None if they could.
        are_links_readable: False where the run used GPUs whose NVLinks could not be read.
    """

    shares: Mapping[str, float] = field(default_factory=dict)
    why_unreadable: str | None = None
    are_links_readable: bool = True

    def __str__(self) -> str:
        if self.why_unreadable is not None:
            return f"not readable: {self.why_unreadable}"
        # Largest first; of equal shares the name decides, so that texts are stable.
        shown_shares = sorted(
            ((share, name) for name, share in self.shares.items() if share >= LEAST_SHOWN_SHARE),
            reverse=True,
        )
        # Rounded down, since the text says "at least".
        texts = [f"{name}: {min(100, int(100 * share))} %" for share, name in shown_shares]
        if not texts:
            texts = (
                [OFF_NETWORK_TEXT]
                if self.are_links_readable
                else [OFF_NETWORK_TEXT, "NVLink not readable"]
            )
        return ", ".join(texts)

    @property
    def network_share(self) -> float:
        """Share of all network interfaces and InfiniBand ports together."""
        return sum(share for name, share in self.shares.items() if name != NVLINK)

    @property
    def between_hosts_share(self) -> float:
        """Share of the interfaces and ports that lead to other hosts: all but loopback."""
        return self.network_share - self.shares.get(LOOPBACK, 0.0)


def path_of_bytes(
    run: Run, hosts: list[HostRounds], point: PointSamples, samples: ArmSamples
) -> BytePath | None:
    """Return which interfaces carried an arm's bytes at a point; None if none was recorded."""
    sources = list_source_ranks(run)
    # Sent bytes count at the source; the sink's host would count them a second time.
    source_hosts = [host for host in hosts if sources & set(host.log.host.ranks)]
    if not source_hosts or not samples.stream.nbytes:
        return None
    logs = [host.log.host for host in source_hosts]
    unreadable_reasons = {
        condition: reason for log in logs for condition, reason in log.unreadable.items()
    }
    if "interfaces" in unreadable_reasons:
        return BytePath(why_unreadable=unreadable_reasons["interfaces"])
    shares: dict[str, list[float]] = defaultdict(list)
    round_count = 0
    for round_number, nbytes in samples.stream.nbytes.items():
        nbytes_of_hosts = [
            _count_bytes(host, point, samples.info.name, round_number) for host in source_hosts
        ]
        # A round without windows on some host would show too small a share.
        if not nbytes or None in nbytes_of_hosts:
            continue
        round_count += 1
        for nbytes_by_interface in nbytes_of_hosts:
            for name, nbytes_out in (nbytes_by_interface or {}).items():
                # One list per interface, with a place for each round; several hosts add up.
                series = shares[name]
                series += [0.0] * (round_count - len(series))
                series[-1] += max(0.0, nbytes_out) / nbytes
    if not round_count:
        return None
    for series in shares.values():
        series += [0.0] * (round_count - len(series))
    are_links_readable = not {"GPU", "GPU NVLink"} & set(unreadable_reasons)
    return BytePath(
        {name: median(series) for name, series in shares.items()},
        are_links_readable=are_links_readable,
    )


def _count_bytes(
    host: HostRounds, point: PointSamples, arm_name: str, round_number: int
) -> dict[str, float] | None:
    """Return the bytes by interface that the arm added; None without windows to compare."""
    point_id = point.info.id
    own_window = host.window_of_round(point_id, arm_name, round_number)
    baselines = [
        samples.info.name for samples in point.arms.values() if not samples.info.is_streaming
    ]
    reference_windows = [
        window
        for name in baselines
        if (window := host.window_of_round(point_id, name, round_number)) is not None
    ]
    # Without baselines: what the machine sent while the job did nothing.
    reference_windows = reference_windows or host.idle_windows(point_id)
    if own_window is None or own_window.carried is None or not reference_windows:
        return None
    idle_s = sum(window.wall_s for window in reference_windows)
    return {
        name: _count_payload_nbytes(traffic)
        - own_window.wall_s
        / idle_s
        * sum(_count_payload_nbytes_on(window, name) for window in reference_windows)
        for name, traffic in own_window.carried.items()
    }


def _count_payload_nbytes_on(window: Window, name: str) -> float:
    traffic = (window.carried or {}).get(name)
    return 0.0 if traffic is None else _count_payload_nbytes(traffic)


def _count_payload_nbytes(traffic: CarriedBytes) -> float:
    return max(0.0, traffic.out_nbytes - HEADER_NBYTES * traffic.out_packets)
