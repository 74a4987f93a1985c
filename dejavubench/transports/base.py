"""``Transport``: what the benchmark must know of one destination, as data and a few methods.

The data can be read without torch or MPI. A :class:`Session` is the part that runs: one rank's
share in streaming to the destination, from the start of a run to its end.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from dejavubench.dejavulib.destinations.registry import DestinationEntry

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from mpi4py import MPI

    from dejavubench.dejavulib.destinations.base import Destination, Stream
    from dejavubench.dejavulib.kvcache import KVCache
    from dejavubench.transports.probe import Probe


class Options(Protocol):
    """What a transport reads of an experiment."""

    @property
    def device(self) -> str: ...
    @property
    def streaming(self) -> tuple[str, ...]: ...
    @property
    def sources(self) -> int: ...

    def value(self, option: str) -> Any:
        """The value of an option by its name, such as ``peer``."""
        ...


@dataclass(frozen=True)
class Missing:
    """Why a destination cannot run here.

    Attributes:
        reason: said of its SKIPPED arm, where other arms run.
        alone: the error where it is the only destination: what is wrong and what to do.
    """

    reason: str
    alone: str


@dataclass(frozen=True)
class Style:
    """How a figure draws a destination."""

    colour: str
    hatch: str


@dataclass(frozen=True)
class Loopback:
    """A variant in which a source and its sink share one GPU, so that nothing leaves it.

    Attributes:
        option: the flag of the experiment that asks for it.
        name: in place of the destination's, in names of arms and in tables.
        label, style: in figures.
    """

    option: str
    name: str
    label: str
    style: Style


@dataclass(frozen=True)
class ProbeNames:
    """Which probes of a run bound or explain a destination, by their names in the records.

    Attributes:
        ceiling: GB/s that the destination cannot exceed, where the model runs on a CPU.
        ceiling_on_gpu: likewise where it runs on a GPU.
        link_rate: GB/s of the link that it uses; None if no link's speed is predicted from.
        message: microseconds of one naive message on this link.
        held_against: probes of this library's own code, each with the raw loop that it is measured
            in turn with.
        overhead_of: probes of a naive loop that moves nothing, each with the loop that does.
    """

    ceiling: str | None = None
    ceiling_on_gpu: str | None = None
    link_rate: str | None = None
    message: str | None = None
    held_against: Mapping[str, str] = field(default_factory=dict)
    overhead_of: Mapping[str, str] = field(default_factory=dict)


class Transport(ABC):
    """One destination as the benchmark sees it. Subclasses set the class attributes.

    Attributes:
        entry: the library's entry.
        order: place in figures and lists, ascending.
        label: in figures; without it the destination's name.
        help: a few words for ``--help``, in brackets after the name.
        style: in figures.
        options: names of the experiment's options that only concern this destination.
        copy_s: rough seconds of one naive copy or message of a few bytes, complete before the next.
        sync_s: rough seconds until a few bytes are on a storage device.
        swapped_label: in figures, of caches swapped to this destination; None if none can be.
        hands_over: sinks can go on with the request in the sources' place.
        resumes: a killed run can be resumed from what it has streamed here.
        loopback: the variant on one GPU, if there is one.
        library: the library that moves the chunks, as ``environment.gpu`` of a run spells it.
        probe_names: see there.
    """

    entry: ClassVar[DestinationEntry]
    order: ClassVar[int] = 100
    label: ClassVar[str | None] = None
    help: ClassVar[str] = ""
    style: ClassVar[Style] = Style("#999999", "**")
    options: ClassVar[tuple[str, ...]] = ()
    copy_s: ClassVar[float] = 1e-5
    sync_s: ClassVar[float] = 0.0
    swapped_label: ClassVar[str | None] = None
    hands_over: ClassVar[bool] = False
    resumes: ClassVar[bool] = False
    loopback: ClassVar[Loopback | None] = None
    library: ClassVar[str | None] = None
    probe_names: ClassVar[ProbeNames] = ProbeNames()

    @property
    def name(self) -> str:
        return self.entry.name

    def missing(self, options: Options) -> Missing | None:
        """Return why the destination cannot run here, or None. Asked once, on rank 0."""
        return None

    def conflict(self, options: Options, chosen: Sequence[Transport]) -> str | None:
        """Return why the options do not fit together, or None.

        Args:
            chosen: every destination of the run, this one included.
        """
        return None

    def is_loopback(self, options: Options) -> bool:
        """Whether this run's sources and sinks share a GPU."""
        return self.loopback is not None and bool(options.value(self.loopback.option))

    def waits_for_storage(self, durability: str | None) -> bool:
        """Whether a chunk is complete only when the storage device has it."""
        return False

    def session(self, rank: RankContext) -> Session:
        """Return this rank's part in a run; nothing is loaded or connected yet."""
        return Session(self, rank)


