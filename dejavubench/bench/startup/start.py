"""Starting a run: the collective steps that come before the first measurement, in order."""

from __future__ import annotations

from dataclasses import replace

import torch
from mpi4py import MPI

from dejavubench import records, units
from dejavubench.bench.assignment.runnable import RunnablePlan
from dejavubench.bench.assignment.worker import make_worker_view
from dejavubench.bench.environment.conditions import Conditions
from dejavubench.bench.environment.sampler import ConditionsSampler, Member, make_sampler
from dejavubench.bench.startup import skips
from dejavubench.bench.startup.communicators import Communicators, connect_workers, may_spin
from dejavubench.bench.startup.connectors import (
    find_all_peers,
    find_refused_points,
    load_destinations,
)
from dejavubench.bench.startup.context import RunContext
from dejavubench.bench.startup.continue_checks import check_same, lock_continued_run
from dejavubench.bench.startup.devices import Devices, take_device
from dejavubench.bench.startup.first_records import run_facts, write_first_records
from dejavubench.bench.startup.process_settings import ProcessSettings
from dejavubench.bench.startup.ranks import Ranks, agree
from dejavubench.bench.startup.saved_streams import open_saved_streams
from dejavubench.bench.startup.workspace import Workspace
from dejavubench.config.plan import Plan
from dejavubench.dejavulib.destinations.disk.saved_stream import SavedStream
from dejavubench.dejavulib.destinations.tcp.handshake import hash_machine
from dejavubench.machine.memory import bound_primitive_caches, prefer_huge_pages
from dejavubench.planning import fit
from dejavubench.watchdog.starting import WatchdogProcess


def start(
    plan: Plan, command: list[str], watchdog: WatchdogProcess | None, sinks_compute: bool
) -> RunContext:
    """Prepare a run. Collective.

    Args:
        plan: the same on every rank.
        command: as it was typed, for the record.
        watchdog: the watchdog process of this host, on the rank that has started it.
        sinks_compute: sinks have a part of the model as well.

    Raises:
        UsageError: on every rank, if the run cannot start on any of them.
    """
    experiment = plan.experiment
    runnable = RunnablePlan(plan)
    ranks = _join(plan)
    process_settings = ProcessSettings(ranks)
    process_settings.apply(runnable.measured[0].settings)
    device = agree(ranks.world, lambda: take_device(runnable, ranks))
    connectors = load_destinations(runnable, ranks, device)
    devices = Devices.prepare(experiment, ranks, device)
    # Points that lack memory or disk are taken out first, so that no other side reserves for them.
    skip_reasons = skips.find_reasons_here(runnable, ranks, connectors)
    find_all_peers(connectors, ranks)
    runnable = replace(runnable, skipped=skip_reasons)
    refusal_reasons = find_refused_points(runnable, ranks, connectors)
    runnable = replace(runnable, skipped=skip_reasons | refusal_reasons)
    fit.refuse_if_none_runs(plan, runnable.skipped)
    saved_streams = agree(ranks.world, lambda: _open_saved_streams(runnable, ranks, devices))
    agree(ranks.world, lambda: _check_continued_run(runnable, ranks, devices))
    # Only here, where nothing can be refused any more: a refused run leaves no empty folder.
    workspace = Workspace.open(runnable, ranks)
    if watchdog is not None:
        watchdog.note_in(
            workspace.folder / records.name_first_exit_file(ranks.rank, workspace.session)
        )
    # Duplicates of the world after every destination has made its own, in one order on all ranks.
    comms = Communicators.make(ranks)
    spin = may_spin(ranks, plan.most_thread_count)
    computes = ranks.is_source or sinks_compute
    context = RunContext(
        runnable=runnable,
        ranks=ranks,
        devices=devices,
        workspace=workspace,
        comms=comms,
        collectives=connect_workers(comms, ranks, devices.own_device, spin) if computes else None,
        process_settings=process_settings,
        conditions=_find_conditions(runnable, ranks, workspace, computes),
        sampler=_find_sampler(runnable, ranks, devices, workspace),
        connectors=connectors,
        saved_streams=saved_streams,
    )
    write_first_records(context, command, spin)
    return context


def _join(plan: Plan) -> Ranks:
    """Set this process up and find the other ranks. Collective."""
    plan.check_ranks(MPI.COMM_WORLD.size)
    prefer_huge_pages()
    bound_primitive_caches()
    return Ranks.find(plan.experiment)


def _open_saved_streams(
    runnable: RunnablePlan, ranks: Ranks, devices: Devices
) -> list[SavedStream]:
    plan = runnable.plan
    if plan.restart_request is None or not ranks.is_source:
        return []
    (point,) = runnable.points
    worker_view = make_worker_view(point, ranks.topology)
    return open_saved_streams(plan, plan.restart_request, worker_view, devices.compute_type)


def _check_continued_run(runnable: RunnablePlan, ranks: Ranks, devices: Devices) -> None:
    """Have rank 0 check the run that this session goes on with, and lock its folder."""
    continued_run = runnable.plan.continued_run
    if continued_run is not None and ranks.rank == 0:
        check_same(continued_run, runnable, ranks, run_facts(runnable.plan, ranks, devices))
        lock_continued_run(continued_run)


def _find_conditions(
    runnable: RunnablePlan, ranks: Ranks, workspace: Workspace, computes: bool
) -> Conditions:
    """Exchange what each rank asks of its host's cores. Collective."""
    # A helper thread per destination exists, but arms take turns: one of them is at work.
    helper_count = int(ranks.is_source and bool(runnable.streaming))
    writes = ranks.is_source and bool(runnable.disk_arms)
    stream_dir = workspace.stream_dir if writes else None
    return Conditions(
        world=ranks.world,
        hosts=list(ranks.hosts),
        threads=[threads if computes else 1 for threads in sorted(runnable.experiment.threads)],
        helper_count=helper_count,
        cores=set(ranks.cores),
        stream_dir=stream_dir,
    )


def _find_sampler(
    runnable: RunnablePlan, ranks: Ranks, devices: Devices, workspace: Workspace
) -> ConditionsSampler:
    """Exchange processes, cores and GPUs, and begin each host's file of conditions. Collective."""
    gpu = None
    if devices.number is not None:
        gpu = str(torch.cuda.get_device_properties(devices.number).uuid)
    # A sink outside the job that listens on this host is part of what is measured.
    ports = [units.parse_address(peer)[1] for peer in runnable.experiment.peer]
    member = Member.of_this_process(ranks.host, hash_machine().hex(), ranks.cores, gpu, ports)
    members = ranks.world.allgather(member)
    return make_sampler(workspace.folder, workspace.run_id, ranks.rank, members, workspace.session)
