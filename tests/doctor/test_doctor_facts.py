"""Readers of the doctor's facts: texts of kernels and tools that are made up, and small probes."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from dejavubench.dejavulib.waiting import DeadlineError
from dejavubench.doctor.bounded_collectives import BoundedCollectives, MissingRanksError, wait_busy
from dejavubench.doctor.facts import cpu, cross_memory, folders, gpu, memory, mpi, network, ucx
from dejavubench.doctor.facts.disk_probe import measure
from dejavubench.doctor.facts.folders import FolderFacts
from dejavubench.doctor.facts.gpu import GPUFacts
from dejavubench.doctor.facts.nccl_probe import find_connection, find_network_transport
from dejavubench.doctor.host_probes import find_first_ranks, identify_file_system, probe_folders
from dejavubench.doctor.links import choose_pairs
from dejavubench.machine import mpi_library
from dejavubench.machine.file_system import MountedFolder
from dejavubench.machine.launcher import find_launcher
from dejavubench.machine.probe_process import ProbeError, run_command, run_probe
from dejavubench.machine.readings.cpu_time import ProcessorTime
from helpers.doctor_facts import RANK, SPEED, two_hosts
from helpers.machine_files import write_files

# ---- MPI's launcher ----


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        (["PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"], "Hydra"),
        (["PMI_RANK", "MPI_LOCALNRANKS", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"], "Hydra"),
        (["OMPI_COMM_WORLD_RANK", "PMIX_RANK"], "Open MPI"),
        (["PMI_RANK", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"], "srun"),
        (["PMIX_RANK", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"], "srun"),
        (["SLURM_PROCID"], None),
        ([], None),
    ],
)
def test_the_launcher_is_known_by_its_variables(variables: list[str], name: str | None) -> None:
    launcher = find_launcher(dict.fromkeys(variables, "0"))
    assert (launcher is None) if name is None else (launcher is not None and name in launcher.name)


def test_mpi_is_not_started_under_another_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    probed_modules: list[str] = []

    def answer(module: str, timeout_s: float) -> dict[str, str]:
        probed_modules.append(module)
        return {"name": "MPICH", "version": "5.0.2"}

    monkeypatch.setattr(mpi_library, "run_probe", answer)
    facts = mpi.read_foreign_mpi_facts({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "4"})
    assert facts is not None
    assert (facts.vendor, facts.size, facts.started, facts.thread_level) == (
        *("MPICH 5.0.2", 1, 4),
        None,
    )
    assert mpi.read_foreign_mpi_facts({"PMI_RANK": "0", "MPI_LOCALNRANKS": "2"}) is None
    assert len(probed_modules) == 2
    assert mpi.read_foreign_mpi_facts({}) is None
    assert len(probed_modules) == 2, "alone, no process is started to ask"


# ---- CPU, memory ----


def test_the_load_is_that_between_two_readings() -> None:
    first_reading = ProcessorTime(busy_s=100.0, interrupt_s=5.0, steal_s=1.0)
    second_reading = ProcessorTime(busy_s=101.5, interrupt_s=5.5, steal_s=1.4)
    load = cpu.compute_load(
        first_reading, second_reading, seconds=2.0, core_count=2, average_load=1.25
    )
    assert (load.cores, load.seconds, load.busy, load.average) == (2, 2.0, 1.0, 1.25)
    assert load.steal == pytest.approx(0.1)


def test_a_kernel_that_counts_no_time_is_not_idle(tmp_path: Path) -> None:
    cores = os.cpu_count() or 1
    lines = [f"cpu{number} 0 0 0 0 0 0 0 0 0 0" for number in range(cores)]
    write_files(tmp_path, {"proc/stat": "\n".join(lines)})
    load = cpu.read_load_facts(0.0, tmp_path)
    assert load.unreadable is not None
    assert "counts no time" in load.unreadable


def test_the_governor_is_read_where_there_is_one(tmp_path: Path) -> None:
    assert cpu.read_cpu_facts(tmp_path).governor is None
    name = "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    assert cpu.read_cpu_facts(write_files(tmp_path, {name: "powersave\n"})).governor == "powersave"


MEMINFO = "MemTotal: 2048 kB\nMemFree: 1 kB\nMemAvailable: 1024 kB\n"


@pytest.mark.parametrize(
    ("files", "room", "pages", "scope"),
    [
        ({}, None, None, None),
        (
            {
                "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
                "proc/sys/kernel/yama/ptrace_scope": "1\n",
                "proc/self/cgroup": "0::/box\n",
                "sys/fs/cgroup/box/memory.max": "1000000\n",
                "sys/fs/cgroup/box/memory.current": "400000\n",
            },
            600_000,
            "madvise",
            1,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            *(None, None, None),
        ),
    ],
    ids=["bare", "limited", "version-1-unlimited"],
)
def test_memory_and_its_limits_are_read_where_the_kernel_states_them(
    tmp_path: Path, files: dict[str, str], room: int | None, pages: str | None, scope: int | None
) -> None:
    root = write_files(tmp_path, {"proc/meminfo": MEMINFO, **files})
    facts = memory.read_memory_facts({"MPI_LOCALNRANKS": "3"}, root, tmp_path)
    assert (facts.total, facts.group_room, facts.huge_pages, facts.ptrace_scope) == (
        *(2 << 20, room, pages),
        scope,
    )
    assert facts.available == min(1 << 20, room or 1 << 20)
    assert 3 << 20 < facts.shm_needed < 4 << 20
    assert facts.shm_size > 0


# ---- processes ----


def test_a_probe_that_hangs_is_given_up() -> None:
    with pytest.raises(ProbeError, match=r"no answer within 0\.2 s"):
        run_command([sys.executable, "-c", "import time; time.sleep(60)"], 0.2)


def test_a_probe_that_fails_says_its_last_line() -> None:
    with pytest.raises(ProbeError, match="ended with status 3: cannot"):
        run_command(["sh", "-c", "echo first >&2; echo cannot >&2; exit 3"], 60)


def test_a_missing_program_is_not_found() -> None:
    with pytest.raises(ProbeError, match="no-such-program: not found"):
        run_command(["no-such-program"], 1)
    assert gpu.read_ucx_info(Path("/nowhere")) is None


def test_a_probe_that_prints_no_json_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dejavubench.machine.probe_process.run_command", lambda *args: "words")
    with pytest.raises(ProbeError, match="printed no JSON"):
        run_probe("module", timeout_s=1)


# ---- folders ----


def test_a_folder_is_measured_and_left_empty(tmp_path: Path) -> None:
    speeds = measure(str(tmp_path), 0.05)
    assert list(tmp_path.iterdir()) == []
    assert speeds["write_gb_s"] > 0
    assert 0 < speeds["sync_ms"] <= speeds["sync_p99_ms"]
    assert speeds["syncs"] >= 1


def test_the_probe_of_a_folder_is_a_process_of_its_own(tmp_path: Path) -> None:
    below = folders.read_folder_facts(tmp_path / "not" / "yet")
    assert below.path == str(tmp_path)
    probed = folders.probe_folder(below, seconds=0.02, timeout_s=60)
    assert probed.problem is None
    assert probed.speed is not None
    assert probed.speed.write_nbytes == 4 << 20


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc")
def test_a_folder_that_cannot_be_written_says_why() -> None:
    probed = folders.probe_folder(
        folders.read_folder_facts(Path("/proc/self")), seconds=0.02, timeout_s=60
    )
    assert probed.speed is None
    assert probed.problem is not None


class FakeCollectives(BoundedCollectives):
    """Stands for ranks whose answers are the functions of a list, called with this rank's value."""

    def __init__(self, rank: int, answers: list[Any]) -> None:
        self.rank, self.answers = rank, iter(answers)

    def allgather(self, value: Any, phase: str) -> list[Any]:
        return cast(list[Any], next(self.answers)(value))


