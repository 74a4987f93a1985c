"""``tcp``: a source and a sink with nothing but a socket between them, good ones and bad ones."""

from __future__ import annotations

import json
import re
import signal
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dejavubench.dejavulib.destinations.base import Stream, StreamingError
from dejavubench.dejavulib.destinations.tcp import handshake
from dejavubench.dejavulib.destinations.tcp.handshake import connect
from dejavubench.dejavulib.destinations.tcp.offer import TCPOffer, make_schedules, read_offer
from dejavubench.dejavulib.destinations.tcp.sink_stream import DIRECT_ROW_NBYTES
from dejavubench.dejavulib.destinations.tcp.wire import (
    MOST_TEXT_NBYTES,
    Frame,
    FrameKind,
    RefusedError,
    Wire,
    WireError,
)
from dejavubench.dejavulib.kv_cache import KVGeometry, KVLayout, Span
from dejavubench.dejavulib.levels import LEVELS, Level
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.packing import gather
from dejavubench.dejavulib.schedule import StreamSchedule
from dejavubench.transports.loops.tcp_services import (
    COMPARE,
    FILL,
    RAW,
    MeasuredTCPDestination,
    find_write_outside,
)
from helpers.caches import packed_stream, play_model, random_cache
from helpers.fake_destination import (
    CUT_LAYERS,
    INPUT_LEN,
    PATIENCE,
    WHOLE_LAYERS,
    begin_over,
    filled_cache,
    make_small_stream,
    play_and_drain,
    schedule_of,
    small_geometry,
    stored_bytes,
)
from helpers.fake_destination import streaming as streaming_to
from helpers.jobs import GONE_WITHIN
from helpers.tcp_peers import (
    TOKEN,
    SinkProcess,
    bare_connection,
    has_closed,
    name_of,
    shared_sink,
)

HEAD = "<IIIIQQ"
"""A frame's head, written by hand."""

SMALL = small_geometry()
LARGE = KVGeometry(layers=2, requests=2, heads=2, positions=160, head_size=64, itemsize=2)
"""Its prompt's extents are long enough to be received straight into the cache."""


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SinkProcess]:
    with shared_sink(tmp_path_factory.mktemp("sink")) as process:
        yield process


def make_large_stream() -> Stream:
    return Stream(
        id=0,
        schedule=StreamSchedule(LARGE, LARGE.whole, input_len=150, steps=3, slot_nbytes=1 << 20),
    )


def stream_once(
    destination: MeasuredTCPDestination,
    stream: Stream,
    level: Level,
    seed: int,
    slot: int = WHOLE_LAYERS,
) -> None:
    """Stream a microbatch of random bits, and compare it with the sink's cache."""
    geometry = stream.schedule.geometry
    source, cache = random_cache(geometry, seed), filled_cache(geometry, 0)
    with streaming_to(destination, slot) as streamer:
        manager = CacheManager(cache, [stream], level, streamer, PATIENCE)
        begin_over(manager, streamer, 0x21 + seed)
        play_model(source, cache, stream.schedule, manager)
        manager.drain()
        assert stored_bytes(destination, stream) == packed_stream(source, stream.schedule)
        assert destination.find_outside_write(stream, 0x21 + seed) is None


# ---- the bytes ----


@pytest.mark.parametrize("slot", [WHOLE_LAYERS, CUT_LAYERS])
@pytest.mark.parametrize("layout", list(KVLayout))
def test_every_byte_arrives_over_tcp_at_every_level(
    sink: SinkProcess, layout: KVLayout, slot: int
) -> None:
    """On one connection, level after level, two microbatches each."""
    stream = make_small_stream(layout, slot)
    geometry = stream.schedule.geometry
    cache = filled_cache(geometry, 0)
    with streaming_to(
        destination := sink.connect(stream, checksums=slot == WHOLE_LAYERS), slot
    ) as streamer:
        for level in LEVELS.values():
            manager = CacheManager(cache, [stream], level, streamer, PATIENCE)
            for microbatch in range(2):
                source = random_cache(geometry, microbatch)
                cache.fill(0x11 + microbatch)
                begin_over(manager, streamer, 0x21 + microbatch)
                play_model(source, cache, stream.schedule, manager)
                manager.drain()
                assert stored_bytes(destination, stream) == packed_stream(source, stream.schedule)
                assert destination.find_outside_write(stream, 0x21 + microbatch) is None
                assert manager.lag_nbytes == 0
    assert destination.wire.same_host


