"""Which probes run on a rank at a point."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from mpi4py import MPI

from dejavubench.bench.probes.ceilings import Ceilings
from dejavubench.bench.probes.cpuprobes import cpu_probes
from dejavubench.dejavulib.kvcache import KVGeometry
from dejavubench.parallel.topology import Topology
from dejavubench.records import HELD_AGAINST
from dejavubench.transports.base import Transport
from dejavubench.transports.contexts import ProbeContext
from dejavubench.transports.loops.meeting import Meeting
from dejavubench.transports.probe import Probe
from dejavubench.transports.registry import transport
from dejavubench.transports.session import Session


def ceilings_of(
    *,
    sessions: Mapping[str, Session],
    durabilities: Mapping[str, Iterable[str]],
    topology: Topology,
    comm: MPI.Intracomm,
    device: torch.device,
    dtype: torch.dtype,
    multiplied: torch.dtype,
    geometry: KVGeometry,
    input_len: int,
    slot_nbytes: int,
    folder: Path,
    file_name: str,
    say: Callable[[str], None],
) -> Ceilings:
    """Return this rank's probes. Rank 0 and the first sink measure; the others have none.

    Args:
        sessions: this rank's part in each destination, by its name.
        durabilities: durability options of the arms, by destination.
        comm: a communicator on which nothing else is under way while probes run.
        dtype: the type of the cache.
        multiplied: the type that the model multiplies in.
        geometry: geometry of this worker's cache.
        input_len: positions of the prompt.
        slot_nbytes: bytes of a staging slot.
        folder, file_name: folder of the probes' files, and the beginning of their names.
        say: prints a line for the user.
    """
    if topology.worker != 0:
        return Ceilings(())
    is_source = topology.role == "source"
    chosen = sorted(map(transport, sessions), key=_order)
    probes: list[Probe] = []
    if is_source and device.type == "cuda":
        # Imported here: torch's CUDA libraries are loaded where there is a device, not before.
        from dejavubench.bench.probes.gpuprobes import DeviceProbes

        probes += DeviceProbes(device, dtype, geometry, input_len, slot_nbytes=slot_nbytes).probes()
    elif is_source:
        probes += cpu_probes(multiplied)
    meeting = None
    if topology.has_sinks and any(transport.entry.remote for transport in chosen):
        meeting = Meeting(comm, topology.sinks[0] if is_source else 0, is_source)
    closing = ExitStack()
    for each in chosen:
        context = ProbeContext(
            meeting=meeting,
            is_source=is_source,
            device=device,
            durabilities=list(durabilities.get(each.name, ())),
            folder=folder,
            file_name=file_name,
            say=say,
            close=closing,
        )
        probes += sessions[each.name].probes(context)
    pairs = [pair for transport in chosen for pair in transport.probe_names.held_against.items()]
    return Ceilings(probes, {**HELD_AGAINST, **dict(pairs)}, closing)


def _order(transport: Transport) -> tuple[bool, bool, int, str]:
    """Links between ranks come first, since there another rank waits; files come last."""
    return (
        not transport.entry.remote,
        not transport.entry.external_sink,
        transport.order,
        transport.name,
    )