# ---- streaming ----


@dataclass(frozen=True)
class RankContext:
    """This rank, for the whole run.

    Attributes:
        world: every rank of the job.
        host: this rank's, as messages name it.
        is_source: it runs the model.
        worker: its number among the ranks of its side.
        device: what it computes on, or receives to.
        options: the experiment's.
    """

    world: MPI.Intracomm
    host: str
    is_source: bool
    worker: int
    device: torch.device
    options: Options


@dataclass(frozen=True)
class SourceContext:
    """One source at one point of a sweep.

    Attributes:
        caches: one for each microbatch in flight.
        streams: of each microbatch, those of this destination.
        peers: ranks that receive them.
        slots: returns the staging slots on ``"cpu"`` or ``"cuda"``, which all destinations share.
        device: where the caches are.
        timeout: seconds without progress after which a wait fails.
        durability: the option in force, for a destination on a storage device.
        folder, file_name, keep: where files are, how their names begin, and whether they stay.
        identity: what the header of a file must say of the run.
    """

    caches: Sequence[KVCache]
    streams: Sequence[Sequence[Stream]]
    peers: Sequence[int]
    slots: Callable[[str], list[torch.Tensor]]
    device: torch.device
    timeout: float
    durability: str | None
    folder: Path
    file_name: str
    keep: bool
    identity: Mapping[str, str]


@dataclass(frozen=True)
class SinkContext:
    """One sink at one point of a sweep.

    Attributes:
        streams: every stream that arrives, with the cache that it fills.
        peers: ranks that it comes from.
        slots: returns the staging slots of each stream, in the same order.
        device: where the caches are.
    """

    streams: Sequence[tuple[KVCache, Stream]]
    peers: Sequence[int]
    slots: Callable[[], list[list[torch.Tensor]]]
    device: torch.device


@dataclass(frozen=True)
class PointContext:
    """One point of a sweep, before anything is allocated for it.

    Attributes:
        pairs: every (source, sink) that something is streamed between, as ranks of the world.
        streams: this source's streams to a receiver of its own; empty on a sink.
        dtype: of the caches.
        probes: the destination's probes will be run on this rank.
    """

    pairs: Sequence[tuple[int, int]]
    streams: Sequence[Stream]
    dtype: torch.dtype
    probes: bool


@dataclass(frozen=True)
class ProbeContext:
    """What the raw loops of a destination can use, on rank 0 and the first sink.

    Attributes:
        peer: the other one of these two ranks; None where there are no sinks.
        is_source: this is rank 0.
        comm: a communicator of all ranks on which nothing else is under way.
        device: of this rank.
        durabilities: the options that some arm of the destination has.
        folder, file_name: where files are, and how their names begin.
        say: prints one line for the user.
        close: what is put in here is closed with the probes.
    """

    peer: int | None
    is_source: bool
    comm: MPI.Intracomm
    device: torch.device
    durabilities: Sequence[str]
    folder: Path
    file_name: str
    say: Callable[[str], None]
    close: ExitStack


class Session:
    """One rank's part in streaming to one destination during a run.

    The methods are called in this order: :meth:`load`; :meth:`meet`; for each point
    :meth:`refusal`; then for each point :meth:`connect`, and :meth:`open_source` or
    :meth:`open_sink` when an arm first needs it, and :meth:`probes`. Every rank calls them in the
    same order, so each may be collective.
    """

    def __init__(self, transport: Transport, rank: RankContext) -> None:
        self.transport = transport
        self.rank = rank

    def load(self) -> None:
        """Load libraries, before any other library that streams is used.

        Raises:
            UsageError: they cannot be used on this rank.
        """

    def meet(self) -> None:
        """Find the other side.

        Raises:
            UsageError: it is not there.
        """

    def refusal(self, point: PointContext, held: ExitStack) -> str | None:
        """Return why the other side does not take what a point streams, or None.

        Args:
            held: the other side keeps room until this is closed.
        """
        return None

    def connect(self, point: PointContext) -> None:
        """Connect the ranks for one point of a sweep."""

    def open_source(self, context: SourceContext) -> Destination:
        """Return the source's side of the destination."""
        raise NotImplementedError

    def open_sink(self, context: SinkContext) -> Any:
        """Return the sink's side of a remote destination."""
        raise NotImplementedError

    def probes(self, context: ProbeContext) -> Iterable[Probe]:
        """Return the raw loops that bound the destination, and its own code measured alone."""
        return ()

    def facts(self) -> dict[str, Any]:
        """Return what this rank's record says of the destination."""
        return {}
