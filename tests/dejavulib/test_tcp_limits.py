"""Limits of a ``tcp`` sink: peers that wait, memory that sources take, hosts without IPv6."""

from __future__ import annotations

import errno
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import product
from typing import Any, cast

import numpy as np
import pytest
import torch

from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.destinations.tcp import (
    TCPDestination,
    extent_views,
    sink,
    unauthenticated_peers,
)
from dejavubench.dejavulib.destinations.tcp.connection import Service
from dejavubench.dejavulib.destinations.tcp.handshake import Address, format_address
from dejavubench.dejavulib.destinations.tcp.offer import CONNECTION_NBYTES, TCPOffer
from dejavubench.dejavulib.destinations.tcp.sink import TCPSinkServer
from dejavubench.dejavulib.destinations.tcp.sink_stream import RefusalError, SinkStream
from dejavubench.dejavulib.destinations.tcp.unauthenticated_peers import (
    MOST_PER_ADDRESS,
    MOST_UNAUTHENTICATED,
    YOUNG_S,
    UnauthenticatedPeers,
)
from dejavubench.dejavulib.destinations.tcp.wire import RefusedError, Wire
from dejavubench.dejavulib.extents import ExtentViews
from dejavubench.dejavulib.kv_cache import KVGeometry, KVLayout, Region, Span
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.schedule import StreamSchedule
from dejavubench.transports.contexts import OutsideWrite
from dejavubench.transports.loops import tcp_services
from dejavubench.transports.loops.tcp_services import SERVICES, find_write_outside
from helpers.caches import packed_stream, random_cache
from helpers.fake_destination import (
    CUT_LAYERS,
    WHOLE_LAYERS,
    filled_cache,
    make_small_stream,
    schedule_of,
    small_geometry,
)
from helpers.tcp_peers import TOKEN, bare_connection, has_closed
from helpers.waits import until

LIMIT = 64 << 20
PATIENCE = 20.0


@contextmanager
def serving(
    address: Address = ("127.0.0.1", 0),
    limit: int = LIMIT,
    timeout: float = PATIENCE,
    services: Mapping[int, Service] = SERVICES,
    prove_within: float = unauthenticated_peers.PROVE_WITHIN_S,
    most_peers: int = sink.MOST_PEERS,
) -> Iterator[tuple[TCPSinkServer, list[str]]]:
    """Serve a sink in a thread of this process; yield it and the lines that it logs."""
    messages: list[str] = []
    server = TCPSinkServer(
        address, TOKEN.encode(), limit, timeout, messages.append, services, prove_within, most_peers
    )
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server, messages
    finally:
        server.stop()
        thread.join(PATIENCE)
        server.close()


def connect_to(server: TCPSinkServer, stream: Stream) -> TCPDestination:
    return TCPDestination(server.address, TOKEN.encode(), [stream], torch.int16, PATIENCE)


# ---- peers that wait ----


class FakeWire:
    """A wire that notes that it was dropped."""

    dropped = False

    def shutdown(self) -> None:
        self.dropped = True