def test_one_disk_of_two_hosts_is_probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = [replace(rank, machine="one") for rank in two_hosts().ranks]
    own_folder = FolderFacts("/b", MountedFolder("/b", "/", "ext4", "/dev/vda"), 5, "8:1")
    peer_folder = replace(own_folder, path="/a")
    monkeypatch.setattr("dejavubench.doctor.host_probes.read_folder_facts", lambda path: own_folder)

    def refuse_probe(probed: FolderFacts) -> FolderFacts:
        raise AssertionError("probed twice")

    monkeypatch.setattr("dejavubench.doctor.host_probes.probe_folder", refuse_probe)
    peer_probe = {("one", "8:1"): replace(peer_folder, speed=SPEED)}
    collectives = FakeCollectives(
        1, [lambda own: [[peer_folder], own], lambda own: [peer_probe, own]]
    )
    (folder,) = probe_folders(collectives, ranks, [Path("/b")])
    assert (folder.path, folder.speed) == ("/b", SPEED)


def test_a_network_file_system_is_one_for_all_hosts() -> None:
    nfs = FolderFacts("/n", MountedFolder("/n", "/n", "nfs4", "server:/n"), 5, "0:50")
    assert identify_file_system(nfs, "one") == identify_file_system(
        replace(nfs, device="0:51"), "other"
    )
    disk = replace(nfs, place=MountedFolder("/n", "/n", "ext4", "/dev/vda"))
    assert identify_file_system(disk, "one") != identify_file_system(disk, "other")
    assert find_first_ranks([RANK, replace(RANK, rank=1), *two_hosts().ranks[1:]]) == {
        "node1": 0,
        "node2": 1,
    }


