"""Which probes run on a rank at a point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import torch

from dejavubench.bench.probes.ceilings import Ceilings
from dejavubench.bench.probes.cpu_probes import make_cpu_probes
from dejavubench.bench.probes.probe_subjects import ProbedModel, ProbedRank
from dejavubench.records import HELD_AGAINST
from dejavubench.transports.base import Transport
from dejavubench.transports.connector import Connector
from dejavubench.transports.contexts import FileContext, ProbeContext
from dejavubench.transports.probe import Probe
from dejavubench.transports.registry import find_transport


def make_ceilings(
    rank: ProbedRank,
    model: ProbedModel,
    connectors: Mapping[str, Connector],
    files: Mapping[str, Sequence[FileContext]],
    say: Callable[[str], None],
) -> Ceilings:
    """Return the probes of rank 0, or of the first sink. Other ranks have none.

    Args:
        connectors: this rank's part in each destination, by its name.
        files: the files of each durability of the arms, by destination.
        say: prints a line for the user.
    """
    sorted_transports = sorted(map(find_transport, connectors), key=_sort_key)
    open_probes = ExitStack()
    links = rank.topology.has_sinks and any(
        destination.entry.remote for destination in sorted_transports
    )
    rank_pair = rank.rank_pair() if links else None
    probes = _make_machine_probes(rank.device, model) if rank.is_source else []
    for destination in sorted_transports:
        context = ProbeContext(
            rank_pair=rank_pair,
            is_source=rank.is_source,
            device=rank.device,
            files=files.get(destination.name, ()),
            say=say,
            open_probes=open_probes,
        )
        probes += connectors[destination.name].probes(context)
    held_against = dict(HELD_AGAINST)
    for destination in sorted_transports:
        held_against |= destination.probe_names.held_against
    return Ceilings(probes, held_against, open_probes)


def _make_machine_probes(device: torch.device, model: ProbedModel) -> list[Probe]:
    """Return the probes of the device that the model runs on."""
    if device.type != "cuda":
        return make_cpu_probes(model.multiplied)
    # Imported here: torch's CUDA libraries are loaded where there is a device, not before.
    from dejavubench.bench.probes.gpu_probes import DeviceProbes

    return DeviceProbes(device, model).probes()


def _sort_key(destination: Transport) -> tuple[bool, bool, int, str]:
    """Return a key that sorts links between ranks first, since another rank waits there."""
    return (
        not destination.entry.remote,
        not destination.entry.external_sink,
        destination.order,
        destination.name,
    )
