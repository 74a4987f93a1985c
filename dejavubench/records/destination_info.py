"""Facts about each destination of a run that analysis must know.

A run writes it into ``run.json``, so that its records can be read where the destination is not
installed. Records older than this key have the destinations of :data:`FROZEN_DESTINATIONS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import BaseModel, ConfigDict

from dejavubench.records.field_types import Colour, Hatch

NO_STREAMING = "none"
"""The value of ``--streaming``, and the mode and name of an arm, that streams nothing."""

SWAP_PREFIX = "swap-"
"""Prefix of the mode of a swap arm, before the name of the destination that it swaps to."""


class _Info(BaseModel):
    """Base of the facts: an unknown key is a newer program's, whose meaning nobody knows here."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LoopbackInfo(_Info):
    """The variant of a destination in which a source and its sink share one GPU.

    Attributes:
        name: stands for the mode in tables and names of arms.
        label, colour, hatch: how figures show it.
    """

    name: str
    label: str
    colour: Colour
    hatch: Hatch


class CrossingInfo(_Info):
    """The way that a destination's name promises for its bytes.

    Attributes:
        between_hosts: whether they cross a network interface or an InfiniBand port between two
            hosts. None: no promise.
        on_one_host: the same where source and sink share a host.
    """

    between_hosts: bool | None = None
    on_one_host: bool | None = None


class DestinationInfo(_Info):
    """One destination of a run, or one store that caches are swapped to.

    Attributes:
        label, colour, hatch, order: how and where figures show it.
        remote: other ranks receive.
        external_sink: a program outside the MPI job receives. What a source knows of it stands in
            its rank's environment as ``<mode>_sink``.
        durabilities: the durability options; not empty for a destination on a storage device.
        ceiling: name of the probe whose GB/s the destination cannot exceed on the run's device.
        link_rate, message: names of the probes that tell the speed of its link, and how long a
            naive message on it takes.
        held_against: probes of this program's own code, each with the raw loop measured in turn.
        overhead_of: probes of a naive loop that moves nothing, each with the loop that does.
        loopback: its variant on one GPU.
        library: key of ``environment.gpu`` with the version of the library that moves the chunks.
        crossing: the way that its name promises.
        moves_cache: its chunks hold keys and values. False for a yardstick, whose arms are not
            verified.
    """

    label: str
    colour: Colour = "#999999"
    hatch: Hatch = "**"
    order: int = 100
    remote: bool = False
    external_sink: bool = False
    durabilities: list[str] = []
    ceiling: str | None = None
    link_rate: str | None = None
    message: str | None = None
    held_against: dict[str, str] = {}
    overhead_of: dict[str, str] = {}
    loopback: LoopbackInfo | None = None
    library: str | None = None
    crossing: CrossingInfo = CrossingInfo()
    moves_cache: bool = True

    @property
    def local(self) -> bool:
        """Whether what is streamed stays with the source's rank."""
        return not (self.remote or self.external_sink)

    @property
    def on_storage(self) -> bool:
        """Whether the destination keeps chunks on a storage device."""
        return bool(self.durabilities)


Destinations = Mapping[str, DestinationInfo]
"""By mode, as an arm's record spells it."""

# The link by MPI was measured for every destination between ranks.
_LINK_HELD_AGAINST = {"mpi-destination": "mpi-windowed"}
_LINK_OVERHEAD_OF = {"mpi-message-overhead": "mpi-message"}

_DURABILITIES = ["fdatasync", "direct", "page-cache"]