# ---- network ----


def test_interfaces_that_are_up_and_adapters_are_read(tmp_path: Path) -> None:
    net = "sys/class/net"
    files = {
        f"{net}/{name}/{key}": text
        for name, state in (("lo", "unknown"), ("up0", "up"), ("down0", "down"))
        for key, text in (("operstate", state), ("speed", "25000"), ("mtu", "9000"))
    }
    adapter = "sys/class/infiniband/mlx5_0/ports/1"
    files |= {f"{adapter}/state": "4: ACTIVE\n", f"{adapter}/rate": "400 Gb/sec (4X NDR)\n"}
    facts = network.read_network_facts(write_files(tmp_path, files))
    assert facts.interfaces == (network.Interface("up0", "", mbit_s=25000, mtu=9000),)
    assert facts.infiniband == (
        network.InfiniBandPort("mlx5_0 port 1", "ACTIVE", "400 Gb/sec (4X NDR)"),
    )
    nothing = network.read_network_facts(tmp_path / "nothing")
    assert nothing == network.NetworkFacts((), ())


def test_a_taken_port_is_replaced_and_both_ports_are_reported() -> None:
    with socket.socket() as other_socket:
        other_socket.bind(("127.0.0.1", 0))
        other_socket.listen()
        taken = other_socket.getsockname()[1]
        with network.listen_on(taken) as listener:
            assert listener.is_taken
            assert network.find_connection_problem(["127.0.0.1"], listener.port) is None
    problem = network.find_connection_problem(["127.0.0.1"], taken, 1.0)
    assert problem == "127.0.0.1: Connection refused"
    assert network.find_connection_problem([], taken) == "the host has no IPv4 address"


# ---- reading another rank's memory ----


def test_memory_is_read_only_of_the_process_that_told_its_address() -> None:
    own_memory = cross_memory.locate_readable_bytes()
    assert cross_memory.find_read_problem(own_memory) is None
    assert cross_memory.find_read_problem(replace(own_memory, pid=2**22 + 1)) == "No such process"
    stranger = replace(own_memory, address=own_memory.address + 1)
    assert cross_memory.find_read_problem(stranger) == "another process has this process number"


# ---- UCX ----

UCX_LOG = """\
[1.9] [vm:6770 :0] ucp_context.c:2463 UCX  INFO  Version 1.20.1 (loaded from /x/libucp.so.0)
[1.9] [vm:6770 :0] parser.c:2364 UCX  INFO  UCX_* env variables: UCX_TLS=tcp,self
[1.9] [vm:6770 :0] ucp_worker.c:1912 UCX  INFO    ucp_context_0 self cfg#0 tag(self/memory)
[1.9] [vm:6770 :0] ucp_worker.c:1912 UCX  INFO    ucp_context_0 intra-node cfg#1 \
tag(sysv/memory cma/memory)  rma(posix/memory)  am(sysv/memory cma/memory)
[1.9] [vm:6770 :0] ucp_worker.c:1912 UCX  INFO    ucp_context_0 inter-node cfg#2 \
tag(rc_mlx5/mlx5_0:1 tcp/eth0)
"""


def test_the_ways_of_ucx_are_read_from_its_log() -> None:
    facts = ucx.read_log(UCX_LOG.splitlines(), True)
    assert facts.version == "1.20.1"
    assert facts.paths == (
        ("inter-node", "rc_mlx5/mlx5_0:1, tcp/eth0"),
        ("intra-node", "sysv, cma"),
    )
    assert ucx.read_log([], False) == ucx.UCXFacts(False)


def test_the_log_is_asked_for_unless_the_user_has_one() -> None:
    environment: dict[str, str] = {}
    log = ucx.UCXLog(environment)
    file = Path(environment[ucx.FILE_VARIABLE])
    file.write_text("")
    log.unlink()
    assert environment == {}, "probes in processes of their own have a UCX, too"
    assert not file.parent.exists(), "a killed process leaves nothing"
    assert log.read().version == ""
    empty = ucx.UCXLog(environment_of_empty := dict[str, str]())
    empty.unlink()
    assert empty.read().paths == ()
    assert environment_of_empty == {}
    user_variables = {"UCX_LOG_LEVEL": "error"}
    log = ucx.UCXLog(user_variables)
    log.unlink()
    assert log.read().unread == "UCX_LOG_LEVEL is set"
    assert user_variables == {"UCX_LOG_LEVEL": "error"}


