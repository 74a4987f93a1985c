"""Network interfaces, InfiniBand and TCP ports."""

from __future__ import annotations

from collections.abc import Iterator

from dejavubench.doctor.checks.check import HostCheck, JobCheck
from dejavubench.doctor.facts.job import HostFacts, Job
from dejavubench.doctor.facts.network import Interface
from dejavubench.doctor.findings import Finding, ok, warn

MOST_SHOWN = 4
"""Interfaces that are listed by name; hosts of containers have dozens."""


def judge_interfaces(job: Job) -> Iterator[tuple[tuple[int, ...], Finding]]:
    """List the interfaces of each host that can carry a connection."""
    for host in job.hosts:
        # An interface without an address carries no connection. The ports of a bridge have none.
        usable_interfaces = [
            interface for interface in host.network.interfaces if interface.address
        ]
        interface_list = "; ".join(map(_describe_interface, usable_interfaces[:MOST_SHOWN]))
        unlisted_count = len(usable_interfaces) - MOST_SHOWN
        if usable_interfaces:
            yield (
                host.ranks,
                ok(interface_list + (f"; and {unlisted_count} more" if unlisted_count > 0 else "")),
            )
        elif len(job.hosts) > 1:
            advice = "Bring an interface up: ranks of other hosts cannot reach this one."
            yield host.ranks, warn("none with an IPv4 address is up", advice)
        else:
            yield host.ranks, ok("none up; not needed on one host")


def _describe_interface(interface: Interface) -> str:
    speed = "speed not shown" if interface.mbit_s is None else f"{interface.mbit_s / 1000:g} Gbit/s"
    return f"{interface.name} {interface.address}, {speed}, MTU {interface.mtu}"


def judge_infiniband(host: HostFacts) -> Iterator[Finding]:
    """Judge whether an InfiniBand port is active."""
    ports = host.network.infiniband
    if not ports:
        yield ok("none")
        return
    reading = "; ".join(f"{adapter.name}: {adapter.state}, {adapter.rate}" for adapter in ports)
    if any(adapter.state == "ACTIVE" for adapter in ports):
        yield ok(reading)
    else:
        yield warn(reading, "No port is active: look at cables, and at the subnet manager.")


def judge_port(host: HostFacts) -> Iterator[Finding]:
    """Judge whether the TCP port of a sink is free on this host."""
    listener = host.port
    if listener.problem is not None:
        yield warn(
            f"{listener.wanted}: {listener.problem}",
            "Choose another port: dejavubench sink --listen.",
        )
    elif listener.is_taken:  # no fault: it may be the very sink that the user wants to stream to
        yield ok(f"{listener.wanted} is in use, by a sink or another program")
    else:
        yield ok(f"{listener.wanted} is free, for dejavubench sink")


def judge_reachable(job: Job) -> Iterator[tuple[tuple[int, ...], Finding]]:
    """Judge whether hosts reach each other's TCP port."""
    for port_check in job.ports:
        if port_check.problem is None:
            port_note = (
                ""
                if port_check.port == port_check.wanted
                else f", tried as {port_check.wanted} is in use there"
            )
            yield (
                port_check.ranks,
                ok(
                    f"{port_check.hosts[0]} reaches port {port_check.port} of "
                    f"{port_check.hosts[1]}{port_note}"
                ),
            )
        else:
            yield (
                port_check.ranks,
                warn(
                    f"{port_check.hosts[0]} cannot reach port {port_check.port} of "
                    f"{port_check.hosts[1]}: {port_check.problem}",
                    "Open the port in the firewall of both hosts, or choose another one for tcp.",
                ),
            )


CHECKS = (
    JobCheck("interfaces", judge_interfaces),
    HostCheck("InfiniBand", judge_infiniband),
    HostCheck("TCP port", judge_port),
    JobCheck("TCP port", judge_reachable),
)
