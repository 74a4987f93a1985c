"""The records that are written before anything is measured: ``run.json``, ranks and skips."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from dejavubench import records
from dejavubench.bench.environment import clock_offset, facts
from dejavubench.bench.recording.infos import describe_arm, describe_destinations, describe_point
from dejavubench.bench.recording.recorder import write_header, write_session_header
from dejavubench.bench.startup.communicators import may_spin
from dejavubench.bench.startup.context import RunContext
from dejavubench.bench.startup.continue_checks import lock
from dejavubench.bench.startup.devices import Devices
from dejavubench.bench.startup.ranks import Ranks, agree
from dejavubench.config.plan import Plan
from dejavubench.config.points import Point
from dejavubench.planning.staging import Staging, plan_sink_staging, plan_source_staging


def write_first_records(context: RunContext, command: list[str], spin: bool) -> None:
    """Describe this rank, and on rank 0 the run.

    Args:
        command: as it was typed.
        spin: collectives busy-wait.
    """
    _write_rank(context, spin)
    if context.ranks.rank == 0:
        if context.workspace.session == 1:
            _write_run(context, command)
        else:
            _write_session(context, command)
        _write_skips(context)


def _write_rank(context: RunContext, spin: bool) -> None:
    """Write this rank's place, machine and staging. Collective, because clocks are compared."""
    topology = context.ranks.topology
    workspace = context.workspace
    environment = facts.describe_rank(context.devices.number) | context.conditions.facts()
    # Measured at the start and at the end: clocks of hosts drift apart meanwhile.
    environment |= clock_offset.measure(context.comms.verification, context.ranks.hosts)
    if context.devices.loopback is not None:
        environment["nccl_loopback"] = context.devices.loopback.to_record()
    connectors = context.connectors.values()
    for connector_facts in agree(
        context.ranks.world, lambda: [connector.facts() for connector in connectors]
    ):
        environment |= connector_facts
    environment |= _describe_points(context)
    staging = _find_most_staging(context)
    # The peers may differ from point to point: the record names all of them.
    peers = {
        peer
        for point in context.runnable.points
        for peer in context.find_worker_view(point).peers()
    }
    workspace.recorder.write(
        records.RankInfo(
            rank=topology.rank,
            role=topology.role,
            host=context.ranks.host,
            pid=os.getpid(),
            cores=environment["cores"],
            threads=context.plan.most_thread_count,
            tensor_rank=topology.tensor_rank,
            stage=topology.stage,
            peers=sorted(peers),
            wait=_name_wait(spin),
            staging_nbytes=staging.host_nbytes + staging.bounce_nbytes,
            staging_device_nbytes=staging.device_nbytes,
            device=environment["gpu"]["name"] if "gpu" in environment else None,
            environment=environment,
            run_id=workspace.run_id,
            session=workspace.session,
        )
    )


def _find_most_staging(context: RunContext) -> Staging:
    """Return the most staging memory that this rank uses at any point."""
    return Staging.largest_of(_count_staging(context, point) for point in context.runnable.points)


def _count_staging(context: RunContext, point: Point) -> Staging:
    plan = context.plan
    worker_view = context.find_worker_view(point)
    if context.ranks.is_source:
        return plan_source_staging(
            plan, point, worker_view.local_streams()[0][0].schedule.largest_nbytes
        )
    return plan_sink_staging(plan, point, sum(map(len, worker_view.remote_streams())))


def _describe_points(context: RunContext) -> dict[str, Any]:
    """Return the rank's cores, and how each point differs if a sweep varies threads or cores."""
    ranks, experiment = context.ranks, context.experiment
    if not {"threads", "confine"} & set(experiment.swept):
        return {"cores": ranks.cores_at(context.plan.points[0].settings)}
    demands = dict(zip(sorted(experiment.threads), context.conditions.demands, strict=True))
    return {
        "cores": sorted(ranks.cores),
        "points": {
            point.id: {
                "cores": ranks.cores_at(point.settings),
                "wait": _name_wait(may_spin(ranks, point.settings.threads)),
                "cpu_demand": asdict(demands[point.settings.threads]),
            }
            for point in context.runnable.points
        },
    }


def _name_wait(spin: bool) -> str:
    return "spin" if spin else "yield"


def _write_run(context: RunContext, command: list[str]) -> None:
    """Write ``run.json``, and lock the folder against a second session."""
    experiment, runnable, ranks = context.experiment, context.runnable, context.ranks
    points = [
        describe_point(point, runnable.skipped.get(point.id), experiment.swept)
        for point in context.plan.points
    ]
    header = records.RunHeader(
        name=experiment.name,
        run_id=context.workspace.run_id,
        started_utc=_format_utc_now(),
        command=command,
        experiment=experiment.model_dump(mode="json"),
        experiment_hash=context.plan.hash(),
        figure=experiment.figure,
        note=experiment.note,
        warmup=experiment.warmup,
        arms=[describe_arm(arm) for arm in context.plan.arms],
        points=points,
        destinations=describe_destinations(context.plan.arms, context.devices.on_cuda),
        settings=experiment.settings(),
        environment=run_facts(context.plan, ranks, context.devices),
        asked_points=None if context.plan.only_points is None else list(context.plan.only_points),
    )
    write_header(context.workspace.folder, header)
    # A file system without locks only lets two sessions go on with the run at once.
    with contextlib.suppress(OSError):
        lock(context.workspace.folder)


def _write_session(context: RunContext, command: list[str]) -> None:
    workspace = context.workspace
    continued_run = context.plan.continued_run
    assert continued_run is not None, "a further session goes on with a run"
    header = records.SessionHeader(
        schema_version=records.SCHEMA,
        run_id=workspace.run_id,
        session=workspace.session,
        started_utc=_format_utc_now(),
        command=command,
        starts=list(context.plan.starts.values()),
        environment=run_facts(context.plan, context.ranks, context.devices),
        rounds=continued_run.added_round_count,
    )
    write_session_header(workspace.folder, header)


def run_facts(plan: Plan, ranks: Ranks, devices: Devices) -> dict[str, Any]:
    """Return the facts about the host that a session's header holds."""
    return facts.describe_run(
        list(ranks.hosts), plan.most_thread_count, len(ranks.cores), devices.number
    )


def _format_utc_now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _write_skips(context: RunContext) -> None:
    """Record what cannot run here: arms at every point, and points of this session."""
    write = context.workspace.recorder.write
    # An arm that cannot run has no samples, so a record says that it was asked for, and why not.
    for arm in context.plan.arms:
        if arm.skipped:
            for point in context.plan.points:
                write(records.Skipped(point=point.id, arm=arm.name, reason=arm.skipped))
    for point_id, reason in context.runnable.skipped.items():
        write(records.Skipped(point=point_id, reason=reason))