# ---- GPUs ----

SMI = """\
GPU-a, 580.95.05, 4, 0, 0x0000000000000001, 16, 16
GPU-b, 580.95.05, 2048, 97, [Not Supported], [N/A], 16
"""
TOPOLOGY = """\
\t\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\x1b[0m
GPU0\t X \tNV18\tSYS\tPIX\t0-47\t0
GPU1\tNV18\t X \tPHB\tSYS\t0-47\t0
GPU2\tSYS\tPHB\t X \tSYS\t48-95\t1
NIC0\tPIX\tSYS\tSYS\t X \t\t

Legend:
"""


def test_the_tool_of_the_driver_is_read() -> None:
    gpu_a, gpu_b = GPUFacts("H", nbytes=1, uuid="GPU-a"), GPUFacts("H", nbytes=1, uuid="GPU-b")
    gpus, driver = gpu.add_smi_answers((gpu_a, gpu_b, GPUFacts("H", nbytes=1, uuid="GPU-c")), SMI)
    assert driver == "580.95.05"
    assert gpus == (
        replace(gpu_a, used=4 << 20, busy_percent=0, throttle=1, pcie=(16, 16)),
        replace(gpu_b, used=2 << 30, busy_percent=97),
        GPUFacts("H", nbytes=1, uuid="GPU-c"),
    )
    assert gpu.read_topology(TOPOLOGY) == ((0, 1, "NV18"), (0, 2, "SYS"), (1, 2, "PHB"))
    assert gpu.read_topology("nothing") == ()


def test_older_drivers_are_asked_in_their_words(monkeypatch: pytest.MonkeyPatch) -> None:
    queries: list[str] = []

    def answer(command: list[str], timeout_s: float) -> str:
        queries.append(command[1])
        if "event_reasons" in command[1]:
            raise ProbeError("not a valid field")
        return SMI

    monkeypatch.setattr(gpu, "run_command", answer)
    assert gpu.ask_smi() == SMI
    assert ["clocks_throttle_reasons.active" in query for query in queries] == [False, True]


def fake_probe(answers: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """Return a stand-in for ``run_probe`` with these answers, by the last part of the module."""

    def answer(module: str, *arguments: str, timeout_s: float) -> dict[str, Any]:
        content = answers[module.rpartition(".")[2]]
        if isinstance(content, Exception):
            raise content
        return cast(dict[str, Any], content)

    return answer


def test_a_host_without_a_gpu_asks_no_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "run_probe", fake_probe({"gpu_probe": {"devices": []}}))
    assert gpu.read_gpu_facts() == gpu.GPUHostFacts()
    monkeypatch.setattr(gpu, "run_probe", fake_probe({"gpu_probe": {"problem": "cuInit failed"}}))
    assert gpu.read_gpu_facts().problem == "cuInit failed"
    monkeypatch.setattr(
        gpu, "run_probe", fake_probe({"gpu_probe": ProbeError("no answer within 15 s")})
    )
    assert gpu.read_gpu_facts().problem == "no answer within 15 s"


