"""The order and records of probes, and the probes of a CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch

from dejavubench.bench.environment import facts
from dejavubench.bench.probes import gpu_probes
from dejavubench.bench.probes.ceilings import PAIR_RUN_COUNT, Ceilings
from dejavubench.bench.probes.gpu_probes import (
    LEAST_BUFFER_NBYTES,
    MEMORY_PART_COUNT,
    DeviceProbes,
    choose_buffer_nbytes,
    count_gathered_layers,
)
from dejavubench.bench.probes.probe_subjects import ProbedModel
from dejavubench.dejavulib.destinations.base import StorageError
from dejavubench.dejavulib.kv_cache import KVGeometry, KVLayout
from dejavubench.records import OVERHEAD_OF
from dejavubench.transports.contexts import FileContext, ProbeContext, RankContext
from dejavubench.transports.probe import Probe, Sample
from dejavubench.transports.registry import find_transport
from helpers.gpu_marks import needs_gpus

needs_gpu = needs_gpus(1)

GB = 10**9
PROMPT = KVGeometry(layers=40, requests=8, heads=40, positions=640, head_size=128, itemsize=2)
"""One prompt of opt-13b at batch 8."""

WRITTEN_RESULT = 0x9E3779B9 - (1 << 32)
"""The one result that the reading kernel writes, as a signed number."""


class FakeDevice:
    """Stands for :class:`DeviceProbes`: notes what is run, and gives rising values."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def probes(self) -> list[Probe]:
        units = {
            "gather": "GB/s",
            "gather-copy": "GB/s",
            "pcie-d2h": "GB/s",
            "pcie-destination": "GB/s",
        }
        units |= {"memory-read": "GB/s", "run-copy": "us"}
        return [Probe(name, unit, partial(self._run, name)) for name, unit in units.items()]

    def _run(self, name: str) -> list[Sample]:
        self.ran.append(name)
        value = float(self.ran.count(name))
        return [(value, "small"), (value + 0.5, "large")]


