"""For tests of the doctor: facts of healthy machines, to be made worse one at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dejavubench.doctor.facts.cpu import CPUFacts, LoadFacts
from dejavubench.doctor.facts.folders import DiskSpeed, FolderFacts
from dejavubench.doctor.facts.gpu import GPUFacts, GPUHostFacts, NCCLFacts, NIXLFacts
from dejavubench.doctor.facts.job import HostFacts, Job, RankFacts
from dejavubench.doctor.facts.limits import CoreFacts, LimitFacts
from dejavubench.doctor.facts.memory import MemoryFacts
from dejavubench.doctor.facts.mpi import MPIFacts, SoftwareFacts
from dejavubench.doctor.facts.network import Interface, Listening, NetworkFacts
from dejavubench.doctor.facts.ucx import UCXFacts
from dejavubench.doctor.links import Link
from dejavubench.machine.file_system import MountedFolder
from dejavubench.machine.launcher import LAUNCHERS

HYDRA = next(launcher for launcher in LAUNCHERS if "PMI_RANK" in launcher.variables)
OPEN_MPI = next(launcher for launcher in LAUNCHERS if "Open MPI" in launcher.vendors)
GIB = 1 << 30

MPI = MPIFacts(
    library="MPICH Version: 5.0.2",
    vendor="MPICH 5.0.2",
    device="ch4:ucx ofi",
    size=2,
    launcher=HYDRA,
    started=2,
    thread_level=3,
)
RANK = RankFacts(
    rank=0,
    host="node1",
    machine="one",
    mpi=MPI,
    software=SoftwareFacts({"dejavubench": "0.1.0", "python": "3.11.7"}),
    cores=CoreFacts((0, 1, 2, 3), 4, None, None),
    limits=LimitFacts(files=1024, files_most=4096, locked=-1, processes=-1),
    ucx=UCXFacts(True, "1.20.1", (("intra-node", "sysv, cma"),)),
    cross_memory=(1, None),
)
SPEED = DiskSpeed(write_gb_s=1.5, write_nbytes=4 << 20, sync_ms=0.25, sync_p99_ms=0.5, syncs=900)
FOLDER = FolderFacts(
    "/data",
    MountedFolder("/data", "/", "ext4", "/dev/vda"),
    100 * GIB,
    "8:1",
    SPEED,
)
HOST = HostFacts(
    host="node1",
    ranks=(0, 1),
    cpu=CPUFacts(
        "A CPU", cores=4, avx2=True, avx512=True, native_bf16=True, amx=True, governor="performance"
    ),
    load=LoadFacts(cores=4, seconds=1.0, busy=0.01, steal=0.0, average=0.1),
    memory=MemoryFacts(60 * GIB, 64 * GIB, None, "madvise", 32 * GIB, 32 * GIB, 2 << 20, 0),
    folders=(FOLDER,),
    network=NetworkFacts((Interface("eth0", "10.0.0.1", mbit_s=100_000, mtu=1500),), ()),
    port=Listening(wanted=7601, port=7601),
    gpus=GPUHostFacts(),
    nixl=NIXLFacts("1.5.0", ("POSIX", "UCX"), ("UCX",)),
)
LINK = Link(
    (0, 1), ("node1", "node1"), latency_us=0.6, least_us=0.5, gb_s=(9.0, 8.5), nbytes=4 << 20
)
GPUS = GPUHostFacts(
    gpus=tuple(
        GPUFacts(
            "NVIDIA H200",
            nbytes=140 * GIB,
            uuid=f"GPU-{number}",
            used=4 << 20,
            busy_percent=0,
            throttle=1,
            pcie=(16, 16),
        )
        for number in range(2)
    ),
    driver="580.95.05",
    driver_cuda="13.0",
    torch_cuda="13.0",
    peers=frozenset({(0, 1), (1, 0)}),
    links=((0, 1, "NV18"),),
    nccl=NCCLFacts((("cupy", "2.28.9"), ("torch", "2.28.9")), "P2P/CUMEM", "IB mlx5_0"),
)


def make_job(
    ranks: Iterable[RankFacts] | None = None,
    hosts: Iterable[HostFacts] = (HOST,),
    links: Iterable[Link] = (LINK,),
) -> Job:
    """Return a job of two ranks on one healthy host, unless others are given."""
    ranks_of_job = (
        (RANK, replace(RANK, rank=1, cross_memory=(0, None))) if ranks is None else tuple(ranks)
    )
    return Job(ranks_of_job, tuple(hosts), tuple(links), missing=dict.fromkeys(("one", "two")))


def two_hosts() -> Job:
    """Return a job of one rank on each of two healthy hosts."""
    first_rank = replace(RANK, cross_memory=None)
    second_rank = replace(first_rank, rank=1, host="node2", machine="other")
    hosts = (replace(HOST, ranks=(0,)), replace(HOST, host="node2", ranks=(1,)))
    return make_job((first_rank, second_rank), hosts, (replace(LINK, hosts=("node1", "node2")),))