class ClockedPeers:
    """The places of unauthenticated peers, with a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.places = UnauthenticatedPeers(clock=lambda: self.now)

    def connect(self, address: str, count: int = 1) -> list[FakeWire]:
        """Connect some peers, for each of which there is room at once."""
        wires = [FakeWire() for _ in range(count)]
        for wire in wires:
            assert self.places.make_room(address) == 0
            self.places.enter(cast(Wire, wire), address)
        return wires


def test_unauthenticated_peers_of_one_address_make_room_for_others_of_it() -> None:
    peers = ClockedPeers()
    idle_wires = peers.connect("a", MOST_PER_ADDRESS)
    peers.now += YOUNG_S
    new_wires = peers.connect("a", 3)
    assert [wire.dropped for wire in idle_wires] == [True] * 3 + [False] * (MOST_PER_ADDRESS - 3)
    assert not any(wire.dropped for wire in new_wires)
    were_dropped = [
        peers.places.leave(cast(Wire, wire))
        for wire in (idle_wires[0], idle_wires[5], new_wires[0])
    ]
    assert were_dropped == [True, False, False]


def test_many_peers_that_connect_at_once_are_all_kept() -> None:
    peers = ClockedPeers()
    assert not any(wire.dropped for wire in peers.connect("a large host", MOST_UNAUTHENTICATED))
    assert 0 < peers.places.make_room("b") < YOUNG_S  # the next one waits for a moment


def test_the_address_with_most_makes_room_for_all() -> None:
    peers = ClockedPeers()
    wires_of_a, wires_of_b = peers.connect("a", 2), peers.connect("b", MOST_UNAUTHENTICATED - 2)
    peers.now += YOUNG_S
    peers.connect("c", 5)
    assert not any(wire.dropped for wire in wires_of_a)
    assert [wire.dropped for wire in wires_of_b[:6]] == [True] * 5 + [False]


def test_good_peers_connect_among_idle_unauthenticated_ones() -> None:
    """Twice as many silent peers as there are places connect first, and others in between."""
    with serving() as (server, _), ExitStack() as connections:
        for _ in range(2 * MOST_UNAUTHENTICATED):
            connections.enter_context(bare_connection(server.address))
        good_peers = []
        for _ in range(40):
            connections.enter_context(bare_connection(server.address))
            good_peers.append(connect_to(server, make_small_stream()))
            good_peers[-1].begin(make_small_stream())
        for destination in good_peers:
            destination.close()


def test_a_silent_unauthenticated_peer_has_2_s_whatever_the_timeout() -> None:
    assert unauthenticated_peers.PROVE_WITHIN_S == 2.0
    with serving(timeout=1000.0, prove_within=0.2) as (server, messages):
        with bare_connection(server.address) as silent:
            assert has_closed(silent)
        until(lambda: any("has been silent for 0.2 s" in line for line in messages), "the refusal")


def test_an_authenticated_peer_may_be_silent_for_longer_than_another() -> None:
    with serving(timeout=1000.0, prove_within=0.5) as (server, _):
        authenticated = connect_to(server, make_small_stream())
        with bare_connection(server.address) as later:
            assert has_closed(later)
        authenticated.begin(make_small_stream())
        authenticated.request(make_small_stream(), tcp_services.FILL, 0x21)
        authenticated.close()


def test_authenticated_peers_have_places_of_their_own() -> None:
    with serving(most_peers=2) as (server, _), ExitStack() as connections:
        for _ in range(5):
            connections.enter_context(bare_connection(server.address))
        authenticated_peers = [connect_to(server, make_small_stream()) for _ in range(2)]
        with pytest.raises(RefusedError, match="2 peers are connected"):
            connect_to(server, make_small_stream())
        authenticated_peers.pop().close()
        authenticated_peers.append(connect_to(server, make_small_stream()))
        for destination in authenticated_peers:
            destination.close()


class ListenerWithoutFiles:
    """A listening socket whose third ``accept`` finds that the process has no descriptor left."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._accepts = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self._accepts += 1
        if self._accepts == 3:
            raise OSError(errno.EMFILE, "Too many open files")
        return self._listener.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)


def test_an_unauthenticated_peer_makes_room_when_descriptors_run_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create = socket.create_server

    def without_files(*arguments: Any, **options: Any) -> ListenerWithoutFiles:
        return ListenerWithoutFiles(create(*arguments, **options))

    monkeypatch.setattr(socket, "create_server", without_files)
    with serving() as (server, messages):
        with bare_connection(server.address) as oldest, bare_connection(server.address):
            assert has_closed(oldest)
            connect_to(server, make_small_stream()).close()
        assert "cannot take a connection: Too many open files" in messages


# ---- services ----


