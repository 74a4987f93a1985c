"""The folders that a run writes to, and this rank's records in them."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mpi4py import MPI

from dejavubench import records
from dejavubench.bench.assignment.runnable import RunnablePlan
from dejavubench.bench.profiling.nvtx import choose_ranged_maker
from dejavubench.bench.profiling.ranged_recorder import RangedRecorder
from dejavubench.bench.recording.chunk_file import ChunkFile
from dejavubench.bench.recording.recorder import Recorder
from dejavubench.bench.startup.ranks import Ranks, agree
from dejavubench.config.experiment import Experiment
from dejavubench.config.restart_request import name_streams
from dejavubench.errors import UsageError
from dejavubench.parallel.collectives import sleeping_gather
from dejavubench.records.names import name_conditions_file
from dejavubench.records.reading import list_session_numbers
from dejavubench.whole_file import write_whole


@dataclass(frozen=True)
class Workspace:
    """The folders and records of this rank.

    Attributes:
        run_id: unique to the run.
        session: number of the session of the run; its files' names end in it.
        folder: the run's folder on this host.
        stream_dir: the folder of streamed files.
        recorder: this rank's records.
        chunk_file: the times of this rank's chunks.
    """

    run_id: str
    session: int
    folder: Path
    stream_dir: Path
    recorder: Recorder
    chunk_file: ChunkFile

    @classmethod
    def open(cls, runnable: RunnablePlan, ranks: Ranks) -> Workspace:
        """Make the run's folders and open this rank's file in them. Collective.

        Raises:
            UsageError: on every rank, if a folder cannot be made or written.
        """
        experiment = runnable.experiment
        directory = experiment.stream_dir
        if directory is not None:
            agree(ranks.world, lambda: _make_stream_dir(directory))
        continued_run = runnable.plan.continued_run
        if continued_run is None:
            run_id, folder = _make_folder(experiment, ranks.world)
            session = 1
        else:
            run_id = continued_run.header.run_id
            folder = continued_run.folder
            # A host may have files of a session that died before they were brought together.
            session = 1 + max(ranks.world.allgather(_find_last_session(folder)))
        rank = ranks.rank
        recorder = agree(ranks.world, lambda: _open_recorder(folder, runnable, rank, session))
        chunk_file = ChunkFile(folder, rank, session)
        return cls(run_id, session, folder, directory or folder, recorder, chunk_file)

    @property
    def stream_id(self) -> str:
        """Beginning of the names of streamed files: none replaces those of an earlier session."""
        return name_streams(self.run_id, self.session)

    def gather_files(self, ranks: Ranks) -> None:
        """Copy the whole files of ranks on other hosts to rank 0's folder. Collective."""
        self.chunk_file.close()
        # Every rank goes through the same files: the gather is collective.
        for name_of in (records.name_rank_file, records.name_chunk_file, name_conditions_file):
            own_file = self.folder / name_of(ranks.rank, self.session)
            # Rank 0's folder may be on a disk of its own host. If it is shared, the file is there.
            is_elsewhere = ranks.host != ranks.hosts[0] and own_file.exists()
            contents = sleeping_gather(ranks.world, own_file.read_bytes() if is_elsewhere else None)
            for rank, content in enumerate(contents or []):
                path = self.folder / name_of(rank, self.session)
                if content is not None and not path.exists():
                    write_whole(path, content)


def _make_stream_dir(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"stream_dir {directory}: {error.strerror}") from None
    if not os.access(directory, os.W_OK):
        raise UsageError(f"stream_dir {directory}: not writable")


def _make_folder(experiment: Experiment, world: MPI.Intracomm) -> tuple[str, Path]:
    """Have rank 0 name the run and make its folder, never an existing one. Collective."""
    folder_or_error: tuple[str, Path] | UsageError | None = None
    if world.rank == 0:
        try:
            folder = _make_new_folder(experiment.log_dir, experiment.name)
            # Ranks of other hosts may have another working directory, so the path is made absolute.
            folder_or_error = uuid.uuid4().hex[:12], folder.absolute()
        except OSError as error:
            folder_or_error = UsageError(f"log_dir {experiment.log_dir}: {error.strerror}")
    folder_or_error = world.bcast(folder_or_error)
    if isinstance(folder_or_error, UsageError):
        raise folder_or_error
    assert folder_or_error is not None
    return folder_or_error


def _make_new_folder(log_dir: Path, name: str) -> Path:
    """Make ``<name>-<UTC time>``, with a number behind it where runs start in one second."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    first_choice = log_dir / f"{name}-{stamp}"
    folder = first_choice
    folder_number = 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not log_dir.is_dir():  # log_dir itself, or a part of its path, is a file
                raise
            folder_number += 1
            folder = first_choice.with_name(f"{first_choice.name}-{folder_number}")


def _find_last_session(folder: Path) -> int:
    """Return the last session that has left files in a run's folder on this host."""
    return list_session_numbers(os.listdir(folder))[-1] if folder.is_dir() else 1


def _open_recorder(folder: Path, runnable: RunnablePlan, rank: int, session: int) -> Recorder:
    point_count = len(runnable.plan.points)
    is_single_arm = rank == 0 and len(runnable.plan.arms) == point_count == 1
    try:
        make = choose_ranged_maker(runnable.experiment, Recorder, RangedRecorder)
        return make(folder, rank, point_count > 1, to_stdout=is_single_arm, session=session)
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from None
