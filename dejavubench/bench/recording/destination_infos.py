"""The destinations of a run as ``run.json`` has them, so that analysis needs no transport."""

from __future__ import annotations

from dataclasses import asdict

from dejavubench.records.destination_info import CrossingInfo, DestinationInfo, LoopbackInfo
from dejavubench.transports.base import Transport


def describe_destination(transport: Transport, on_gpu: bool) -> DestinationInfo:
    """Return a destination as it is recorded.

    Args:
        on_gpu: the model of the run is on a GPU, which has other ceilings.
    """
    # All that analysis asks of a transport: a plugin need not be installed where records are read.
    probe_names = transport.probe_names
    return DestinationInfo(
        label=transport.label or transport.name,
        colour=transport.style.colour,
        hatch=transport.style.hatch,
        order=transport.order,
        remote=transport.entry.remote,
        external_sink=transport.entry.external_sink,
        durabilities=list(transport.entry.durabilities),
        ceiling=probe_names.ceiling_on_gpu if on_gpu else probe_names.ceiling,
        link_rate=probe_names.link_rate,
        message=probe_names.message,
        held_against=dict(probe_names.held_against),
        overhead_of=dict(probe_names.overhead_of),
        loopback=_make_loopback_info(transport),
        library=transport.library,
        crossing=CrossingInfo(**asdict(transport.crossing)),
        moves_cache=transport.entry.moves_cache,
    )


def describe_swap_destination(transport: Transport) -> DestinationInfo:
    """Return a destination that caches are swapped to: no probe bounds that."""
    return DestinationInfo(
        label=transport.swapped_label or transport.name,
        colour=transport.style.colour,
        hatch=transport.style.hatch,
        order=transport.order,
        durabilities=list(transport.entry.durabilities),
    )


def _make_loopback_info(transport: Transport) -> LoopbackInfo | None:
    loopback = transport.loopback
    if loopback is None:
        return None
    style = loopback.style
    return LoopbackInfo(
        name=loopback.name, label=loopback.label, colour=style.colour, hatch=style.hatch
    )