def test_a_sink_answers_no_service_that_its_owner_has_not_added() -> None:
    with serving(services={}) as (server, messages):
        destination = connect_to(server, make_small_stream())
        destination.begin(make_small_stream())
        with pytest.raises(RefusedError, match=f"frames of kind {tcp_services.FILL}"):
            destination.request(make_small_stream(), tcp_services.FILL, 0x21)
        destination.give_up()
        destination.close()
        until(lambda: any(f"kind {tcp_services.FILL}" in line for line in messages), "the refusal")


def test_a_service_cannot_take_the_place_of_the_protocols_own_frames() -> None:
    with pytest.raises(ValueError, match="the protocol's own"), serving(services={4: SERVICES[64]}):
        pass


# ---- memory ----


def measure_peak_nbytes(act: Callable[[], object]) -> int:
    """Return the most bytes of Python objects that an action takes."""
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


MANY_POSITIONS = 10**6


def test_reading_an_extent_takes_no_memory_for_its_neighbours() -> None:
    geometry = KVGeometry(
        layers=1, requests=1, heads=MANY_POSITIONS, positions=2, head_size=1, itemsize=2
    )
    on_sink = SinkStream(
        0,
        StreamSchedule(geometry, geometry.whole, input_len=1, steps=0, slot_nbytes=1 << 24),
        torch.int16,
    )
    on_sink.begin(1)
    assert measure_peak_nbytes(lambda: on_sink.extent(chunk_number=0, nbytes=2)) < 1 << 20


@pytest.mark.parametrize("positions", [4000, 400])
def test_lists_of_chunks_are_announced_before_they_are_made(positions: int) -> None:
    """Cut into the smallest chunks that there can be, at each way of cutting and as extents."""
    geometry = KVGeometry(
        layers=1, requests=2, heads=1, positions=positions, head_size=1, itemsize=2
    )
    schedule = StreamSchedule(geometry, geometry.whole, input_len=positions, steps=0, slot_nbytes=4)
    on_sink = SinkStream(0, schedule, torch.int16)

    def every_way() -> None:
        on_sink.begin(1)
        on_sink.chunk(chunk_number=0, nbytes=4)
        with pytest.raises(RefusalError):
            on_sink.chunk(chunk_number=0, nbytes=5)
        on_sink.extent(chunk_number=0, nbytes=2)

    objects = (
        TCPOffer.for_streams([Stream(id=0, schedule=schedule)], torch.int16).nbytes
        - geometry.nbytes
        - CONNECTION_NBYTES
    )
    assert measure_peak_nbytes(every_way) < objects


def test_an_offer_of_many_chunks_is_refused_by_its_memory() -> None:
    geometry = KVGeometry(
        layers=1, requests=1, heads=1, positions=MANY_POSITIONS, head_size=1, itemsize=2
    )
    stream = Stream(
        id=0,
        schedule=StreamSchedule(
            geometry, geometry.whole, input_len=MANY_POSITIONS, steps=0, slot_nbytes=16
        ),
    )
    reason = r"needs \d\.\d\d GiB, but only 0\.06 GiB of the 0\.06 GiB limit"
    with serving() as (server, _), pytest.raises(RefusedError, match=reason):
        connect_to(server, stream)


def test_a_text_is_read_only_if_there_is_room_for_what_it_becomes() -> None:
    streams = [Stream(number, make_small_stream().schedule) for number in range(500)]
    enough_for_one = TCPOffer.for_streams([make_small_stream()], torch.int16).nbytes
    with serving(limit=enough_for_one) as (server, _):
        with pytest.raises(RefusedError, match=r"GiB of the 0\.00 GiB limit"):
            TCPDestination(server.address, TOKEN.encode(), streams, torch.int16, PATIENCE)
        connect_to(server, make_small_stream()).close()  # nothing is taken of the memory any more


# ---- without lists, the same places ----


