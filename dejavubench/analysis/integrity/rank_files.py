"""Rules for the ranks' files: whether they belong to the run, and which records each may hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dejavubench.analysis.integrity.header import find_wrong_types
from dejavubench.records import (
    ArmFailure,
    Ceiling,
    CopyWays,
    End,
    Handover,
    HandoverAtSink,
    Iteration,
    Microbatch,
    RankEnvironment,
    RankInfo,
    RankLog,
    Restart,
    Run,
    SinkActivity,
    Skipped,
    SourceAlone,
    StreamAlone,
    Swapping,
    Verification,
)

RECORDS_OF_SOURCES: tuple[type[Any], ...] = (
    Microbatch,
    Handover,
    Swapping,
    Restart,
    Ceiling,
    StreamAlone,
    SourceAlone,
    CopyWays,
)
"""Classes of the records that a source alone writes."""

RECORDS_OF_SINKS: tuple[type[Any], ...] = (SinkActivity, HandoverAtSink)
"""Classes of the records that a sink alone writes."""

RECORDS_OF_RANK_0: tuple[type[Any], ...] = (Iteration, Verification, Skipped, ArmFailure)
"""Classes of the records that rank 0 alone writes, for all ranks."""

FACTS_OF_RANK_0 = ("machine", "cpu_model", "cpus", "kernel")
"""Facts that rank 0 writes twice: in its own file and in ``run.json``."""


@dataclass(frozen=True)
class RankPlaces:
    """Roles of the ranks; each side numbers its ranks stage by stage.

    Attributes:
        width, sink_width: tensor-parallel sizes of the sides.
    """

    source_count: int
    width: int
    sink_count: int
    sink_width: int

    @staticmethod
    def of_run(run: Run) -> RankPlaces:
        """Return the places by a run's first point; the sinks' sizes default to the sources'."""
        point = run.header.points[0]
        width, stage_count = point.tensor_para_size, point.pipeline_para_size
        sink_setup = _SINKS.fullmatch(point.sinks)
        sink_width = int(sink_setup[1]) if sink_setup else width
        sink_stage_count = int(sink_setup[2]) if sink_setup else stage_count
        return RankPlaces(width * stage_count, width, sink_width * sink_stage_count, sink_width)

    def place(self, rank: int) -> tuple[str, int, int]:
        """Return role, stage and tensor rank."""
        if rank < self.source_count:
            return "source", rank // self.width, rank % self.width
        worker = rank - self.source_count
        return "sink", worker // self.sink_width, worker % self.sink_width


_SINKS = re.compile(r"tp([1-9][0-9]{0,5})-pp([1-9][0-9]{0,5})-b[0-9]+")


def _check_first_lines(run: Run) -> Iterator[str]:
    for log in run.ranks:
        if not log.records:
            continue  # killed before its first record
        if not isinstance(log.records[0], RankInfo):
            yield f"{log.path.name} does not begin with a rank record: its first lines are missing"
        if sum(1 for _ in log.records_of(RankInfo)) > 1:
            yield f"{log.path.name} holds the records of several ranks, or of one rank twice"


def _check_identity(run: Run) -> Iterator[str]:
    """Check that each file is of this run, session, rank and of one of its hosts."""
    environment = run.header.environment
    ranks = environment.get("ranks")
    hosts = environment.get("hostnames")
    for log in run.ranks:
        name = log.path.name
        # A folder that was written twice keeps the files of the larger run.
        if ranks and log.rank >= ranks:
            yield f"{name} is left over from another run: this one has {ranks} ranks"
        for info in log.records_of(RankInfo):
            if info.run_id is not None and info.run_id != run.header.run_id:
                yield (
                    f"{name} is of another run: its run_id is {info.run_id}, that of run.json is "
                    f"{run.header.run_id}"
                )
            if info.session != run.number:
                yield f"{name} holds the records of session {info.session}"
            if info.rank != log.rank:
                yield f"{name} holds the records of rank {info.rank}"
            if hosts and info.host not in hosts:
                host_names = ", ".join(hosts)
                yield f"{name} is of another run: it was on {info.host}, the run on {host_names}"
            yield from find_wrong_types(RankEnvironment, info.environment, f"{name}:1: environment")


def _check_machine(run: Run) -> Iterator[str]:
    """Check that rank 0's file and ``run.json`` describe one machine."""
    run_environment = run.header.environment
    for info in (info for rank, info in run.records_of(RankInfo) if rank == 0):
        for key in FACTS_OF_RANK_0:
            value_of_rank = info.environment.get(key)
            value_of_run = run_environment.get(key)
            # Other facts may be missing in older records; the machine must agree.
            if (
                value_of_rank != value_of_run
                and value_of_run is not None
                and (value_of_rank is not None or key == "machine")
            ):
                yield (
                    f"rank-0000.jsonl is of another run: its {key} is {value_of_rank}, "
                    f"that of run.json is {value_of_run}"
                )


def _check_rank_places(run: Run) -> Iterator[str]:
    """Check that each rank has the role, stage and tensor rank that its number gives."""
    rank_places = RankPlaces.of_run(run)
    rank_count = run.header.environment.get("ranks")
    if rank_count is not None and rank_count not in (
        rank_places.source_count,
        rank_places.source_count + rank_places.sink_count,
    ):
        yield f"run.json: {rank_count} ranks do not fit its tensor- and pipeline-parallel sizes"
    for log in run.ranks:
        for info in log.records_of(RankInfo):
            # The record must agree with the place that its number has by run.json's sizes.
            expected_place = rank_places.place(log.rank)
            if (
                log.rank >= rank_places.source_count + rank_places.sink_count
                or (info.role, info.stage, info.tensor_rank) != expected_place
            ):
                yield (
                    f"{log.path.name} is of another run: rank {log.rank} of this one is no "
                    f"{info.role} of stage {info.stage} and tensor rank {info.tensor_rank}"
                )


def _check_peers(run: Run) -> Iterator[str]:
    infos = dict(run.records_of(RankInfo))
    for rank, info in infos.items():
        for peer in info.peers:
            peer_info = infos.get(peer)
            # A killed host's file may be missing; a pair is a source and a sink that name each
            # other.
            if peer_info is not None and (
                peer_info.role == info.role or rank not in peer_info.peers
            ):
                yield f"rank-{rank:04d}.jsonl names rank {peer} as its peer, but not the reverse"


def _check_kinds(run: Run) -> Iterator[str]:
    for log in run.ranks:
        role = next((info.role for info in log.records_of(RankInfo)), None)
        # Without a rank record the role is unknown; another rule complains of that.
        foreign_classes = (RECORDS_OF_SOURCES if role == "sink" else RECORDS_OF_SINKS) + (
            RECORDS_OF_RANK_0 if log.rank else ()
        )
        for record_class in foreign_classes:
            for line_name, record in log.with_places(record_class):
                yield (
                    f"{line_name}: a record of kind {record.kind}, which rank {log.rank} "
                    f"(a {role}) does not write"
                )


def _check_ends(run: Run) -> Iterator[str]:
    for log in run.ranks:
        if log.has_ended and not _is_ended_once(log):
            yield (
                f"{log.path.name} goes on after its End record: it holds the records of several "
                "runs, or of one run twice"
            )


def _is_ended_once(log: RankLog) -> bool:
    return (
        isinstance(log.records[-1], End)
        and not log.is_torn
        and sum(1 for _ in log.records_of(End)) == 1
    )


RULES = (
    _check_first_lines,
    _check_identity,
    _check_machine,
    _check_rank_places,
    _check_peers,
    _check_kinds,
    _check_ends,
)
