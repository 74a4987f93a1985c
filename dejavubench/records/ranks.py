"""Records of ranks: who they are, where they are, what was skipped or failed, and their end."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from dejavubench.records.environment import (
    EndEnvironment,
    KeysOf,
    RankEnvironment,
    parse_environment,
)
from dejavubench.records.field_types import Count, Line


class RankInfo(Line):
    """First line of each rank's file.

    Attributes:
        rank: number of the rank.
        role: ``source``, which runs the model, or ``sink``, which receives.
        host: name of the host.
        pid: number of the process.
        threads: threads that compute, the most of any point.
        tensor_rank, stage: place among the workers of its side.
        peers: ranks that it streams to or receives from.
        cores: numbers of the cores that the process may run on. Points that confine sources, of a
            sweep, have fewer: see its environment.
        wait: how collectives wait with these threads, ``spin`` or ``yield``.
        staging_nbytes: bound of the staging memory on the host.
        staging_device_nbytes: bound of the staging memory on the device.
        device: name of the GPU that the rank computes or receives on; None on a CPU.
        environment: facts about the rank, as written; :attr:`facts` has the known keys, with
            their types.
        run_id: identifier of the run, as in its header; None in older records.
        session: number of the session that has written the file.
    """

    kind: Literal["rank"] = "rank"
    rank: Count
    role: Literal["source", "sink"]
    host: str
    pid: Count
    cores: list[Count]
    threads: Count
    tensor_rank: Count = 0
    stage: Count = 0
    peers: list[Count] = Field(default=[])
    wait: str = "spin"
    staging_nbytes: Count = 0
    staging_device_nbytes: Count = 0
    device: str | None = None
    environment: Annotated[dict[str, Any], KeysOf(RankEnvironment)] = Field(default={})
    run_id: str | None = None
    session: Annotated[int, Field(ge=1)] = 1

    @property
    def facts(self) -> RankEnvironment:
        """Return the environment with named keys.

        Raises:
            RecordError: a key has a value of another type.
        """
        return parse_environment(RankEnvironment, self.environment, f"rank {self.rank}")


class PhaseMark(Line):
    """Beginning of a phase, written outside the clock. The last one shows where a rank died.

    Attributes:
        phase: name of the phase.
        at_ns: when it began, by the rank's own ``perf_counter_ns``; None in older records.
    """

    kind: Literal["phase"] = "phase"
    phase: str
    point: str | None = None
    arm: str | None = None
    iteration: Count | None = None
    at_ns: Count | None = None


class Skipped(Line):
    """A point (``arm`` None) or one arm of it that cannot run here.

    Attributes:
        reason: why it cannot run.
    """

    kind: Literal["skipped"] = "skipped"
    point: str
    arm: str | None = None
    reason: str


class RankFailure(Line):
    """An error that ended the rank.

    Attributes:
        phase: phase that the rank was in.
        error: error in one line.
    """

    kind: Literal["failure"] = "failure"
    phase: str
    error: str


class ArmFailure(Line):
    """An arm that stopped at one point because of a storage device. The other arms went on.

    Attributes:
        phase: phase that rank 0 was in.
        error: error of the storage device.
        rank: first rank on which the arm failed; the arm's times in that iteration mean nothing.
    """

    kind: Literal["arm-failure"] = "arm-failure"
    point: str
    arm: str
    iteration: Count
    phase: str
    rank: Count
    error: str


class FirstExit(Line):
    """Ranks of one host that exited without writing an End record, in a file of its own.

    Attributes:
        ranks: ranks that exited first.
        hung: ranks that had no heartbeat or made no progress, and what was seen of them.
    """

    kind: Literal["first-exit"] = "first-exit"
    ranks: list[Count]
    # Written by the watchdog's process, which outlives a rank that cannot write any more.
    hung: dict[Count, str] = Field(default={})


class End(Line):
    """Last line of a rank that finished. Older records have neither environment nor digests.

    Attributes:
        status: ``failed`` after a verification that found a difference.
        environment: facts known only at the end; :attr:`facts` has the known keys with their types.
        digest: digest of the lines before this one. It shows that none was changed, lost or added.
        header_digest: digest of ``run.json``; rank 0 alone writes it.
        file_digests: digests of the other files of records that this rank has written, by name:
            times of chunks, and conditions of its host. None in older records.
    """

    kind: Literal["end"] = "end"
    status: Literal["ok", "failed"] = "ok"
    environment: Annotated[dict[str, Any], KeysOf(EndEnvironment)] = Field(default={})
    digest: str | None = None
    header_digest: str | None = None
    file_digests: dict[str, str] | None = None

    @property
    def facts(self) -> EndEnvironment:
        """Return the environment with named keys.

        Raises:
            RecordError: a key has a value of another type.
        """
        return parse_environment(EndEnvironment, self.environment, "end")
