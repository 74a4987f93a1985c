"""``Transport``: what the benchmark must know of one destination, as data and a few methods.

The data can be read without torch or MPI. The part that runs is a
:class:`~dejavubench.transports.connector.Connector`.
"""

from __future__ import annotations

import re
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from dejavubench.dejavulib.destinations.registry import DestinationEntry
from dejavubench.transports.connector import Connector
from dejavubench.transports.contexts import Options, RankContext


@dataclass(frozen=True)
class Unavailable:
    """Why a destination cannot run here.

    Attributes:
        reason: text of its SKIPPED arm, if other arms run.
        alone: text of the error if it is the only destination: what is wrong and what to do.
    """

    reason: str
    alone: str


@dataclass(frozen=True)
class PlotStyle:
    """Colour and marks by which a figure draws a destination.

    Attributes:
        colour: ``#RRGGBB``.
        hatch: pattern of matplotlib.

    Raises:
        ValueError: the colour has another form, which records would refuse.
    """

    colour: str
    hatch: str

    def __post_init__(self) -> None:
        if not re.fullmatch("#[0-9A-Fa-f]{6}", self.colour):
            raise ValueError(f"the colour of a destination is #RRGGBB, not {self.colour!r}")


@dataclass(frozen=True)
class LoopbackVariant:
    """A variant in which a source and its sink share one GPU, so that nothing leaves it.

    Attributes:
        option: the experiment's flag that chooses the variant.
        name: replaces the destination's name in names of arms and in tables.
        label, style: label and style in figures.
    """

    option: str
    name: str
    label: str
    style: PlotStyle


@dataclass(frozen=True)
class ProbeNames:
    """Which probes of a run bound or explain a destination, by their names in the records.

    Attributes:
        ceiling: probe whose GB/s the destination cannot exceed if the model runs on a CPU.
        ceiling_on_gpu: the same if the model runs on a GPU.
        link_rate: probe of its link's GB/s; None if no probe measures the link's speed.
        message: probe of the microseconds of one naive message on this link.
        held_against: maps each probe of the library's code to the raw loop it alternates with.
        overhead_of: maps each empty-loop probe to the loop whose overhead it measures.
    """

    ceiling: str | None = None
    ceiling_on_gpu: str | None = None
    link_rate: str | None = None
    message: str | None = None
    held_against: Mapping[str, str] = field(default_factory=dict)
    overhead_of: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Crossing:
    """The way that a destination's name promises for its bytes.

    Attributes:
        between_hosts, on_one_host: True if they cross a network interface or an InfiniBand port
            where source and sink are on two hosts, or on one; False if they cross none; None
            without a promise.
    """

    between_hosts: bool | None = None
    on_one_host: bool | None = None


# The second name is the raw loop: a destination's rate is given relative to it.
LINK_HELD_AGAINST: Mapping[str, str] = {"mpi-destination": "mpi-windowed"}
LINK_OVERHEAD_OF: Mapping[str, str] = {"mpi-message-overhead": "mpi-message"}
"""Probes of the link by MPI, which every destination between ranks has beside its own."""


class Transport(ABC):
    """One destination as the benchmark sees it. Subclasses set the class attributes.

    Attributes:
        entry: the library's entry.
        order: place in figures and lists, ascending.
        label: label in figures; without it the destination's name.
        help: a few words for ``--help``, in brackets after the name.
        style: style in figures.
        options: names of the experiment's options that concern no other destinations than those
            that name them.
        copy_s: approximate seconds of one naive copy or message of a few bytes, until complete.
        sync_s: approximate seconds until a few bytes are on a storage device.
        swapped_label: label in figures of swapping to this destination; None if it cannot.
        hands_over: sinks can go on with the request in the sources' place.
        allows_restart: a request of a killed run can be restarted from what it has streamed here.
        loopback: the variant on one GPU, if there is one.
        library: the library that moves the chunks, as ``environment.gpu`` of a run spells it.
        probe_names: the probes that bound or explain the destination.
        probe_nbytes: bytes of storage that the probes of one durability option take.
        crossing: whether the bytes cross a network interface, as the name promises.
    """

    # Class attributes, so that help texts and plans can read them without making a connector.
    entry: ClassVar[DestinationEntry]
    order: ClassVar[int] = 100
    label: ClassVar[str | None] = None
    help: ClassVar[str] = ""
    style: ClassVar[PlotStyle] = PlotStyle("#999999", "**")
    options: ClassVar[tuple[str, ...]] = ()
    copy_s: ClassVar[float] = 1e-5
    sync_s: ClassVar[float] = 0.0
    swapped_label: ClassVar[str | None] = None
    hands_over: ClassVar[bool] = False
    allows_restart: ClassVar[bool] = False
    loopback: ClassVar[LoopbackVariant | None] = None
    library: ClassVar[str | None] = None
    probe_names: ClassVar[ProbeNames] = ProbeNames()
    probe_nbytes: ClassVar[int] = 0
    crossing: ClassVar[Crossing] = Crossing()

    @property
    def name(self) -> str:
        """Name of the destination, as ``--streaming`` takes it."""
        return self.entry.name

    def missing(self, options: Options) -> Unavailable | None:
        """Return why the destination cannot run here, or None. Asked once, on rank 0."""
        return None

    def conflict(self, options: Options, chosen: Sequence[Transport]) -> str | None:
        """Return why the options do not fit together, or None.

        By default, a loopback is refused beside a destination that needs a GPU for each rank.

        Args:
            chosen: every destination of the run, this one included.
        """
        if self.loopback is None or not self.is_loopback(options) or options.device != "cuda":
            return None
        # Whoever has a loopback can share a GPU; others that fill GPUs need one per rank.
        other_name = next(
            (
                transport.name
                for transport in chosen
                if transport.entry.device_memory and not transport.loopback
            ),
            None,
        )
        if other_name is None:
            return None
        return (
            f"--{self.loopback.option.replace('_', '-')} cannot be combined with --streaming "
            f"{other_name}: {other_name} needs one GPU per rank. Drop one of them"
        )

    def is_loopback(self, options: Options) -> bool:
        """Whether this run's sources and sinks share a GPU."""
        # By the option, and not by the GPUs: rank 0 asks before any rank knows its device.
        return self.loopback is not None and bool(options.value(self.loopback.option))

    def waits_for_storage(self, durability: str | None) -> bool:
        """Whether a chunk is complete only when the storage device has it."""
        return False

    def connector(self, rank: RankContext) -> Connector:
        """Return this rank's part in a run; nothing is loaded or connected yet."""
        return Connector(rank)