def test_facts_of_gpus_are_read_without_nvidia_smi_too(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [{"name": "H", "nbytes": 5, "uuid": uuid} for uuid in ("GPU-a", "GPU-b")]
    answer = {"driver_cuda": "13.0", "torch_cuda": None, "peers": [[0, 1]]}
    nccl = {"versions": {"torch": "2.28.9"}, "between": "P2P/CUMEM", "network": None}
    answers = {"gpu_probe": {"devices": devices, **answer}, "nccl_probe": {**nccl, "problem": None}}
    monkeypatch.setattr(gpu, "run_probe", fake_probe(answers))
    monkeypatch.setattr(gpu, "is_mps_running", lambda timeout_s: True)

    def no_tool(command: list[str], timeout_s: float) -> str:
        raise ProbeError("nvidia-smi: not found")

    monkeypatch.setattr(gpu, "run_command", no_tool)
    facts = gpu.read_gpu_facts()
    assert [device.uuid for device in facts.gpus] == ["GPU-a", "GPU-b"]
    assert (facts.driver, facts.smi) == ("", "nvidia-smi: not found")
    assert facts.peers == {(0, 1)}
    assert facts.mps
    assert facts.nccl == gpu.NCCLFacts((("torch", "2.28.9"),), "P2P/CUMEM")


NCCL_LOG = """\
vm:1:1 [0] NCCL INFO Bootstrap: Using eth0:10.0.0.1<0>
vm:1:1 [0] NCCL INFO NET/IB : No device found.
vm:1:1 [0] NCCL INFO NET/Socket : Using [0]eth0:10.0.0.1<0> [1]eth1:10.1.0.1<0>
vm:1:1 [0] NCCL INFO Using network Socket
vm:1:1 [0] NCCL INFO Channel 00/1 : 0[0] -> 1[1] via P2P/CUMEM/read
"""


def test_the_ways_of_nccl_are_read_from_its_log() -> None:
    lines = NCCL_LOG.splitlines()
    assert find_connection(lines) == "P2P/CUMEM"
    assert find_network_transport(lines) == "Socket eth0 eth1"
    adapter = "x [0] NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [1]mlx5_1:1/IB [RO]; OOB eth0:10.0.0.1"
    assert find_network_transport([adapter, "x NCCL INFO Using network IB"]) == "IB mlx5_0 mlx5_1"
    assert find_connection(lines[:3]) is None
    assert find_network_transport(lines[:1]) is None


def test_nixl_is_asked_only_if_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    assert gpu.read_nixl_facts() == gpu.NIXLFacts()
    monkeypatch.setattr(gpu, "find_spec", lambda name: object())
    monkeypatch.setattr(gpu, "version", lambda name: "1.5.0")
    answer = {"plugins": ["UCX"], "backends": ["UCX"]}
    monkeypatch.setattr(gpu, "run_probe", fake_probe({"nixl_probe": answer}))
    assert gpu.read_nixl_facts() == gpu.NIXLFacts("1.5.0", ("UCX",), ("UCX",))
    monkeypatch.setattr(gpu, "run_probe", fake_probe({"nixl_probe": ProbeError("no UCX")}))
    assert gpu.read_nixl_facts() == gpu.NIXLFacts("1.5.0", problem="no UCX")


# ---- ranks that meet, and links ----


class Message:
    def __init__(self, value: object) -> None:
        self.value = value

    def recv(self) -> object:
        return self.value


class FakeCommunicator:
    """A communicator of rank 0 in which some ranks never send."""

    rank, size = 0, 4

    def __init__(self, silent: set[int]) -> None:
        self.silent, self.sent = silent, list[int]()

    def improbe(self, rank: int, tag: int) -> Message | None:
        return None if rank in self.silent else Message(f"of {rank}")

    def isend(self, value: object, rank: int, tag: int) -> FakeCommunicator:
        self.sent.append(rank)
        return self

    def Test(self) -> bool:  # noqa: N802 (MPI's own name)
        return True


def test_ranks_that_do_not_come_are_named() -> None:
    collectives = BoundedCollectives(cast(Any, FakeCommunicator({2, 3})), 0.05)
    with pytest.raises(MissingRanksError, match=r"from ranks 2, 3 within 0\.05 s: folder"):
        collectives.allgather(None, "folders")


def test_ranks_that_come_get_all_values() -> None:
    world = FakeCommunicator(set())
    assert BoundedCollectives(cast(Any, world), 5.0).allgather("own", "x") == [
        "own",
        "of 1",
        "of 2",
        "of 3",
    ]
    assert world.sent == [1, 2, 3]


def test_a_process_alone_shares_with_itself() -> None:
    assert BoundedCollectives(None, 1.0).allgather(5, "x") == [5]


def test_a_busy_wait_has_a_deadline() -> None:
    set_later = threading.Event()
    threading.Timer(0.02, set_later.set).start()
    wait_busy(set_later.is_set, 30.0)
    with pytest.raises(DeadlineError):
        wait_busy(lambda: False, 0.01)


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        (["a"], []),
        (["a", "a", "b"], [(0, 1), (0, 2), (1, 2)]),
        (["a"] * 4 + ["b"] * 4, [(0, 1), (0, 4), *((rank, rank + 1) for rank in range(1, 7))]),
    ],
)
def test_links_are_measured_between_a_few_pairs_of_every_kind(
    hosts: list[str], expected: list[tuple[int, int]]
) -> None:
    assert choose_pairs(hosts) == expected
    assert len(choose_pairs(["a"] * 500)) == 15


@pytest.fixture(autouse=True)
def _no_leftovers() -> Iterator[None]:
    yield
    assert ucx.LEVEL_VARIABLE not in os.environ