def test_long_extents_are_received_in_their_place(sink: SinkProcess) -> None:
    stream = make_large_stream()
    prompt = next(stream.schedule.all_chunks(LEVELS["3"]))
    assert stream.schedule.geometry.rows("k", prompt.region).nbytes >= DIRECT_ROW_NBYTES
    stream_once(sink.connect(stream), stream, LEVELS["3"], 5, 1 << 20)


def test_parts_of_caches_arrive_by_several_streams_of_one_connection(sink: SinkProcess) -> None:
    """Streams of one connection have a cache each; what is not streamed stays the pattern."""
    part = replace(SMALL.whole, layers=Span(1, 3), heads=Span(1, 2))
    streams = [
        Stream(id=7, schedule=schedule_of(SMALL, region=part)),
        Stream(id=3, schedule=schedule_of(SMALL)),
    ]
    sources = [random_cache(SMALL, seed) for seed in (1, 2)]
    with streaming_to(destination := sink.connect(*streams)) as streamer:
        managers = [
            CacheManager(source, [stream], LEVELS["3"], streamer, PATIENCE)
            for source, stream in zip(sources, streams, strict=True)
        ]
        for manager in managers:
            begin_over(manager, streamer, 0x31)
        for source, stream, manager in zip(sources, streams, managers, strict=True):
            play_model(source, source, stream.schedule, manager)
        for source, stream, manager in zip(sources, streams, managers, strict=True):
            manager.drain()
            assert stored_bytes(destination, stream) == packed_stream(source, stream.schedule)
            assert destination.find_outside_write(stream, 0x31) is None


def test_a_write_outside_the_region_is_located() -> None:
    part = replace(SMALL.whole, heads=Span(1, 2))
    cache = filled_cache(SMALL, 0x31)
    cache.piece("v", part).fill_(0)
    assert find_write_outside(cache, part, 0x31) is None
    cache.v[1, 1, 0, 2, 5] = 0
    cache.v[1, 1, 0, 3, 0] = 0
    outside_write = find_write_outside(cache, part, 0x31)
    assert outside_write is not None
    assert (outside_write.kv, SMALL.locate("v", outside_write.flat), outside_write.elements) == (
        "v",
        (1, 1, 0, 2, 5),
        2,
    )


# ---- bad peers ----


def test_a_good_source_loses_nothing_among_bad_ones(sink: SinkProcess) -> None:
    """Each bad peer is dropped, with the reason, while a good one goes on streaming."""
    stop = threading.Event()
    failures: list[BaseException] = []
    rounds: list[str] = []

    def stream_on() -> None:
        try:
            while not stop.is_set():
                for level in ("0", "1", "3"):
                    stream_once(
                        sink.connect(stream := make_small_stream()),
                        stream,
                        LEVELS[level],
                        len(rounds) % 7,
                    )
                    rounds.append(level)
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)

    good_source = threading.Thread(target=stream_on)
    good_source.start()
    try:
        for act_badly in (
            send_garbage,
            stay_silent,
            send_slowly,
            send_wrong_token,
            send_no_token,
            send_other_version,
            stay_silent_after_the_token,
        ):
            act_badly(sink)
    finally:
        stop.set()
        good_source.join(PATIENCE)
    assert not failures, failures
    assert len(rounds) >= 3


def send_garbage(sink: SinkProcess) -> None:
    with bare_connection(sink.address) as peer:
        peer.sendall(b"GET / HTTP/1.1\r\nHost: sink\r\n\r\n" + b"\n" * 64)
        assert has_closed(peer)
        sink.wait_for_line(rf"refused {name_of(peer)}: \S+ does not speak this protocol")


def stay_silent(sink: SinkProcess) -> None:
    with bare_connection(sink.address) as peer:
        assert has_closed(peer)
        sink.wait_for_line(rf"refused {name_of(peer)}: \S+ has been silent for 1 s")


def send_slowly(sink: SinkProcess) -> None:
    with bare_connection(sink.address) as peer:
        pause = threading.Event()
        try:
            for byte in handshake._HELLO.pack(handshake._MAGIC, handshake.VERSION, bytes(32)):
                peer.sendall(bytes([byte]))
                pause.wait(0.1)
        except OSError:  # the sink has had enough
            pass
        assert has_closed(peer)
        sink.wait_for_line(
            rf"refused {name_of(peer)}: \S+ is too slow: "
            rf"\d+ of {handshake._HELLO.size} bytes came in time"
        )


def send_wrong_token(sink: SinkProcess) -> None:
    with pytest.raises(WireError, match="does not accept this token"):
        sink.connect(make_small_stream(), token="another")
    sink.wait_for_line(r"refused \S+: \S+ does not know the token")


