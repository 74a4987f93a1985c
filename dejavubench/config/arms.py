"""The arms of a run: each is one way to stream, or a baseline that streams nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Literal

from dejavubench.dejavulib.levels import DEFAULT_LEVEL
from dejavubench.records.destination_info import NO_STREAMING, SWAP_PREFIX
from dejavubench.transports.base import Transport, Unavailable
from dejavubench.transports.registry import find_transport, list_usable_transports

if TYPE_CHECKING:
    from dejavubench.config.experiment import Experiment

Scenario = Literal["plain", "handover", "swap", "restart"]
"""Scenarios: what happens to a request besides its generation."""


@dataclass(frozen=True)
class Arm:
    """One (destination, level) of a run.

    Attributes:
        name: unique within the run: ``none``, ``none#2``, ``mpi@3``, ``disk@0``,
            ``disk@3/page-cache``, ``nccl-loopback@3``, ``swap-host``.
        mode: the destination as records name it; ``none`` for a baseline, ``swap-host`` or
            ``swap-disk`` where microbatches take turns in fewer caches than there are of them.
        level: None for ``none``.
        durability: None unless the destination has several.
        role: ``baseline`` (``none``), ``repeat`` (``none#2``) or ``streaming``.
        skipped: why it cannot run here; its row says so.
        is_loopback: source and sink share one GPU, so nothing leaves it. The name says so too.
        scenario: what its requests go through.
        store: the destination that keeps the waiting microbatches of a swap.
    """

    name: str
    mode: str
    level: str | None = None
    durability: str | None = None
    role: Literal["baseline", "repeat", "streaming"] = "streaming"
    skipped: str | None = None
    is_loopback: bool = False
    scenario: Scenario = "plain"
    store: str | None = field(default=None, repr=False)

    @property
    def is_streaming(self) -> bool:
        """Whether any cache is moved; not so in a baseline."""
        return self.role == "streaming"

    @property
    def is_swapping(self) -> bool:
        """Whether microbatches take turns in fewer caches than there are of them."""
        return self.scenario == "swap"

    @property
    def transport(self) -> Transport | None:
        """The transport of its destination; None for a baseline."""
        # The mode of a swap arm names the swap; its store is the destination.
        return find_transport(self.store or self.mode) if self.is_streaming else None

    @property
    def destination_key(self) -> tuple[str, str | None]:
        """Mode and durability: a source opens this once, for the arms of all levels."""
        return self.mode, self.durability

    @property
    def on_disk(self) -> bool:
        """Whether the cache goes to files."""
        return self.transport is not None and self.transport.entry.on_storage

    @property
    def is_remote(self) -> bool:
        """Whether other ranks receive the cache."""
        return self.transport is not None and self.transport.entry.remote

    @property
    def has_cache_to_verify(self) -> bool:
        """Whether what arrives can be compared with a cache; a yardstick moves other bytes."""
        return self.transport is None or self.transport.entry.moves_cache

    @property
    def to_device(self) -> bool:
        """Whether the cache of a GPU goes to another GPU without passing host memory."""
        return self.transport is not None and self.transport.entry.device_memory

    @property
    def fills_sink_devices(self) -> bool:
        """Whether sinks have the cache of a GPU on GPUs: it moves there, or they go on from it."""
        return self.to_device or self.scenario == "handover"


def make_arms(experiment: Experiment, unavailable: Mapping[str, Unavailable]) -> list[Arm]:
    """Return the arms of every round, in order.

    A single destination at a single level runs alone; otherwise two baselines come first.

    Args:
        unavailable: maps a destination that cannot run here to the reason.
    """
    streaming_arms = list(_list_streaming_arms(experiment, unavailable))
    baseline = Arm(NO_STREAMING, NO_STREAMING, role="baseline")
    if experiment.handoff:
        # Sources compute only part of a request, so no baseline would be comparable.
        return streaming_arms
    # Arms can only be compared where two equal ones show the noise.
    has_several_arms = len(experiment.streaming) > 1 or len(streaming_arms) > 1
    if experiment.compare or has_several_arms or experiment.swap:
        return [baseline, Arm(f"{NO_STREAMING}#2", NO_STREAMING, role="repeat"), *streaming_arms]
    return streaming_arms or [baseline]


def _list_streaming_arms(
    experiment: Experiment, unavailable: Mapping[str, Unavailable]
) -> Iterator[Arm]:
    """Yield an arm per destination, level and durability, then the arms that swap."""
    scenario: Scenario = (
        "handover" if experiment.handoff else "restart" if experiment.resume else "plain"
    )
    for mode in experiment.streaming:
        if mode == NO_STREAMING:
            continue
        transport = find_transport(mode)
        loopback = transport.loopback if transport.is_loopback(experiment) else None
        # A loopback shows its own name: within one GPU no link is measured.
        shown_mode = loopback.name if loopback else mode
        # Kept as a skipped arm: its row says why it did not run.
        why_unavailable = unavailable.get(mode)
        durabilities = experiment.durability if transport.entry.durabilities else (None,)
        for level_name, durability in product(experiment.level, durabilities):
            # The first given durability keeps the short name; a suffix tells the others apart.
            suffix = f"/{durability}" if durability not in (None, durabilities[0]) else ""
            yield Arm(
                name=f"{shown_mode}@{level_name}{suffix}",
                mode=mode,
                level=level_name,
                durability=durability,
                skipped=why_unavailable.reason if why_unavailable else None,
                is_loopback=loopback is not None,
                scenario=scenario,
            )
    # In the registry's order, so that two spellings of --swap give equal runs.
    for transport in list_usable_transports():
        if transport.name in experiment.swap:
            durability = experiment.durability[0] if transport.entry.durabilities else None
            name = f"{SWAP_PREFIX}{transport.name}"
            yield Arm(name, name, DEFAULT_LEVEL, durability, scenario="swap", store=transport.name)