def test_a_device_has_the_place_of_the_cpu_and_its_pairs_run_in_turn() -> None:
    device = FakeDevice()
    ceilings = Ceilings(device.probes())
    ceilings.run()
    assert [name for name in device.ran if name not in ("gather", "gather-copy")].count(
        "pcie-d2h"
    ) == PAIR_RUN_COUNT
    pairs = [name for name in device.ran if name.startswith("gather")]
    assert pairs == ["gather-copy", "gather", "gather", "gather-copy"] * (PAIR_RUN_COUNT // 2)
    records = {record.name: record for record in ceilings.records("p000")}
    assert set(records) == set(device.ran)  # nothing of the CPU's own
    assert (records["memory-read"].value, records["memory-read"].shape) == (1.5, "large")
    assert (records["run-copy"].value, records["run-copy"].shape) == (1.0, "small")
    assert len(records["gather"].samples) == len(records["gather-copy"].samples) == PAIR_RUN_COUNT


@pytest.mark.parametrize(
    ("l2", "free"),
    [(60 << 20, 100 * GB), (60 << 20, 4 * GB), (60 << 20, 10**7), (1 << 30, 200 * GB)],
)
def test_a_quarter_of_free_device_memory_is_taken_at_most(l2: int, free: int) -> None:
    nbytes = choose_buffer_nbytes(l2, free)
    assert nbytes % 16 == 0
    assert nbytes <= free // MEMORY_PART_COUNT
    if free > MEMORY_PART_COUNT * 4 * LEAST_BUFFER_NBYTES:
        assert nbytes >= max(LEAST_BUFFER_NBYTES, 4 * l2)
    layers = count_gathered_layers(PROMPT, 500, l2, free, nbytes)
    layer = PROMPT.nbytes // PROMPT.layers
    assert 2 * nbytes + layers * layer <= free * 3 // MEMORY_PART_COUNT


def test_gathered_layers_are_out_of_the_cache_when_their_turn_comes() -> None:
    l2 = 60 << 20
    message_nbytes = PROMPT.nbytes // 40 * 500 // 640
    layers = count_gathered_layers(PROMPT, 500, l2, 100 * GB, LEAST_BUFFER_NBYTES)
    assert 4 * l2 <= layers * message_nbytes < 4 * l2 + message_nbytes
    assert (
        count_gathered_layers(PROMPT, 500, l2, GB, choose_buffer_nbytes(l2, GB)) == 0
    )  # no layer has room
    # The device has room for more layers than the model has.
    assert (
        count_gathered_layers(
            KVGeometry(layers=2, requests=1, heads=4, positions=8, head_size=64, itemsize=2),
            4,
            l2,
            100 * GB,
            LEAST_BUFFER_NBYTES,
        )
        == 2
    )


def test_nothing_of_a_device_is_asked_without_one() -> None:
    assert not {"gpu", "gpus", "cuda_aware_mpi"} & set(
        facts.describe_run(["node-a"], thread_count=1, core_count=2)
    )
    assert facts.is_mpi_cuda_aware() in (True, False)
    assert facts.query_driver("no such device") == {}


# ---- on a device ----


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("layout", list(KVLayout))
def test_every_probe_of_a_device_gives_a_rate_that_can_be(layout: KVLayout) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    geometry = KVGeometry(
        layers=4, requests=8, heads=16, positions=320, head_size=128, itemsize=2, layout=layout
    )
    probes = DeviceProbes(
        device, ProbedModel(torch.float16, torch.float16, geometry, 256, 16 << 20)
    )
    ceilings = Ceilings(probes.probes())
    ceilings.run()
    records = {record.name: record for record in ceilings.records("p000")}
    for ceiling in records.values():
        print(
            f"{layout.value} {ceiling.name}: {ceiling.value:.4g} {ceiling.unit} ({ceiling.shape})"
        )
    assert {"memory-read", "memory-copy", "matmul", "pcie-d2h-large"} <= set(records)
    assert {"pcie-destination", "gather", "gather-copy"} <= set(records)
    assert all(ceiling.value > 0 for ceiling in records.values())
    # memory-copy counts bytes read and bytes written.
    assert records["memory-copy"].value < 1.2 * records["memory-read"].value
    assert records["pcie-d2h"].value < records["memory-copy"].value
    assert records["gather"].value < 1.1 * records["memory-read"].value
    overheads = {overhead: base for overhead, base in OVERHEAD_OF.items() if overhead in records}
    assert all(
        records[overhead].value < records[base].value for overhead, base in overheads.items()
    )


@pytest.mark.gpu
@needs_gpu
def test_the_read_kernel_reads_all() -> None:
    words = torch.zeros(1 << 20, dtype=torch.int32, device="cuda")
    out = torch.zeros(1, dtype=torch.int32, device="cuda")
    import cupy
    import numpy as np

    for place in (0, 1, words.numel() // 2, words.numel() - 1):
        words.zero_()
        words[place] = WRITTEN_RESULT
        out.zero_()
        arguments = (
            np.uintp(words.data_ptr()),
            np.uint64(words.numel() // 4),
            np.uintp(out.data_ptr()),
        )
        with cupy.cuda.Stream.from_external(torch.cuda.current_stream()):
            gpu_probes._read_kernel()((16,), (gpu_probes.READ_THREAD_COUNT,), arguments)
        assert int(out) == WRITTEN_RESULT


@pytest.mark.gpu
@needs_gpu
def test_the_environment_of_a_rank_names_its_device_and_versions() -> None:
    device_facts = facts.describe_rank(torch.cuda.current_device())
    print(device_facts["gpu"], device_facts["cuda_aware_mpi"])
    assert device_facts["gpu"]["name"] == torch.cuda.get_device_name()
    assert device_facts["gpu"]["memory_nbytes"] > GB
    assert {"uuid", "cuda", "nccl", "mps"} <= set(device_facts["gpu"])
    assert facts.describe_run(
        ["a"], thread_count=1, core_count=2, device=torch.cuda.current_device()
    )["gpus"] == [device_facts["gpu"]["name"]]


def test_a_disk_that_fails_for_a_while_leaves_samples_that_belong_together() -> None:
    """The reader refuses a ceiling with another count of samples than its raw loop."""

    def fail_after(good: int, value: float, error: Exception) -> Callable[[], list[Sample]]:
        calls = count()

        def run() -> list[Sample]:
            if next(calls) in (good, good + 1):
                raise error
            return [(value, "16 MiB")]

        return run

    destination_probe = Probe(
        "disk-destination",
        "MB/s",
        fail_after(good=1, value=90.0, error=StorageError("cannot write x: no space")),
        "fdatasync",
        may_fail=True,
    )
    raw_probe = Probe(
        "disk-write",
        "MB/s",
        fail_after(good=2, value=100.0, error=OSError(28, "No space left on device")),
        "fdatasync",
        may_fail=True,
    )
    ceilings = Ceilings([destination_probe, raw_probe], {"disk-destination": "disk-write"})
    assert ceilings.run() == [
        "disk-destination (fdatasync): cannot write x: no space",
        "disk-write (fdatasync): No space left on device",
    ]
    assert [len(record.samples) for record in ceilings.records("p000")] == [PAIR_RUN_COUNT - 3] * 2


def test_a_link_that_fails_ends_the_run() -> None:
    def run() -> list[Sample]:
        raise OSError(104, "Connection reset by peer")

    ceilings = Ceilings([Probe("tcp-raw", "MB/s", run)])
    with pytest.raises(OSError, match="Connection reset"):
        ceilings.run()


def test_of_several_probes_of_one_name_the_first_runs() -> None:
    """Destinations between ranks share the probes of their link."""
    ran: list[str] = []

    def probe(name: str, base_name: str, durability: str | None = None) -> Probe:
        def run() -> list[Sample]:
            ran.append(base_name)
            return [(1.0, base_name)]

        return Probe(name, "GB/s", run, durability)

    ceilings = Ceilings(
        [probe("link", "a"), probe("link", "b"), probe("disk", "c", "x"), probe("disk", "d", "y")]
    )
    assert ceilings.run() == []
    assert ran == ["a", "c", "d"]
    assert [record.shape for record in ceilings.records("p000")] == ["a", "c", "d"]


def test_a_disk_without_room_has_no_probes_and_says_why(tmp_path: Path) -> None:
    messages: list[str] = []
    with ExitStack() as close:
        context = ProbeContext(
            rank_pair=None,
            is_source=True,
            device=torch.device("cpu"),
            files=[FileContext("page-cache", tmp_path / "missing", "run-p000-page-cache")],
            say=messages.append,
            open_probes=close,
        )
        session = find_transport("disk").connector(make_rank_without_peers())
        assert list(session.probes(context)) == []
    assert len(messages) == 1
    assert messages[0].startswith("dejavubench: no ceiling of disk (page-cache): ")


def make_rank_without_peers() -> RankContext:
    return RankContext(
        world=None,  # type: ignore[arg-type]
        host="here",
        is_source=True,
        worker=0,
        device=torch.device("cpu"),
        options=None,  # type: ignore[arg-type]
    )


def test_a_disk_has_probes_of_each_durability(tmp_path: Path) -> None:
    with ExitStack() as close:
        context = ProbeContext(
            rank_pair=None,
            is_source=True,
            device=torch.device("cpu"),
            files=[
                FileContext(durability, tmp_path, f"run-p000-{durability}")
                for durability in ("page-cache", "fdatasync")
            ],
            say=pytest.fail,
            open_probes=close,
        )
        disk = find_transport("disk").connector(make_rank_without_peers())
        probes = list(disk.probes(context))
        probe_names = ["disk-write", "disk-destination", "disk-run"]
        names_and_durabilities = [(probe.name, probe.durability) for probe in probes]
        assert names_and_durabilities == [
            *((name, "page-cache") for name in probe_names),
            *((name, "fdatasync") for name in probe_names),
            ("disk-run-overhead", None),
        ]
        for probe in probes:
            assert probe() is None
            assert all(value > 0 for value, _ in probe.samples[0])
    assert [path.name for path in tmp_path.iterdir() if "raw" in path.name] == []