def send_no_token(sink: SinkProcess) -> None:
    with bare_connection(sink.address) as peer:
        peer.sendall(
            handshake._HELLO.pack(handshake._MAGIC, handshake.VERSION, bytes(32)) + bytes(32)
        )
        assert has_closed(peer)
        sink.wait_for_line(rf"refused {name_of(peer)}: \S+ does not know the token")


def send_other_version(sink: SinkProcess) -> None:
    with bare_connection(sink.address) as peer:
        peer.sendall(handshake._HELLO.pack(handshake._MAGIC, 99, bytes(32)))
        assert has_closed(peer)
        sink.wait_for_line(
            rf"refused {name_of(peer)}: \S+ speaks version 99 of the protocol, "
            rf"this side {handshake.VERSION}"
        )


def stay_silent_after_the_token(sink: SinkProcess) -> None:
    wire = connect_with_token(sink)
    name = name_of(wire.socket)
    assert has_closed(wire.socket)
    wire.close()
    sink.wait_for_line(rf"refused {name}: \S+ has been silent for 1 s")


def connect_with_token(sink: SinkProcess) -> Wire:
    """Connect a bad peer that knows the token."""
    return connect(sink.address, TOKEN.encode(), PATIENCE)


def refusal_of_offer(wire: Wire, text: str) -> str:
    """Return the sink's refusal of an offer."""
    wire.send_frame(Frame(FrameKind.OFFER, nbytes=len(text)), text.encode())
    with pytest.raises(RefusedError) as refusal:
        wire.receive_reply()
    wire.close()
    return str(refusal.value)


def make_offer_text(**changes: object) -> str:
    """Return the small stream's offer with some of its geometry changed."""
    offer = TCPOffer.for_streams([make_small_stream()], torch.int16).model_dump(mode="json")
    for key, value in changes.items():
        of_stream = isinstance(value, list) or key in ("input_len", "slot_nbytes", "more")
        (offer["streams"][0] if of_stream else offer if key == "dtype" else offer["geometry"])[
            key
        ] = value
    return json.dumps(offer)


def test_an_offer_is_the_same_at_both_ends() -> None:
    streams = [make_small_stream(KVLayout.FT, CUT_LAYERS)]
    text = TCPOffer.for_streams(streams, torch.int16).model_dump_json()
    offered = make_schedules(read_offer(text))
    assert {0: vars(streams[0].schedule)} == {
        number: vars(schedule) for number, schedule in offered.items()
    }


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"positions": 1 << 31}, "of the 0.10 GiB limit"),
        ({"slot_nbytes": 1 << 30}, "needs 1.00 GiB"),
        ({"layers": [0, 4]}, "is not inside a cache"),
        ({"heads": [1, 1]}, "is empty"),
        ({"requests": [2, 1]}, "not an interval"),
        ({"input_len": 9}, "is not inside a cache"),
        ({"slot_nbytes": 1}, "does not hold one position"),
        ({"layers": 0}, "geometry.layers"),
        ({"heads": [0, 1, 2]}, "streams.0.heads"),
        ({"head_size": 1.5}, "geometry.head_size"),
        ({"layout": "xyz"}, "geometry.layout"),
        ({"dtype": "float32"}, "float32 does not have 2 bytes per element"),
        ({"dtype": "__class__"}, "offer: dtype"),
    ],
    ids=str,
)
def test_an_offer_that_cannot_be_is_refused_before_anything_is_made(
    sink: SinkProcess, changes: dict[str, object], reason: str
) -> None:
    assert reason in refusal_of_offer(connect_with_token(sink), make_offer_text(**changes))


def test_a_text_that_is_no_offer_is_refused(sink: SinkProcess) -> None:
    assert "offer" in refusal_of_offer(connect_with_token(sink), '{"geometry": ')
    assert "extra" in refusal_of_offer(connect_with_token(sink), make_offer_text(more=1)).lower()
    wire = connect_with_token(sink)
    # The sink allocates nothing for a size that it refuses.
    wire.send(struct.pack(HEAD, FrameKind.OFFER, 0, 0, 0, 1 << 40, 0))
    assert has_closed(wire.socket)
    wire.close()
    sink.wait_for_line(rf"announces a text of {1 << 40} bytes; {MOST_TEXT_NBYTES} are allowed")


# ---- what goes wrong on the way ----


def begin_stream(sink: SinkProcess, stream: Stream) -> MeasuredTCPDestination:
    destination = sink.connect(stream)
    destination.begin(stream)
    return destination


