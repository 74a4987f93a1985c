"""The ranks of a session: who is where, what they share, and what they do when one of them fails."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NoReturn, cast

import torch
from mpi4py import MPI

from dejavubench import records
from dejavubench.bench import environment
from dejavubench.bench.conditions import Conditions
from dejavubench.bench.ends import destination_of, destinations_of
from dejavubench.bench.identity import identity
from dejavubench.bench.recorder import Recorder, write_header
from dejavubench.bench.restart import open_saved
from dejavubench.bench.side import Side
from dejavubench.bench.telling import in_words, report, status_of
from dejavubench.bench.watching.watch import Watch
from dejavubench.config.experiment import Experiment
from dejavubench.config.points import Arm, Point
from dejavubench.dejavulib import pulse
from dejavubench.dejavulib.destinations.disk.savedstream import SavedStream
from dejavubench.dejavulib.destinations.registry import DESTINATIONS
from dejavubench.dejavulib.device_receiver import DeviceReceiver
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.receiver import CacheReceiver
from dejavubench.errors import OutputError, UsageError
from dejavubench.machine.hardware import bound_primitive_caches, native_bf16, prefer_huge_pages
from dejavubench.machine.launcher import PASS_ON_S
from dejavubench.models.dtypes import compute_dtype, dtype_of
from dejavubench.parallel.collectives import Collectives, MPICollectives, polite_gather
from dejavubench.parallel.nccl import (
    Loopback,
    SharedCardError,
    card_of,
    prepare_cards,
)
from dejavubench.parallel.nccl_collectives import NCCLCollectives
from dejavubench.parallel.topology import Topology
from dejavubench.planning import fit
from dejavubench.transports.registry import transport
from dejavubench.transports.session import PointContext, RankContext, Session
from dejavubench.units import nbytes_text
from dejavubench.wholefile import write_whole


class Job:
    """One rank's view of the session. Making one is collective.

    Args:
        watch: over the ranks of this host, on the one that has started it.

    Attributes:
        world: control messages between measurements.
        device: where this rank computes, or receives what comes by NCCL.
        sessions: this rank's part in each destination of the run, by its name.
        verification: a communicator of its own for comparing what has arrived.
        loopback: how NCCL works between ranks that share a GPU, where they may and do.
        sources: how the sources compute together; None on a sink.
        folder: the run's folder on this host.
        skipped: points that cannot run here, by id, and why.
        saved: what a killed run has streamed to disk from this rank, where that is gone on with.

    Raises:
        UsageError: on every rank, if the session cannot start on any of them.
    """

    def __init__(self, experiment: Experiment, command: list[str], watch: Watch | None) -> None:
        self.experiment = experiment
        self._watch = watch
        self.world = MPI.COMM_WORLD
        self.rank = self.world.rank
        experiment.check_ranks(self.world.size)
        self.topology = Topology(
            self.world.size,
            self.rank,
            experiment.tensor_para_size,
            experiment.pipeline_para_size,
            experiment.sink_tensor_para_size or 0,
            experiment.sink_pipeline_para_size or 0,
        )
        self.is_source = self.topology.role == "source"
        prefer_huge_pages()
        bound_primitive_caches()
        torch.set_num_threads(experiment.threads)
        self._cores = os.sched_getaffinity(0)  # before this program confines anything
        facts = self.world.allgather((environment.hostname(), self._cores, native_bf16()))
        self.hosts: list[str] = [host for host, _, _ in facts]
        self._native_bf16 = all(native for _, _, native in facts)
        on_host = set().union(*(cores for host, cores, _ in facts if host == self.hosts[self.rank]))
        self._confine()
        self.device = torch.device("cpu")
        self._agree(self._take_device)
        self.sessions: dict[str, Session] = {}
        self._agree(self._load)
        self.loopback = self._prepare_cards()
        self.skipped = self._agree(self._reasons)
        self._meet()
        fit.refuse_if_none_runs(experiment, self.skipped)
        self.saved: list[SavedStream] = []
        self._agree(self._open_saved)
        self._agree(self._make_stream_dir)
        self.run_id, self.folder = self._make_folder()
        self.stream_dir = experiment.stream_dir or self.folder
        self._agree(self._open_recorder)
        if self._watch is not None:
            self._watch.note_in(self.folder / records.first_exit_file(self.rank))
        self.verification = self.world.Dup()
        self.handover = self.world.Dup()
        among_own = cast(MPI.Intracomm, self.world.Split(0 if self.is_source else 1, self.rank))
        own_side = self.topology.sources if self.is_source else self.topology.sinks
        self.spin = self._on_this_host(own_side) * experiment.threads <= len(on_host)
        self.computes = self.is_source or experiment.handoff
        self.workers = self._connect_workers(among_own) if self.computes else None
        self.conditions = self._find_conditions()
        self._write_first_records(command)

    # ---- preparing ----

    def _find_conditions(self) -> Conditions:
        arms = [arm for arm in self.experiment.arms() if not arm.skipped]
        helpers = int(self.is_source and any(arm.mode != "none" for arm in arms))
        on_disk = self.is_source and any(arm.on_disk for arm in arms)
        threads = self.experiment.threads if self.computes else 1
        folder = self.stream_dir if on_disk else None
        return Conditions(self.world, self.hosts, threads, helpers, self._cores, folder)

    def _staging_nbytes(self) -> tuple[int, int]:
        """The most staging memory that this rank will use on the host, and on its device."""
        slot = self.experiment.staging_mib << 20
        entries = [DESTINATIONS[name] for name in self.sessions]
        on_cuda = self._on_cuda
        if not self.is_source:
            each = slot * max(
                sum(map(len, self.side(point).remote())) for point in self._runnable()
            )
            remote = [entry for entry in entries if entry.remote]
            host = any(entry.uses_host_slots(on_cuda) for entry in remote)
            device = any(entry.uses_device_memory(on_cuda) for entry in remote)
            return each * CacheReceiver.SLOTS * host, each * DeviceReceiver.SLOTS * device
        ring = slot * self.experiment.staging_slots
        # Chunks for host memory are gathered on the device first, in slots of their own.
        through_host = on_cuda and any(not entry.device_memory for entry in entries)
        straight = any(entry.uses_device_memory(on_cuda) for entry in entries)
        landing = 0
        if through_host and any(
            not LEVELS[arm.level].buffered
            for arm in self._arms()
            if arm.level and not DESTINATIONS[destination_of(arm)].device_memory
        ):
            landing = max(
                self.side(point).local()[0][0].schedule.step_nbytes(0) for point in self._runnable()
            )
        host = any(entry.uses_host_slots(on_cuda) for entry in entries)
        return ring * host + landing, ring * (through_host + straight)

    @property
    def _on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def _arms(self) -> list[Arm]:
        return [arm for arm in self.experiment.arms() if not arm.skipped]

    def _runnable(self) -> list[Point]:
        return [point for point in self.experiment.points() if point.id not in self.skipped]

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """What all workers of the model multiply in."""
        return compute_dtype(dtype, self.compute_device, self._native_bf16)

    @property
    def compute_device(self) -> str:
        """The type of device that all workers compute on."""
        return "cuda" if self.experiment.device == "cuda" else "cpu"

    def _take_device(self) -> dict[str, str]:
        """Which of its host's CUDA devices this rank uses, where it needs one."""
        receives = any(
            DESTINATIONS[destination_of(arm)].device_memory
            for arm in self._arms()
            if arm.mode != "none"
        )
        if self.compute_device == "cpu" or not (self.is_source or receives):
            return {}
        count = torch.cuda.device_count()
        if count == 0:
            raise UsageError(
                f"--device cuda: {self.hosts[self.rank]} has no CUDA device for rank {self.rank}"
            )
        sources, sinks = (
            self._on_this_host(ranks) for ranks in (self.topology.sources, self.topology.sinks)
        )
        refused = fit.too_few_devices(self.experiment, sources, sinks)
        if refused:
            raise UsageError(refused)
        cards = fit.cards(self.experiment, sources, sinks, count)
        peers = self.topology.sources if self.is_source else self.topology.sinks
        of_role = cards.sources if self.is_source else cards.sinks
        self.device = torch.device(
            "cuda", of_role[self._on_this_host(range(peers.start, self.rank))]
        )
        torch.cuda.set_device(self.device)
        return {}

    def _load(self) -> dict[str, str]:
        """Begin this rank's part in each destination, before anything else is loaded."""
        for name in dict.fromkeys(destination_of(arm) for arm in self._arms() if arm.level):
            context = RankContext(
                self.world,
                self.hosts[self.rank],
                self.is_source,
                self.topology.worker,
                self.device,
                self.experiment,
            )
            self.sessions[name] = transport(name).session(context)
            self.sessions[name].load()
        return {}

    def _prepare_cards(self) -> Loopback | None:
        """Tell NCCL of ranks that share a GPU, where they may. It is not loaded where no two ranks need it."""
        with_device = cast(
            MPI.Intracomm, self.world.Split(0 if self.device.type == "cuda" else 1, self.rank)
        )
        found: list[Loopback | None] = []

        def prepare() -> dict[str, str]:
            if self.device.type == "cuda" and with_device.size > 1:
                try:
                    found.append(
                        prepare_cards(
                            with_device, card_of(self.device), self.experiment.nccl_loopback
                        )
                    )
                except SharedCardError as error:
                    raise UsageError(str(error)) from None
            return {}

        self._agree(prepare)
        with_device.Free()
        return found[0] if found else None

    def _connect_workers(self, among_own: MPI.Intracomm) -> Collectives:
        """This rank with the others of its side that have parts of the same model."""
        own = self.topology.own_side()
        if self.device.type == "cuda" and own.workers > 1:
            return NCCLCollectives(among_own, own, self.spin, self.device)
        return MPICollectives(among_own, own, self.spin)

    def connect(self, point: Point) -> None:
        """For one point, each source with its sinks, for every destination that asks for it."""
        for session in self.sessions.values():
            session.connect(self._point_context(point))

    def _point_context(self, point: Point) -> PointContext:
        return PointContext(
            pairs=[
                (rank, sink)
                for rank in self.topology.sources
                for sink in self.side(point, rank).peers()
            ],
            streams=[stream for ubatch in self.side(point).local() for stream in ubatch]
            if self.is_source
            else [],
            dtype=dtype_of(point.data_type),
            probes=self.experiment.ceilings and self.rank == 0,
        )

    def _on_this_host(self, ranks: range) -> int:
        return sum(self.hosts[rank] == self.hosts[self.rank] for rank in ranks)

    def _confine(self) -> None:
        """``--confine``: this source, with the helper thread it will start, on one core."""
        if self.experiment.confine and self.is_source:
            cores = sorted(os.sched_getaffinity(0))
            before = self._on_this_host(range(self.rank))
            os.sched_setaffinity(0, {cores[before % len(cores)]})

    def _agree(self, prepare: Callable[[], dict[str, str]]) -> dict[str, str]:
        """Run ``prepare`` on every rank and put its answers together.

        Raises:
            UsageError: on every rank, the first that any of them raised.
        """
        error, found = None, {}
        try:
            found = prepare()
        except UsageError as mistake:
            error = str(mistake)
        outcomes = self.world.allgather((error, found))
        for message, _ in outcomes:
            if message is not None:
                raise UsageError(message)
        merged: dict[str, str] = {}
        for _, reasons in outcomes:
            merged = {**reasons, **merged}
        return merged

    def _reasons(self) -> dict[str, str]:
        """Why points cannot run on this host: memory, and room for what is streamed to disk."""
        sources = self._on_this_host(self.topology.sources)
        found = fit.reasons(self.experiment, sources, self._on_this_host(self.topology.sinks))
        on_disk = {(arm.mode, arm.durability) for arm in self.experiment.arms() if arm.on_disk}
        durabilities = {durability for _, durability in on_disk}
        if not durabilities or not self.is_source:
            return found
        directory = self.experiment.stream_dir or self.experiment.log_dir
        existing = next(
            folder for folder in (directory, *directory.absolute().parents) if folder.exists()
        )
        room = shutil.disk_usage(existing).free
        probes = (
            sum(transport(name).probe_nbytes for name in self.sessions) * len(durabilities)
            if self.experiment.ceilings and self.rank == 0
            else 0
        )
        kept = 0
        for point in self.experiment.points():
            if point.id not in found:
                files = sources * len(on_disk) * self._stream_nbytes(point)
                needed = kept + files + probes
                kept += files if self.experiment.keep and needed <= room else 0
                if needed > room:
                    found[point.id] = (
                        f"{directory}: streaming to disk needs {nbytes_text(needed)}, {nbytes_text(room)} are free"
                    )
        return found

    def _meet(self) -> None:
        """Find the other side of each destination; points that it does not take cannot run.

        Raises:
            UsageError: on every rank, if it is not there.
        """

        for session in self.sessions.values():  # one by one: a meeting may be collective
            self._agree(partial(_nothing, session.meet))
        for point in self.experiment.points():
            if point.id not in self.skipped:
                # by all sources at the same time, as in the measurement
                with contextlib.ExitStack() as held:
                    self.skipped |= self._agree(partial(self._refusals, point, held))
                self.world.Barrier()  # all have given it back before the next point is announced

    def _refusals(self, point: Point, held: contextlib.ExitStack) -> dict[str, str]:
        """Why the other side of a destination does not take what this point streams."""
        context = self._point_context(point)
        asked = [session.refusal(context, held) for session in self.sessions.values()]
        why = next((refusal for refusal in asked if refusal is not None), None)
        return {} if why is None else {point.id: why}

    def _stream_nbytes(self, point: Point) -> int:
        streams = self.side(point).local()
        stored = (
            session.stored_nbytes(stream)
            for session in self.sessions.values()
            for ubatch in streams
            for stream in ubatch
        )
        return sum(stored)

    def side(self, point: Point, rank: int | None = None) -> Side:
        """This rank's, or another one's."""
        place = self.topology if rank is None else dataclasses.replace(self.topology, rank=rank)
        return Side(point, place, self.experiment.staging_mib << 20)

    def _make_folder(self) -> tuple[str, Path]:
        """Rank 0 names the run and makes its folder, never an existing one."""
        outcome: tuple[str, Path] | UsageError | None = None
        if self.rank == 0:
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
            wanted = self.experiment.log_dir / f"{self.experiment.name}-{stamp}"
            folder, number = wanted, 1
            try:
                while True:
                    try:
                        folder.mkdir(parents=True)
                        break
                    except FileExistsError:
                        if not self.experiment.log_dir.is_dir():
                            raise
                        number += 1
                        folder = wanted.with_name(f"{wanted.name}-{number}")
                outcome = uuid.uuid4().hex[:12], folder.absolute()
            except OSError as error:
                outcome = UsageError(f"log_dir {self.experiment.log_dir}: {error.strerror}")
        outcome = self.world.bcast(outcome)
        if isinstance(outcome, UsageError):
            raise outcome
        assert outcome is not None
        return outcome

    def _open_saved(self) -> dict[str, str]:
        interrupted = self.experiment.interrupted
        if interrupted is not None and self.is_source:
            (point,) = self.experiment.points()
            of_point = identity(
                self.experiment, point, self.compute_device, interrupted.run_id, self.rank
            )
            self.saved = open_saved(self.side(point), interrupted, of_point)
        return {}

    def _make_stream_dir(self) -> dict[str, str]:
        directory = self.experiment.stream_dir
        if directory is not None:
            try:
                directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(f"stream_dir {directory}: {error.strerror}") from None
            if not os.access(directory, os.W_OK):
                raise UsageError(f"stream_dir {directory}: not writable")
        return {}

    def _open_recorder(self) -> dict[str, str]:
        try:
            self.recorder = Recorder(
                self.folder,
                self.rank,
                several_points=len(self.experiment.points()) > 1,
                to_stdout=self.rank == 0
                and len(self.experiment.arms()) == len(self.experiment.points()) == 1,
            )
        except OSError as error:
            raise UsageError(f"{error.filename}: {error.strerror}") from None
        return {}

    def _write_first_records(self, command: list[str]) -> None:
        experiment, topology = self.experiment, self.topology
        device = self.device.index if self.device.type == "cuda" else None
        facts = environment.of_rank(device) | self.conditions.facts()
        on_host, on_device = self._staging_nbytes()
        if self.loopback is not None:
            facts["nccl_loopback"] = dataclasses.asdict(self.loopback)
        for session in self.sessions.values():
            facts |= session.facts()
        self.recorder.write(
            records.RankInfo(
                rank=self.rank,
                role=topology.role,
                host=self.hosts[self.rank],
                pid=os.getpid(),
                cores=sorted(os.sched_getaffinity(0)),
                threads=torch.get_num_threads(),
                tensor_rank=topology.tensor_rank,
                stage=topology.stage,
                peers=sorted(
                    {peer for point in self._runnable() for peer in self.side(point).peers()}
                ),
                wait="spin" if self.spin else "yield",
                staging_nbytes=on_host,
                staging_device_nbytes=on_device,
                device=facts["gpu"]["name"] if "gpu" in facts else None,
                environment=facts,
                run_id=self.run_id,
            )
        )
        if self.rank == 0:
            points = [point.info(self.skipped.get(point.id)) for point in experiment.points()]
            header = records.RunHeader(
                name=experiment.name,
                run_id=self.run_id,
                started_utc=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                command=command,
                experiment=experiment.model_dump(mode="json"),
                experiment_hash=experiment.hash(),
                figure=experiment.figure,
                note=experiment.note,
                warmup=experiment.warmup,
                arms=[arm.info() for arm in experiment.arms()],
                destinations=destinations_of(experiment.arms(), device is not None),
                points=points,
                environment=environment.of_run(
                    self.hosts, experiment.threads, len(self._cores), device
                ),
            )
            write_header(self.folder, header)
            for arm in experiment.arms():
                if arm.skipped:
                    for point in points:
                        self.recorder.write(
                            records.Skipped(point=point.id, arm=arm.name, reason=arm.skipped)
                        )
            for id, reason in self.skipped.items():
                self.recorder.write(records.Skipped(point=id, reason=reason))

    # ---- ending ----

    def finish(self, ok: bool) -> None:
        """Write each rank's last record and bring other hosts' records to rank 0's folder."""
        pulse.mark("end")
        self.recorder.write(
            records.End(status="ok" if ok else "failed", environment=self.conditions.outcome())
        )
        self.recorder.close()
        mine = self.folder / records.rank_file(self.rank)
        others = polite_gather(
            self.world, None if self.hosts[self.rank] == self.hosts[0] else mine.read_bytes()
        )
        if self._watch is not None:  # every rank has come here, so every one has said that it ended
            self._watch.let_end()
        for rank, content in enumerate(others or []):
            path = self.folder / records.rank_file(rank)
            if content is not None and not path.exists():
                write_whole(path, content)

    def abort(self, error: BaseException) -> NoReturn:
        """Record which phase failed, unless the record is complete, and end every rank's process at once."""
        if self.recorder.closed:
            abort_all(error, "end")
        phase = self.recorder.phase_name
        try:
            self.recorder.write(records.Failure(phase=phase, error=in_words(error)))
        except OSError as second:  # the disk may be what failed
            _say(f"dejavubench: rank {self.rank} cannot record its failure: {in_words(second)}\n")
        abort_all(error, phase)


def _nothing(prepare: Callable[[], None]) -> dict[str, str]:
    prepare()
    return {}


def _say(text: str) -> None:
    """On stderr, if anybody still reads it."""
    with contextlib.suppress(
        OSError, AttributeError
    ):  # Python has no sys.stderr where it was closed
        sys.stderr.write(text)
        sys.stderr.flush()


def abort_all(error: BaseException, phase: str) -> NoReturn:
    """Say which rank failed in which phase, and end every rank's process at once."""
    world, status = MPI.COMM_WORLD, status_of(error)
    _say(report(error, world.rank, phase))
    if isinstance(error, OutputError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - nothing tries it again as the process ends
    time.sleep(PASS_ON_S)
    world.Abort(status)
    raise SystemExit(status)  # Abort does not return; for the type checker
