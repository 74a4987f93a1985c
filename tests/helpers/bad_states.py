"""Bad states of machines and links for tests of the doctor: one for each check that warns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dejavubench.doctor.facts.gpu import NCCLFacts, NIXLFacts
from dejavubench.doctor.facts.job import Job, PortCheck
from dejavubench.doctor.facts.limits import CoreFacts
from dejavubench.doctor.facts.mpi import SoftwareFacts, make_facts_without_mpi
from dejavubench.doctor.facts.network import InfiniBandPort, Listening, NetworkFacts
from dejavubench.doctor.findings import Status
from dejavubench.machine.cgroups import Quota, Throttling
from dejavubench.machine.file_system import MountedFolder
from helpers.doctor_facts import (
    FOLDER,
    GIB,
    GPUS,
    HOST,
    LINK,
    OPEN_MPI,
    RANK,
    SPEED,
    make_job,
    two_hosts,
)

WARN, BAD = Status.WARN, Status.BAD
ADAPTER = InfiniBandPort("mlx5_0 port 1", "ACTIVE", "400 Gb/sec (4X NDR)")


def ranks_with(**changes: Any) -> Job:
    """Return the healthy job in which facts of both ranks are other ones."""
    return make_job(replace(rank, **changes) for rank in make_job().ranks)


def mpi_with(**changes: Any) -> Job:
    return ranks_with(mpi=replace(RANK.mpi, **changes))


def host_with(**changes: Any) -> Job:
    return make_job(hosts=[replace(HOST, **changes)])


def memory_with(**changes: Any) -> Job:
    return host_with(memory=replace(HOST.memory, **changes))


def folder_with(**changes: Any) -> Job:
    return host_with(folders=(replace(FOLDER, **changes),))


def make_mount(kind: str) -> MountedFolder:
    return MountedFolder("/data", "/data", kind, "it")


def make_cores(granted: int, quota: float | None = None) -> CoreFacts:
    limit = None if quota is None else Quota(quota, "/group")
    return CoreFacts(tuple(range(granted)), 4, limit, Throttling(periods=7, seconds=0.25))


def gpus_with(**changes: Any) -> Job:
    return host_with(gpus=replace(GPUS, **changes))


def gpu_with(**changes: Any) -> Job:
    return gpus_with(gpus=(GPUS.gpus[0], replace(GPUS.gpus[1], **changes)))


def make_adapters(state: str = "ACTIVE") -> NetworkFacts:
    return replace(HOST.network, infiniband=(replace(ADAPTER, state=state),))


def link_with(**changes: Any) -> Job:
    return make_job(links=[replace(LINK, **changes)])


def connect_hosts(network: NetworkFacts, **changes: Any) -> Job:
    healthy = two_hosts()
    hosts = [replace(host, network=network) for host in healthy.hosts]
    return replace(healthy, hosts=tuple(hosts), links=(replace(healthy.links[0], **changes),))


def make_port_job(problem: str | None) -> Job:
    check = PortCheck((0, 1), ("node1", "node2"), wanted=7601, port=7601, problem=problem)
    return replace(two_hosts(), ports=(check,))


@dataclass(frozen=True)
class BadState:
    """A fault of a job, and what its finding must say.

    Attributes:
        check: name of the check that must see it.
        status: status of its finding.
        make: makes the facts of the job.
        words: words of the finding or of its advice.
    """

    check: str
    status: Status
    make: Callable[[], Job]
    words: Sequence[str]


STATES: Mapping[str, BadState] = {
    "no-library": BadState(
        "MPI library",
        BAD,
        lambda: ranks_with(mpi=make_facts_without_mpi("no MPI library: cannot load libmpi", {})),
        ["cannot load libmpi", "one rank"],
    ),
    "another-launcher": BadState(
        "launcher",
        BAD,
        lambda: make_job(
            [replace(RANK, mpi=replace(RANK.mpi, size=1, launcher=OPEN_MPI))], links=()
        ),
        ["Open MPI's mpirun does not belong to MPICH 5.0.2", "2 ranks", "mpirun of MPICH"],
    ),
    "worlds-of-one-rank": BadState(
        "launcher",
        BAD,
        lambda: make_job([replace(RANK, mpi=replace(RANK.mpi, size=1))], links=()),
        ["started 2 ranks", "MPICH 5.0.2 knows 1", "a world of its own"],
    ),
    "threads": BadState(
        "thread level", BAD, lambda: mpi_with(thread_level=1), ["FUNNELED", "Unset"]
    ),
    "one-machine": BadState(
        "ranks and hosts",
        WARN,
        lambda: replace(
            two_hosts(), ranks=tuple(replace(rank, machine="one") for rank in two_hosts().ranks)
        ),
        ["node1 and node2 are one machine"],
    ),
    "other-software": BadState(
        "software",
        BAD,
        lambda: make_job(
            [RANK, replace(RANK, rank=1, software=SoftwareFacts({"python": "3.12.1"}))]
        ),
        ["python 3.12.1 (rank 0: 3.11.7)"],
    ),
    "missing-software": BadState(
        "software",
        BAD,
        lambda: ranks_with(software=SoftwareFacts({"torch": "missing"})),
        ["missing: torch"],
    ),
    "bound": BadState(
        "affinity",
        WARN,
        lambda: ranks_with(cores=make_cores(1)),
        ["1 core of 4", "--bind-to none"],
    ),
    "quota": BadState(
        "CPU quota",
        WARN,
        lambda: ranks_with(cores=make_cores(granted=4, quota=1.5)),
        ["1.5 CPUs for 4 cores", "0.25 s in 7 periods"],
    ),
    "crowded": BadState(
        "cores for ranks",
        WARN,
        lambda: ranks_with(cores=make_cores(1)),
        ["2 ranks have 2 busy threads", "for 1 core"],
    ),
    "busy": BadState(
        "load",
        WARN,
        lambda: host_with(load=replace(HOST.load, busy=1.25)),
        ["1.25 of 4 cores", "top"],
    ),
    "stolen": BadState(
        "stolen time",
        WARN,
        lambda: host_with(load=replace(HOST.load, steal=0.075)),
        ["7.5 % of the time"],
    ),
    "different-cpus": BadState(
        "equal CPUs",
        WARN,
        lambda: make_job(
            hosts=[
                replace(HOST, ranks=(0,)),
                replace(HOST, ranks=(1,), cpu=replace(HOST.cpu, model="B")),
            ]
        ),
        ["A CPU, B"],
    ),
    "saving": BadState(
        "CPU clock",
        WARN,
        lambda: host_with(cpu=replace(HOST.cpu, governor="powersave")),
        ["powersave", "cpupower"],
    ),
    "no-memory": BadState(
        "memory", BAD, lambda: memory_with(available=GIB // 2), ["512 MiB available"]
    ),
    "little-memory": BadState(
        "memory",
        WARN,
        lambda: memory_with(available=3 * GIB, group_room=3 * GIB),
        ["the control group leaves 3.00 GiB", "small models"],
    ),
    "no-huge-pages": BadState(
        "huge pages", WARN, lambda: memory_with(huge_pages="never"), ["madvise"]
    ),
    "no-shm": BadState(
        "/dev/shm",
        BAD,
        lambda: memory_with(shm_free=1 << 20),
        ["1.00 MiB free", "2.00 MiB", "bus error", "--shm-size"],
    ),
    "little-shm-with-gpus": BadState(
        "/dev/shm",
        WARN,
        lambda: host_with(gpus=GPUS, memory=replace(HOST.memory, shm_free=64 << 20)),
        ["64.0 MiB free", "NCCL"],
    ),
    "no-cma": BadState(
        "CMA",
        WARN,
        lambda: make_job(
            [replace(RANK, cross_memory=(1, "Operation not permitted"))],
            [replace(HOST, memory=replace(HOST.memory, ptrace_scope=2))],
        ),
        ["Operation not permitted", "ptrace_scope is 2", "copied twice", "sysctl"],
    ),
    "no-files": BadState(
        "open files",
        BAD,
        lambda: ranks_with(limits=replace(RANK.limits, files=32, files_most=32)),
        ["32: a rank needs 64"],
    ),
    "few-files": BadState(
        "open files",
        WARN,
        lambda: ranks_with(limits=replace(RANK.limits, files=256, files_most=512)),
        ["256, may be raised to 512"],
    ),
    "locked-with-adapter": BadState(
        "locked memory",
        WARN,
        lambda: make_job(
            [replace(RANK, limits=replace(RANK.limits, locked=8 << 20))],
            [replace(HOST, network=make_adapters())],
        ),
        ["8.00 MiB", "ulimit -l"],
    ),
    "few-processes": BadState(
        "processes",
        WARN,
        lambda: ranks_with(limits=replace(RANK.limits, processes=100)),
        ["100: threads count"],
    ),
    "not-writable": BadState(
        "file system",
        BAD,
        lambda: folder_with(speed=None, problem="cannot be written: Read-only file system"),
        ["Read-only file system", "--stream-dir"],
    ),
    "full": BadState("file system", WARN, lambda: folder_with(free=GIB // 2), ["512 MiB free"]),
    "tmpfs": BadState(
        "file system", WARN, lambda: folder_with(place=make_mount("tmpfs")), ["is memory"]
    ),
    "nfs": BadState(
        "file system",
        WARN,
        lambda: folder_with(place=make_mount("nfs4")),
        ["a network file system"],
    ),
    "slow-sync": BadState(
        "file system",
        WARN,
        lambda: folder_with(speed=replace(SPEED, sync_ms=25.0)),
        ["25.00 ms"],
    ),
    "slow-writes": BadState(
        "file system",
        WARN,
        lambda: folder_with(speed=replace(SPEED, write_gb_s=0.04)),
        ["0.04 GB/s"],
    ),
    "driver-fails": BadState(
        "GPUs",
        BAD,
        lambda: host_with(gpus=replace(GPUS, gpus=(), problem="cuInit returned error 999")),
        ["error 999", "nvidia-smi"],
    ),
    "torch-for-cpus": BadState(
        "CUDA driver",
        WARN,
        lambda: gpus_with(torch_cuda=None),
        ["torch is built for CPUs"],
    ),
    "old-driver": BadState(
        "CUDA driver",
        BAD,
        lambda: gpus_with(driver_cuda="12.4"),
        ["up to 12.4", "built for CUDA 13.0"],
    ),
    "no-smi": BadState(
        "GPU state",
        WARN,
        lambda: gpus_with(smi="nvidia-smi: not found", driver=""),
        ["not found"],
    ),
    "gpu-used": BadState(
        "GPU state", WARN, lambda: gpu_with(used=20 * GIB), ["GPU 1 has 20.0 GiB in use"]
    ),
    "gpu-busy": BadState(
        "GPU state", WARN, lambda: gpu_with(busy_percent=80), ["GPU 1 is 80 % busy"]
    ),
    "gpu-hot": BadState(
        "GPU state", WARN, lambda: gpu_with(throttle=0x41), ["hardware thermal slowdown"]
    ),
    "narrow": BadState("GPU state", WARN, lambda: gpu_with(pcie=(4, 16)), ["4 of 16 PCIe lanes"]),
    "no-peers": BadState(
        "peer access",
        WARN,
        lambda: gpus_with(peers=frozenset({(0, 1)})),
        ["not between GPUs 0-1"],
    ),
    "shared-gpu": BadState(
        "MPS",
        WARN,
        lambda: gpus_with(gpus=GPUS.gpus[:1], peers=frozenset(), links=()),
        ["2 ranks would take turns on 1", "nvidia-cuda-mps-control"],
    ),
    "no-cupy": BadState(
        "NCCL",
        WARN,
        lambda: gpus_with(nccl=NCCLFacts((("torch", "2.28.9"),), problem="No module named 'cupy'")),
        ["No module named 'cupy'", "dejavubench[cuda]"],
    ),
    "broken-nixl": BadState(
        "NIXL",
        WARN,
        lambda: host_with(nixl=NIXLFacts("1.5.0", problem="libucp.so.0: cannot open")),
        ["1.5.0 cannot be loaded: libucp.so.0"],
    ),
    "no-backend": BadState(
        "NIXL",
        WARN,
        lambda: host_with(nixl=NIXLFacts("1.5.0", ("POSIX",))),
        ["no backend", "POSIX", "NIXL_PLUGIN_DIR"],
    ),
    "no-interface": BadState(
        "interfaces",
        WARN,
        lambda: connect_hosts(NetworkFacts((), ())),
        ["none with an IPv4 address"],
    ),
    "adapter-down": BadState(
        "InfiniBand",
        WARN,
        lambda: host_with(network=make_adapters("DOWN")),
        ["mlx5_0 port 1: DOWN", "subnet manager"],
    ),
    "port-forbidden": BadState(
        "TCP port",
        WARN,
        lambda: host_with(port=Listening(wanted=80, port=-1, problem="Permission denied")),
        ["80: Permission denied", "--listen"],
    ),
    "firewall": BadState(
        "TCP port",
        WARN,
        lambda: make_port_job("10.0.0.2: No route to host"),
        ["node1 cannot reach port 7601 of node2", "No route to host"],
    ),
    "sockets": BadState(
        "link",
        WARN,
        lambda: link_with(latency_us=70.0, least_us=60.0),
        ["same host: 70 µs;", "slow for one host", "sockets"],
    ),
    "late-on-a-busy-host": BadState(
        "link",
        WARN,
        lambda: replace(
            link_with(latency_us=1190.0),
            hosts=(replace(HOST, load=replace(HOST.load, busy=1.25)),),
        ),
        ["same host: 1.19 ms (at best 0.5 µs)", "Other programs have the cores"],
    ),
    "slow-link": BadState(
        "link",
        WARN,
        lambda: link_with(gb_s=(0.5, 6.0)),
        ["500 MB/s there, 6 GB/s back", "slow for one host"],
    ),
    "slow-network": BadState(
        "link",
        WARN,
        lambda: connect_hosts(HOST.network, gb_s=(0.05, 0.05)),
        ["node1 to node2", "1 Gbit/s"],
    ),
    "other-network": BadState(
        "link",
        WARN,
        lambda: connect_hosts(make_adapters(), latency_us=40.0, least_us=30.0),
        ["40 µs", "late for InfiniBand"],
    ),
    "broken-link": BadState(
        "link",
        BAD,
        lambda: link_with(problem="no answer within 5 s"),
        ["same host: no answer within 5 s", "firewall"],
    ),
    "missing-ranks": BadState(
        "examination",
        BAD,
        lambda: Job(make_job().ranks, problem="no answer from rank 1 within 30 s: start"),
        ["no answer from rank 1"],
    ),
}
"""Bad states by name."""