def refusal_of_frames(sink: SinkProcess, stream: Stream, *frames: tuple[Frame, bytes]) -> str:
    """Return the sink's refusal of some frames of a source that has begun."""
    destination = begin_stream(sink, stream)
    for frame, payload in frames:
        destination.wire.send_frame(frame, payload)
    with pytest.raises(RefusedError) as refusal:
        read_until_refused(destination)
    destination.give_up()
    destination.close()
    return str(refusal.value)


def read_until_refused(destination: MeasuredTCPDestination) -> None:
    """Read the sink's replies until one of them is a refusal, which is raised."""
    while True:
        reply = destination.wire.receive_reply()
        destination.wire.receive_payload(reply, [memoryview(bytearray(reply.nbytes))])


FIRST = next(make_small_stream().schedule.all_chunks(LEVELS["3"]))
PACKED = bytes(FIRST.nbytes)
FIRST_FRAME = Frame(FrameKind.CHUNK, stream_id=0, microbatch=1, number=0, nbytes=FIRST.nbytes)
PART_OF_NO_CHUNK = struct.pack("<8I", 0, 4, 0, 1, 0, 1, 0, 1)
WRONG_FRAMES: Mapping[str, tuple[str, list[tuple[Frame, bytes]]]] = {
    "second chunk first": ("is not the next one", [(FIRST_FRAME._replace(number=1), PACKED)]),
    "chunk twice": ("is not the next one", [(FIRST_FRAME, PACKED), (FIRST_FRAME, PACKED)]),
    "shorter chunk": (
        "is not the next one",
        [(FIRST_FRAME._replace(nbytes=FIRST.nbytes - 2), PACKED[2:])],
    ),
    "another microbatch": (
        "at microbatch 1, not 2",
        [(FIRST_FRAME._replace(microbatch=2), PACKED)],
    ),
    "unknown stream": ("for stream 9", [(FIRST_FRAME._replace(stream_id=9), PACKED)]),
    "unknown kind": ("kind 77", [(Frame(77, stream_id=0, microbatch=1), b"")]),
    "short extent": (
        "an extent of 3 bytes",
        [(FIRST_FRAME._replace(kind=FrameKind.EXTENT, nbytes=3), b"abc")],
    ),
    "begin with bytes": (
        "BEGIN carries 3 bytes",
        [(FIRST_FRAME._replace(kind=FrameKind.BEGIN, microbatch=2, nbytes=3), b"abc")],
    ),
    "region outside": (
        "not a part of",
        [
            (
                FIRST_FRAME._replace(kind=FrameKind.READ, nbytes=len(PART_OF_NO_CHUNK)),
                PART_OF_NO_CHUNK,
            )
        ],
    ),
}
"""Frames that do not belong behind the BEGIN of microbatch 1 of stream 0, and why."""


@pytest.mark.parametrize("name", WRONG_FRAMES)
def test_frames_that_do_not_belong_here_are_refused(name: str, sink: SinkProcess) -> None:
    reason, frames = WRONG_FRAMES[name]
    assert reason in refusal_of_frames(sink, make_small_stream(), *frames)


@pytest.mark.parametrize("service", [FILL, COMPARE])
def test_a_service_that_fills_or_compares_needs_a_byte(service: int, sink: SinkProcess) -> None:
    frame = Frame(service, stream_id=0, microbatch=1, number=256)
    assert "no byte to fill with" in refusal_of_frames(sink, make_small_stream(), (frame, b""))


@pytest.mark.parametrize("service", [FILL, COMPARE, RAW])
def test_a_service_for_another_microbatch_or_with_bytes_is_refused(
    service: int, sink: SinkProcess
) -> None:
    stream, early_frame = make_small_stream(), Frame(service, stream_id=0, microbatch=0)
    assert "at microbatch 1, not 0" in refusal_of_frames(sink, stream, (early_frame, b""))
    refusal_of_frames(
        sink, stream, (Frame(service, stream_id=0, microbatch=1, number=1, nbytes=3), b"abc")
    )


