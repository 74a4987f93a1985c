"""Connectors: what a rank opens for each destination. No MPI is started, and no GPU is needed."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dejavubench.bench.startup import skips
from dejavubench.bench.startup.connectors import find_refused_points
from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.destinations.disk import DiskDestination
from dejavubench.dejavulib.destinations.host import HostDestination
from dejavubench.dejavulib.destinations.peers import gpu_memory
from dejavubench.errors import UsageError
from dejavubench.transports.contexts import (
    FileContext,
    PointContext,
    RankContext,
    SinkContext,
    SourceContext,
)
from dejavubench.transports.registry import find_transport, list_builtin_transports
from dejavubench.transports.tcp_token import TOKEN_VARIABLE
from helpers.caches import random_cache
from helpers.fake_destination import schedule_of, small_geometry

CPU = torch.device("cpu")


class FakeCommunicator:
    """Stands for a communicator: counts how often it was duplicated."""

    rank = 3

    def __init__(self) -> None:
        self.duplicates: list[FakeCommunicator] = []

    def Dup(self) -> FakeCommunicator:  # noqa: N802 - MPI's name
        self.duplicates.append(FakeCommunicator())
        return self.duplicates[-1]

    def allgather(self, own: object) -> list[object]:
        return [own]


def rank_of(is_source: bool = True, worker: int = 0, **options: Any) -> RankContext:
    asked = SimpleNamespace(value=options.__getitem__, **options)
    world: Any = FakeCommunicator()
    return RankContext(
        world=world, host="node", is_source=is_source, worker=worker, device=CPU, options=asked
    )


@pytest.fixture
def context(tmp_path: Path) -> SourceContext:
    geometry = small_geometry()
    slots = [torch.zeros(1024, dtype=torch.uint8)]
    return SourceContext(
        caches=[random_cache(geometry)],
        streams=[[Stream(id=0, schedule=schedule_of(geometry), peer=1)]],
        peers=[1],
        make_slots=lambda device: slots if device == "cpu" else pytest.fail(device),
        device=CPU,
        timeout=5.0,
        files=FileContext("page-cache", tmp_path, "run-p000", identity={"run": "abc"}),
    )


def test_every_destination_has_a_connector_of_its_own() -> None:
    kinds = {type(transport_.connector(rank_of())) for transport_ in list_builtin_transports()}
    assert len(kinds) == len(list_builtin_transports())


def test_local_destinations_are_opened(context: SourceContext, tmp_path: Path) -> None:
    host = find_transport("host").connector(rank_of())
    assert isinstance(host.open_source(context), HostDestination)
    connector = find_transport("disk").connector(rank_of())
    opened = connector.open_source(context)
    assert isinstance(opened, DiskDestination)
    ((stream,),) = context.streams
    opened.begin(stream)
    opened.close()
    assert connector.stored_nbytes(stream) > stream.schedule.nbytes
    assert find_transport("host").connector(rank_of()).stored_nbytes(stream) == 0


def test_every_destination_between_ranks_has_a_communicator_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_memory, "read_bus_id", lambda device: "0000:1b:00.0")
    rank: Any = rank_of()
    connectors: list[Any] = [
        transport_.connector(rank)
        for transport_ in list_builtin_transports()
        if transport_.entry.remote
    ]
    for connector in connectors:
        connector.find_peers()
    assert [connector.comm for connector in connectors] == rank.world.duplicates
    assert len(rank.world.duplicates) == 4


def test_nixl_registers_slots_and_caches(
    context: SourceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: dict[str, tuple[Any, ...]] = {}
    from dejavubench.dejavulib.destinations import nixl

    monkeypatch.setattr(nixl, "NIXLDestination", lambda *arguments: opened.update(source=arguments))
    monkeypatch.setattr(nixl, "NIXLSinkEndpoint", lambda *arguments: opened.update(sink=arguments))
    connector: Any = find_transport("nixl").connector(rank_of())
    connector.find_peers()
    connector.open_source(context)
    comm, peers, memory = opened["source"]
    assert (comm, peers) == (connector.comm, [1])
    registered_memory = [
        id(slot) for slot in (*context.make_slots("cpu"), context.caches[0].k, context.caches[0].v)
    ]
    assert [id(slot) for slot in memory] == registered_memory
    (cache,), ((stream,),) = context.caches, context.streams
    slots = [[torch.zeros(8)], [torch.zeros(8)]]
    streams = [(cache, stream), (cache, replace(stream, id=1))]
    connector.open_sink(SinkContext(streams, [0], lambda: slots, CPU, timeout=30.0))
    comm, peers, memory, in_place_streams = opened["sink"]
    assert (comm, peers, in_place_streams) == (connector.comm, [0], streams)
    assert len(memory) == 4  # of the one cache K and V once, and two slots


def test_a_source_meets_the_tcp_sink_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    from dejavubench.transports.loops import tcp_peer

    fake_peer = SimpleNamespace(find=lambda peer, timeout, checksums: (peer, timeout, checksums))
    monkeypatch.setattr(tcp_peer, "TCPPeer", fake_peer)
    options: dict[str, Any] = {"peer": ("a:1", "b:2"), "drain_timeout": 5.0, "tcp_checksums": True}
    for worker, peer in enumerate(("a:1", "b:2", "a:1")):
        connector: Any = find_transport("tcp").connector(rank_of(worker=worker, **options))
        connector.find_peers()
        assert connector.peer == (peer, 5.0, True)
    connector = find_transport("tcp").connector(rank_of(is_source=False, **options))
    connector.find_peers()
    assert connector.peer is None
    assert connector.facts() == {}


def test_a_tcp_sink_is_asked_for_the_room_of_its_probes_too() -> None:
    connector: Any = find_transport("tcp").connector(rank_of())
    dtypes: list[torch.dtype] = []

    def refusal(streams: list[Stream], dtype: torch.dtype, reservations: ExitStack) -> str | None:
        dtypes.append(dtype)
        return "streaming tcp: no room" if len(dtypes) == 2 else None

    connector.peer = SimpleNamespace(refusal=refusal)
    point = PointContext(pairs=[], streams=[], dtype=torch.bfloat16, probes=True)
    with ExitStack() as reservations:
        assert connector.refusal(point, reservations) == "streaming tcp: no room"
        assert dtypes == [torch.bfloat16, torch.float32, torch.float32]  # all at the same time
        assert connector.refusal(replace(point, probes=False), reservations) is None
        assert len(dtypes) == 4


def test_without_a_token_no_tcp_sink_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    options: dict[str, Any] = {
        "peer": ("127.0.0.1:1",),
        "drain_timeout": 5.0,
        "tcp_checksums": False,
    }
    with pytest.raises(UsageError, match=TOKEN_VARIABLE):
        find_transport("tcp").connector(rank_of(**options)).find_peers()


def test_nobody_waits_at_a_point_that_no_destination_can_refuse() -> None:
    schedule: Any = SimpleNamespace(points=[SimpleNamespace(id="p000")])
    connectors = {
        name: find_transport(name).connector(rank_of()) for name in ("host", "disk", "mpi")
    }
    no_ranks: Any = SimpleNamespace()  # to ask them for anything would fail
    assert find_refused_points(schedule, no_ranks, connectors) == {}
    with pytest.raises(AttributeError):
        find_refused_points(schedule, no_ranks, {"tcp": find_transport("tcp").connector(rank_of())})


def test_room_on_the_disk_is_summed_over_what_each_destination_writes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def arm(name: str, durability: str | None) -> SimpleNamespace:
        destination = SimpleNamespace(name=name)
        return SimpleNamespace(
            destination_key=(name, durability), transport=destination, durability=durability
        )

    arms = [arm("disk", "direct"), arm("disk", "direct"), arm("disk", "fdatasync"), arm("tape", "")]
    nbytes = {"host": 0, "disk": 10, "tape": 1}
    connectors: Any = {
        name: SimpleNamespace(stored_nbytes=lambda _, size=size: size)
        for name, size in nbytes.items()
    }
    transports = {name: SimpleNamespace(probe_nbytes=100 * size) for name, size in nbytes.items()}
    schedule: Any = SimpleNamespace(experiment=None, disk_arms=arms, transports=transports)
    two_microbatches = SimpleNamespace(local_streams=lambda: [["stream"], ["stream"]])
    monkeypatch.setattr(skips, "make_worker_view", lambda *_: two_microbatches)
    ranks: Any = SimpleNamespace(topology=None)
    point: Any = SimpleNamespace()
    assert skips.count_stored_nbytes(schedule, point, ranks, connectors) == 2 * (10 + 10 + 1)
    assert skips.count_probe_nbytes(schedule) == 1000 + 1000 + 100
