"""``Session``: one rank's part in streaming to one destination, from the start of a run to its end.

Importing this loads neither torch nor MPI. The contexts hold what a session is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from mpi4py import MPI

    from dejavubench.dejavulib.destinations.base import Destination, Stream
    from dejavubench.dejavulib.kvcache import KV, KVCache
    from dejavubench.transports.loops.meeting import Meeting
    from dejavubench.transports.probe import Probe


class Options(Protocol):
    """An experiment, as far as a transport reads it."""

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
class Outside:
    """Something was written outside a stream's region, in a cache that a destination holds.

    Attributes:
        kv, flat: the first such element, counted in the whole K or V tensor.
        elements: how many of that layer's K or V.
    """

    kv: KV
    flat: int
    elements: int


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
    """All that the raw loops of a destination can use, on rank 0 and on the first sink.

    Attributes:
        meeting: of these two ranks; None where nothing is streamed to ranks.
        is_source: this is rank 0.
        device: of this rank.
        durabilities: the options that some arm of the destination has.
        folder, file_name: where files are, and how their names begin.
        say: prints one line for the user.
        close: what is put in here is closed with the probes.
    """

    meeting: Meeting | None
    is_source: bool
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

    def __init__(self, rank: RankContext) -> None:
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

    def stored_nbytes(self, stream: Stream) -> int:
        """Return the bytes of storage that a stream takes."""
        return 0

    def check(self, destination: Destination, stream: Stream) -> None:
        """Have the destination look at what it holds of a complete stream, beside reading it back.

        Raises:
            WrongBytesError: it does not hold what was written.
        """

    def outside(self, destination: Destination, stream: Stream, byte: int) -> Outside | None:
        """Return what was written outside the stream's region, where all was ``byte`` before."""
        return None

    def probes(self, context: ProbeContext) -> Iterable[Probe]:
        """Return the raw loops that bound the destination, and its own code measured alone."""
        return ()

    def facts(self) -> dict[str, Any]:
        """Return what this rank's record says of the destination."""
        return {}


class RankSession(Session):
    """A session whose receivers are ranks of the job.

    Attributes:
        comm: a communicator of all ranks for this destination alone, so that no other message can
            be mistaken for one of its own. There once :meth:`meet` has returned.
    """

    comm: MPI.Intracomm

    def meet(self) -> None:
        self.comm = self.rank.world.Dup()

    def probes(self, context: ProbeContext) -> Iterable[Probe]:
        """Return what MPI does between the two ranks: the link that all such destinations use.

        Where several destinations return the same probe, it is run once.
        """
        from dejavubench.transports.loops.mpi import MPILoops

        return () if context.meeting is None else MPILoops(context.meeting).probes()