@pytest.mark.parametrize("kind", ["staged", "direct", "extent"])
def test_a_flipped_byte_is_found_and_located(sink: SinkProcess, kind: str) -> None:
    stream = make_large_stream() if kind == "direct" else make_small_stream()
    destination = begin_stream(sink, stream)
    chunk = next(stream.schedule.all_chunks(LEVELS["0" if kind == "extent" else "3"]))
    nbytes = 32 if kind == "extent" else chunk.nbytes
    if kind == "extent":
        nbytes = INPUT_LEN * SMALL.head_size * SMALL.itemsize
    frame = Frame(
        FrameKind.EXTENT if kind == "extent" else FrameKind.CHUNK,
        stream_id=0,
        microbatch=1,
        number=0,
        nbytes=nbytes,
    )
    frame_parts: list[bytes] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            destination.wire, "send", lambda *parts: frame_parts.extend(map(bytes, parts))
        )
        destination.wire.send_frame(frame, memoryview(bytes(nbytes)))
    frame_parts[1] = frame_parts[1][: nbytes // 2] + b"\1" + frame_parts[1][nbytes // 2 + 1 :]
    destination.wire.send(*frame_parts)
    place = (
        "extent 0 of chunk 0 of stream 0" if kind == "extent" else "chunk 0 (step 0) of stream 0"
    )
    with pytest.raises(
        RefusedError, match=re.escape(f"{place}: its hash does not agree with its bytes")
    ) as refusal:
        read_until_refused(destination)
    if kind != "extent":
        layers, span = f"[0, {chunk.region.layers.stop})", f"[0, {stream.schedule.input_len})"
        assert f"layers {layers}, requests [0, 2), heads [0, 2), positions {span}" in str(
            refusal.value
        )
    destination.give_up()
    destination.close()
    sink.wait_for_line(rf"dropped \S+: {re.escape(place)}: its hash")


def test_a_connection_that_breaks_within_a_chunk_is_dropped_alone(sink: SinkProcess) -> None:
    """While another source's microbatch is under way on the same sink."""
    stream = make_small_stream()
    chunks = list(stream.schedule.all_chunks(LEVELS["3"]))
    source = random_cache(SMALL, 3)
    good_source = begin_stream(sink, stream)
    broken_source = begin_stream(sink, stream)
    name = name_of(broken_source.wire.socket)
    for chunk in chunks:
        packed = torch.empty(chunk.nbytes, dtype=torch.uint8)
        gather(source, chunk.region, packed)
        good_source.flush(stream, chunk, packed)
        if chunk.index == 1:
            broken_source.wire.send(
                struct.pack(HEAD, FrameKind.CHUNK, 0, 1, 0, chunks[0].nbytes, 0),
                bytes(chunks[0].nbytes // 2),
            )
            # SO_LINGER of 0 s: close() resets the connection.
            broken_source.wire.socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            broken_source.wire.close()
            sink.wait_for_line(rf"dropped {name}: ")
    deadline = threading.Event()
    while good_source.poll_completed(stream) < len(chunks):
        deadline.wait(0.01)
    assert stored_bytes(good_source, stream) == packed_stream(source, stream.schedule)
    good_source.close()


def test_a_source_that_stops_in_the_middle_of_a_chunk_is_dropped(sink: SinkProcess) -> None:
    stream = make_small_stream()
    silent_source = begin_stream(sink, stream)
    name = name_of(silent_source.wire.socket)
    size = next(stream.schedule.all_chunks(LEVELS["3"])).nbytes
    silent_source.wire.send(struct.pack(HEAD, FrameKind.CHUNK, 0, 1, 0, size, 0), bytes(size - 1))
    sink.wait_for_line(rf"dropped {name}: \S+ has been silent for 1 s")
    silent_source.give_up()
    silent_source.close()


def test_the_sink_frees_the_memory_of_a_source_that_has_left(sink: SinkProcess) -> None:
    """Each takes more than half of the limit; a second one beside it is refused, after it not."""
    # 64 MiB.
    geometry = KVGeometry(
        layers=1, requests=1, heads=1, positions=1 << 18, head_size=64, itemsize=2
    )
    stream = Stream(
        id=0,
        schedule=StreamSchedule(
            geometry, geometry.whole, input_len=1 << 10, steps=0, slot_nbytes=1 << 20
        ),
    )
    destination = sink.connect(stream)
    with pytest.raises(
        RefusedError, match=r"needs 0\.06 GiB, but only 0\.04 GiB of the 0\.10 GiB limit"
    ):
        sink.connect(stream)
    for _ in range(3):
        destination.close()
        destination = sink.connect(stream)
    destination.close()


# ---- a sink that goes ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGSTOP])
def test_a_sink_that_goes_ends_streaming(tmp_path: Path, number: signal.Signals) -> None:
    stream = make_small_stream()
    cache = random_cache(SMALL)
    with SinkProcess(tmp_path) as process:
        destination = process.connect(stream, timeout=2.0)
        with streaming_to(destination) as streamer:
            manager = CacheManager(cache, [stream], LEVELS["3"], streamer, 2.0)
            manager.begin()
            manager.layer_ready(0)
            process.process.send_signal(number)
            if number == signal.SIGTERM:
                assert process.process.wait(GONE_WITHIN) == 0
            with pytest.raises(
                StreamingError, match=r"127\.0\.0\.1|no chunk became complete within 2 s"
            ):
                play_and_drain(cache, stream, manager)
