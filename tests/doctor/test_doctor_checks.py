"""Every check of the doctor against facts that are made up: healthy, and bad one at a time.

The bad states are in helpers/bad_states.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dejavubench.doctor.checks.check import HostCheck, RankCheck
from dejavubench.doctor.checks.registry import CHECKS, find_rows
from dejavubench.doctor.facts.folders import FolderFacts
from dejavubench.doctor.facts.gpu import NIXLFacts
from dejavubench.doctor.facts.job import HostFacts, Job, RankFacts
from dejavubench.doctor.facts.network import NetworkFacts
from dejavubench.doctor.facts.ucx import UCXFacts
from dejavubench.doctor.findings import (
    FindingRow,
    Status,
    find_worst_status,
    format_ranks,
    merge_rows,
    ok,
)
from helpers.bad_states import STATES, host_with, make_cores, make_port_job
from helpers.doctor_facts import GIB, GPUS, HOST, RANK, make_job, two_hosts

OK = Status.OK

INFORMING = {"ucx_info", "destinations", "UCX", "CPU features", "GPU links"}
"""Checks that inform, and never warn."""


def read_rows(job: Job, check: str) -> list[FindingRow]:
    return [row for row in find_rows(job) if row.check == check]


@pytest.mark.parametrize("name", STATES)
def test_a_bad_state_is_found(name: str) -> None:
    state = STATES[name]
    rows_of_check = read_rows(state.make(), state.check)
    (row,) = (row for row in rows_of_check if row.finding.status is not OK)
    assert row.finding.status is state.status
    text = f"{row.finding.reading} {row.finding.advice}"
    assert [word for word in state.words if word not in text] == []
    assert row.finding.advice, "it says what to do"


@pytest.mark.parametrize(
    "healthy",
    [
        pytest.param(make_job(), id="one host"),
        pytest.param(two_hosts(), id="two hosts"),
        pytest.param(host_with(gpus=GPUS), id="GPUs"),
    ],
)
def test_healthy_machines_get_no_warning(healthy: Job) -> None:
    all_rows = find_rows(healthy)
    assert [row for row in all_rows if row.finding.status is not OK] == []
    assert [row for row in all_rows if row.finding.advice] == []
    assert find_worst_status(all_rows) is OK


def test_every_check_has_a_bad_state_or_only_informs() -> None:
    assert {check.name for check in CHECKS} - {
        state.check for state in STATES.values()
    } == INFORMING


def test_nothing_that_a_small_machine_lacks_is_bad() -> None:
    """No GPU, no NIXL, no UCX, no InfiniBand, no governor, an old CPU, one rank, no launcher."""
    mpi_of_one_rank = replace(RANK.mpi, size=1, launcher=None, started=None)
    rank = replace(RANK, mpi=mpi_of_one_rank, ucx=UCXFacts(False), cross_memory=None)
    cpu = replace(HOST.cpu, avx512=False, native_bf16=False, amx=False, governor=None)
    host = replace(HOST, ranks=(0,), cpu=cpu, nixl=NIXLFacts(), network=NetworkFacts((), ()))
    all_rows = find_rows(make_job([rank], [host], []))
    assert find_worst_status(all_rows) is OK
    readings = {row.check: row.finding.reading for row in all_rows}
    assert readings["GPUs"] == "none: models run on the CPU"
    assert readings["NCCL"] == "not needed without a GPU"
    assert readings["UCX"] == "not used by this MPI library"
    assert readings["ucx_info"] == "not found"
    assert readings["InfiniBand"] == "none"
    assert readings["CPU features"] == (
        "A CPU: AVX2; not AVX-512, bf16, AMX. bf16 models compute in fp32"
    )


def test_each_check_shows_its_reading() -> None:
    readings = {row.check: row.finding.reading for row in find_rows(host_with(gpus=GPUS))}
    assert readings["ranks and hosts"] == "2 ranks on 1 host: node1"
    assert readings["cores for ranks"] == "2 ranks on 4 cores: up to --threads 2"
    assert readings["GPUs"] == "2 × NVIDIA H200, 140 GiB"
    assert readings["GPU links"] == "NV18: all pairs"
    assert readings["peer access"] == "between all pairs"
    assert readings["NCCL"] == (
        "2.28.9 (cupy), 2.28.9 (torch); GPU 0 to GPU 1 by P2P/CUMEM; between hosts by IB mlx5_0"
    )
    assert readings["NIXL"] == "1.5.0: would use UCX; plug-ins POSIX, UCX"
    assert readings["UCX"] == "1.20.1, loaded by MPI; intra-node: sysv, cma"
    assert readings["link"] == (
        "same host: 0.6 µs; 9 GB/s there, 8.5 GB/s back, in messages of 4.00 MiB"
    )
    assert readings["interfaces"] == "eth0 10.0.0.1, 100 Gbit/s, MTU 1500"


def test_a_load_that_is_not_readable_is_no_load() -> None:
    without_load = host_with(
        load=replace(HOST.load, busy=0.0, unreadable="/proc/stat counts no time")
    )
    (row,) = read_rows(without_load, "load")
    assert row.finding == ok("not readable: /proc/stat counts no time")
    assert read_rows(without_load, "stolen time") == []


def test_destinations_say_what_they_lack() -> None:
    two_missing = replace(
        make_job(), missing={"one": None, "two": "no CUDA device", "three": "no --peer"}
    )
    (row,) = read_rows(two_missing, "destinations")
    assert row.finding == ok("can run here: one. Not two: no CUDA device; three: no --peer")


def test_two_hosts_are_named_with_their_ranks() -> None:
    (row,) = read_rows(two_hosts(), "ranks and hosts")
    assert row.finding == ok("2 ranks on 2 hosts: node1 (0), node2 (1)")
    (row,) = read_rows(make_port_job(None), "TCP port")[1:]
    assert row.finding == ok("node1 reaches port 7601 of node2")


def test_hosts_of_one_machine_share_its_cores() -> None:
    ranks = [replace(rank, machine="one", cores=make_cores(1)) for rank in two_hosts().ranks]
    (row,) = read_rows(replace(two_hosts(), ranks=tuple(ranks)), "cores for ranks")
    assert row.ranks == (0, 1)
    assert "2 ranks have 2 busy threads" in row.finding.reading


def test_pairs_that_were_not_probed_are_counted() -> None:
    four_ranks = make_job([replace(RANK, rank=rank) for rank in range(4)])
    assert read_rows(four_ranks, "link")[-1].finding == ok("5 other pairs of ranks were not probed")


# ---- rows ----


def test_equal_findings_of_ranks_are_one_row() -> None:
    def row(check: str, text: str, *ranks: int) -> FindingRow:
        return FindingRow(check, ok(text), ranks)

    unmerged = [row("a", "same", 0), row("a", "other", 1), row("a", "same", 2), row("b", "same", 0)]
    assert merge_rows(unmerged) == [
        row("a", "same", 0, 2),
        row("a", "other", 1),
        row("b", "same", 0),
    ]


@pytest.mark.parametrize(
    ("ranks", "size", "text"),
    [((0, 1), 2, "all"), ((1,), 2, "1"), ((0, 1, 2, 5), 8, "0-2, 5"), ((0, 2), 3, "0, 2")],
)
def test_ranks_are_named_by_their_numbers_unless_all_are_meant(
    ranks: tuple[int, ...], size: int, text: str
) -> None:
    assert format_ranks(ranks, size) == text


def test_a_folder_without_a_known_mount_is_on_an_unknown_file_system() -> None:
    unknown = FolderFacts("/data", None, 5 * GIB, "0:1")
    (row,) = read_rows(host_with(folders=(unknown,)), "file system")
    assert row.finding == ok("/data on unknown file system: 5.00 GiB free")


def test_the_checks_of_ranks_and_hosts_see_each_of_them() -> None:
    judged: list[str] = []

    def judge_rank(rank: RankFacts) -> list[Any]:
        judged.append(f"rank {rank.rank}")
        return []

    def judge_host(host: HostFacts) -> list[Any]:
        judged.append(host.host)
        return []

    assert list(RankCheck("a", judge_rank).rows(two_hosts())) == []
    assert list(HostCheck("b", judge_host).rows(two_hosts())) == []
    assert judged == ["rank 0", "rank 1", "node1", "node2"]
