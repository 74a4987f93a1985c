"""Contexts that a connector is given: the rank, the ends of a point, a point and its probes.

Importing this loads neither torch nor MPI.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from mpi4py import MPI

    from dejavubench.dejavulib.destinations.base import Stream
    from dejavubench.dejavulib.kv_cache import KV, KVCache
    from dejavubench.transports.loops.rank_pair import RankPair


class Options(Protocol):
    """An experiment, as far as a transport reads it."""

    @property
    def device(self) -> str:
        """Device of the model: ``cpu`` or ``cuda``."""

    @property
    def streaming(self) -> tuple[str, ...]:
        """Names of the destinations that were asked for, in the user's order."""

    @property
    def sources(self) -> int:
        """Number of ranks that run the model."""

    def value(self, option: str) -> Any:
        """Return the value of an option by its name, such as ``peer``."""


@dataclass(frozen=True)
class OutsideWrite:
    """Something was written outside a stream's region, in a cache that a destination holds.

    Attributes:
        kv, flat: the first such element, counted in the whole K or V tensor.
        elements: number of such elements in that layer's K or V.
    """

    kv: KV
    flat: int
    elements: int


@dataclass(frozen=True, kw_only=True)
class RankContext:
    """This rank, for the whole run.

    Attributes:
        world: communicator of every rank of the job.
        host: name of this rank's host, as messages give it.
        is_source: this rank runs the model.
        worker: this rank's number among the ranks of its side.
        device: the device that it computes on, or receives to.
        options: options of the experiment.
    """

    world: MPI.Intracomm
    host: str
    is_source: bool
    worker: int
    device: torch.device
    options: Options


@dataclass(frozen=True)
class FileContext:
    """The files of one durability option, for a destination on a storage device.

    Attributes:
        durability: the option in force.
        folder, name: folder of the files, and beginning of their names.
        keep: they stay when they are closed.
        identity: entries about the run that the header of each file must have.
    """

    durability: str
    folder: Path
    name: str
    keep: bool = False
    identity: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceContext:
    """One source at one point of a sweep.

    Attributes:
        caches: one cache for each microbatch in flight.
        streams: for each microbatch, the streams to this destination.
        peers: ranks that receive them.
        make_slots: makes the staging slots on ``"cpu"`` or ``"cuda"`` when it is first called; all
            destinations share them.
        device: device that holds the caches.
        timeout: seconds without progress after which a wait fails.
        files: the files to write; None for a destination that is on no storage device.
    """

    caches: Sequence[KVCache]
    streams: Sequence[Sequence[Stream]]
    peers: Sequence[int]
    # A function: a destination that needs no slots must not have them allocated.
    make_slots: Callable[[str], list[torch.Tensor]]
    device: torch.device
    timeout: float
    files: FileContext | None = None


@dataclass(frozen=True)
class SinkContext:
    """One sink at one point of a sweep.

    Attributes:
        streams: every stream that arrives, with the cache that it fills.
        peers: ranks that the streams come from.
        make_slots: makes the staging slots of each stream, in the same order, when it is first
            called.
        device: device that holds the caches.
        timeout: seconds without progress after which a wait fails.
    """

    streams: Sequence[tuple[KVCache, Stream]]
    peers: Sequence[int]
    make_slots: Callable[[], list[list[torch.Tensor]]]
    device: torch.device
    timeout: float


@dataclass(frozen=True)
class PointContext:
    """One point of a sweep, before anything is allocated for it.

    Attributes:
        pairs: every (source, sink) that something is streamed between, as ranks of the world.
        streams: this source's streams to a receiver of its own; empty on a sink.
        dtype: element type of the caches.
        probes: the destination's probes will be run on this rank.
    """

    pairs: Sequence[tuple[int, int]]
    streams: Sequence[Stream]
    dtype: torch.dtype
    probes: bool


@dataclass(frozen=True, kw_only=True)
class ProbeContext:
    """All that the raw loops of a destination can use, on rank 0 and on the first sink.

    Attributes:
        rank_pair: turn-taking of these two ranks; None if nothing is streamed to ranks.
        is_source: this is rank 0.
        device: device of this rank.
        files: the files to write, for each durability option that some arm of the destination has.
        say: prints one line for the user.
        open_probes: closes what the probes hold, once they have run.
    """

    rank_pair: RankPair | None
    is_source: bool
    device: torch.device
    files: Sequence[FileContext]
    say: Callable[[str], None]
    open_probes: ExitStack