FROZEN_DESTINATIONS: Destinations = {
    "host": DestinationInfo(
        label="host", colour="#56B4E9", hatch="//", order=10, ceiling="memory-copy"
    ),
    "disk": DestinationInfo(
        label="disk",
        colour="#E69F00",
        hatch="\\\\",
        order=20,
        durabilities=_DURABILITIES,
        ceiling="disk-write",
        held_against={"disk-destination": "disk-write"},
        overhead_of={"disk-run-overhead": "disk-run"},
    ),
    "mpi": DestinationInfo(
        label="mpi",
        colour="#009E73",
        hatch="..",
        order=30,
        remote=True,
        ceiling="mpi-windowed",
        link_rate="mpi-windowed",
        message="mpi-message",
        held_against=_LINK_HELD_AGAINST,
        overhead_of=_LINK_OVERHEAD_OF,
    ),
    "nccl": DestinationInfo(
        label="remote GPU (NCCL)",
        colour="#CC79A7",
        hatch="xx",
        order=40,
        remote=True,
        loopback=LoopbackInfo(
            name="nccl-loopback", label="loopback on one GPU (NCCL)", colour="#D55E00", hatch="oo"
        ),
        library="nccl",
        held_against=_LINK_HELD_AGAINST,
        overhead_of=_LINK_OVERHEAD_OF,
    ),
    "nixl": DestinationInfo(
        label="NIXL",
        colour="#0072B2",
        hatch="++",
        order=50,
        remote=True,
        ceiling="nixl-raw",
        held_against={"nixl-destination": "nixl-raw", **_LINK_HELD_AGAINST},
        overhead_of=_LINK_OVERHEAD_OF,
    ),
    "tcp": DestinationInfo(
        label="tcp",
        colour="#F0E442",
        hatch="--",
        order=60,
        external_sink=True,
        ceiling="tcp-raw",
        link_rate="tcp-raw",
        message="tcp-message",
        held_against={"tcp-destination": "tcp-raw"},
    ),
    "swap-host": DestinationInfo(
        label="swapped to host memory", colour="#56B4E9", hatch="//", order=10
    ),
    "swap-disk": DestinationInfo(
        label="swapped to disk",
        colour="#E69F00",
        hatch="\\\\",
        order=20,
        durabilities=_DURABILITIES,
    ),
}
"""The destinations of records without the key ``destinations``. It is not changed any more."""

_FROZEN_ON_GPU: dict[str, str] = {"host": "pcie-d2h", "nccl": "nccl-send"}
"""Their ceilings where the model ran on a GPU and the ceiling is another one."""


def destinations_of(recorded_destinations: Destinations, on_gpu: bool) -> Destinations:
    """Return every destination that a run can name.

    Args:
        recorded_destinations: ``destinations`` of its ``run.json``; empty in older records.
        on_gpu: the model ran on a GPU.
    """
    # A newer record names all of its destinations, so the frozen table must add none.
    if recorded_destinations:
        return recorded_destinations
    ceilings = _FROZEN_ON_GPU if on_gpu else {}
    return {
        mode: info.model_copy(update={"ceiling": ceilings.get(mode, info.ceiling)})
        for mode, info in FROZEN_DESTINATIONS.items()
    }


def find_destination(name: str, destinations: Destinations) -> DestinationInfo:
    """Return the destination that a name in the column ``mode`` of a table stands for.

    The name is a mode, or that of a loopback. An unknown name is its own label.
    """
    if name in destinations:
        return destinations[name]
    for info in destinations.values():
        if info.loopback is not None and info.loopback.name == name:
            # Figures give a loopback a style of its own: it is no remote GPU.
            style = info.loopback
            loopback_style = {"label": style.label, "colour": style.colour, "hatch": style.hatch}
            return info.model_copy(update={**loopback_style, "loopback": None})
    return DestinationInfo(label=name)


def map_raw_loops(destinations: Iterable[DestinationInfo]) -> dict[str, str]:
    """Return the probes of all destinations' own code, each with its raw loop."""
    return {loop: raw_loop for info in destinations for loop, raw_loop in info.held_against.items()}


def map_moving_loops(destinations: Iterable[DestinationInfo]) -> dict[str, str]:
    """Return the probes of naive loops that move nothing, each with the loop that does."""
    return {
        empty_loop: loop for info in destinations for empty_loop, loop in info.overhead_of.items()
    }
