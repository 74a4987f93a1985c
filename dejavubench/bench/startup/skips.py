"""Why points cannot run here: memory, and room on the disk."""

from __future__ import annotations

import shutil

from dejavubench.bench.assignment.runnable import RunnablePlan
from dejavubench.bench.assignment.worker import make_worker_view
from dejavubench.bench.startup.connectors import Connectors
from dejavubench.bench.startup.ranks import Ranks, agree_on_reasons
from dejavubench.config.points import Point
from dejavubench.planning import fit
from dejavubench.units import format_binary_nbytes


def find_reasons_here(
    runnable: RunnablePlan, ranks: Ranks, connectors: Connectors
) -> dict[str, str]:
    """Return why points cannot run on some rank's host, by point. Collective."""
    return agree_on_reasons(ranks.world, lambda: _find_reasons(runnable, ranks, connectors))


def _find_reasons(runnable: RunnablePlan, ranks: Ranks, connectors: Connectors) -> dict[str, str]:
    """Return why points cannot run on this rank's host: memory first, then room on the disk."""
    plan, experiment = runnable.plan, runnable.experiment
    source_count, sink_count = map(
        ranks.on_this_host, (ranks.topology.sources, ranks.topology.sinks)
    )
    reasons_of_plan = fit.find_skip_reasons(
        plan, fit.HostResources.here(plan), source_count, sink_count
    )
    reasons = {
        point_id: reason for point_id, reason in reasons_of_plan.items() if point_id in plan.starts
    }
    if not runnable.disk_arms or not ranks.is_source:
        return reasons
    directory = experiment.stream_dir or experiment.log_dir
    # The folder itself may not be there yet: the nearest one above it is on the same disk.
    existing_folder = next(
        folder for folder in (directory, *directory.absolute().parents) if folder.exists()
    )
    free_nbytes = shutil.disk_usage(existing_folder).free
    # Files of all arms of a point lie on the disk at the same time; those of a point that is over
    # are gone, unless they are kept.
    probes_nbytes = count_probe_nbytes(runnable) if experiment.ceilings and ranks.rank == 0 else 0
    kept_nbytes = 0  # files of earlier points that stay (--keep)
    for point in runnable.measured:
        if point.id in reasons:
            continue
        files_nbytes = source_count * count_stored_nbytes(runnable, point, ranks, connectors)
        needed_nbytes = kept_nbytes + files_nbytes + probes_nbytes
        if needed_nbytes > free_nbytes:
            reasons[point.id] = (
                f"{directory}: streaming to disk needs {format_binary_nbytes(needed_nbytes)}, "
                f"{format_binary_nbytes(free_nbytes)} are free"
            )
        elif experiment.keep:
            kept_nbytes += files_nbytes
    return reasons


def count_stored_nbytes(
    runnable: RunnablePlan, point: Point, ranks: Ranks, connectors: Connectors
) -> int:
    """Return the bytes of this source's files of all microbatches, for all arms that write any."""
    streams_of_microbatches = make_worker_view(point, ranks.topology).local_streams()
    writers = {
        arm.destination_key: arm.transport.name for arm in runnable.disk_arms if arm.transport
    }
    return sum(
        connectors[name].stored_nbytes(stream)
        for name in writers.values()
        for microbatch in streams_of_microbatches
        for stream in microbatch
    )


def count_probe_nbytes(runnable: RunnablePlan) -> int:
    """Return the bytes of the files that probes write."""
    files = {(arm.transport.name, arm.durability) for arm in runnable.disk_arms if arm.transport}
    return sum(runnable.transports[name].probe_nbytes for name, _ in files)