@pytest.mark.parametrize("layout", list(KVLayout))
@pytest.mark.parametrize("slot", [WHOLE_LAYERS, CUT_LAYERS])
def test_offsets_equal_the_librarys_extents(layout: KVLayout, slot: int) -> None:
    geometry = small_geometry(layout)
    cache = random_cache(geometry, 3)
    schedule = schedule_of(geometry, slot, replace(geometry.whole, heads=Span(1, 2)))
    for step in range(schedule.steps + 1):
        atoms = iter(schedule.atoms(step))
        contents = [bytes(place) for place in extent_views.walk_extents(cache, atoms, at_once=5)]
        assert contents == [bytes(view) for view in ExtentViews(cache, schedule).of_step(step)]


@pytest.mark.parametrize("layout", list(KVLayout))
def test_fetched_chunks_are_packed_in_the_streams_order(layout: KVLayout) -> None:
    geometry = small_geometry(layout)
    on_sink = SinkStream(0, schedule_of(geometry, WHOLE_LAYERS), torch.int16)
    on_sink.cache = random_cache(geometry, 5)
    into = torch.empty(WHOLE_LAYERS, dtype=torch.uint8)
    chunks = on_sink.schedule.all_chunks(LEVELS["3"])
    packed = b"".join(bytes(on_sink.pack(chunk.region, into).numpy()) for chunk in chunks)
    assert packed == packed_stream(on_sink.cache, on_sink.schedule)


@pytest.mark.parametrize(("layout", "compared"), list(product(KVLayout, [1, 7, 64, 1 << 17])))
def test_writes_outside_the_region_are_found_block_by_block(
    layout: KVLayout, compared: int
) -> None:
    geometry = small_geometry(layout)
    part = Region(Span(1, 3), Span(0, 1), Span(1, 2), Span(0, 0))
    region = schedule_of(geometry, WHOLE_LAYERS, part).region
    cache = filled_cache(geometry, 0x31)
    cache.piece("k", region).fill_(0)
    cache.piece("v", region).fill_(0)
    assert find_write_outside(cache, region, 0x31, compared) is None
    rng = np.random.default_rng(7)
    flat = cache.v.view(-1)
    outside = filled_cache(geometry, 0)
    outside.piece("v", region).fill_(1)
    marks = outside.v.view(-1)
    candidates = (marks == marks[-1]).nonzero().flatten().numpy()
    written = np.sort(rng.choice(candidates, 5, replace=False))
    flat[torch.from_numpy(written)] = 0
    layer = flat.numel() // geometry.layers
    in_first = int((written // layer == written[0] // layer).sum())
    assert find_write_outside(cache, region, 0x31, compared) == OutsideWrite(
        "v", int(written[0]), in_first
    )


# ---- addresses ----


def test_a_sink_listens_on_ipv4_if_the_host_has_no_ipv6(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream, create = socket.SOCK_STREAM, socket.create_server
    resolved = [
        (socket.AF_INET6, stream, 6, "", ("::1", 0, 0, 0)),
        (socket.AF_INET, stream, 6, "", ("127.0.0.1", 0)),
    ]

    def without_ipv6(address: Address, *, family: int, backlog: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return create(address, family=family, backlog=backlog)

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: resolved)
    monkeypatch.setattr(socket, "create_server", without_ipv6)
    server = TCPSinkServer(("localhost", 0), TOKEN.encode(), LIMIT, PATIENCE, print)
    assert server.address[0] == "127.0.0.1"
    server.close()
    resolved.pop()
    with pytest.raises(OSError, match="Address family not supported"):
        TCPSinkServer(("localhost", 0), TOKEN.encode(), LIMIT, PATIENCE, print)


def test_addresses_are_written_as_they_are_given() -> None:
    assert format_address(("127.0.0.1", 7601)) == "127.0.0.1:7601"
    assert format_address(("::1", 7601)) == "[::1]:7601"


def test_a_sink_listens_on_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error.strerror}")
    with serving(("::1", 0)) as (server, messages):
        destination = connect_to(server, make_small_stream())
        assert destination.wire.peer == format_address(server.address)
        destination.close()
        until(lambda: any(line.startswith("accepted [::1]:") for line in messages), "the peer")
