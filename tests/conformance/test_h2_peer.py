"""The library h2 as the client of a connection in memory: it checks every frame that we send."""

from __future__ import annotations

import random

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from penstock.server.transport.grpc.fake import EchoMethods, GrpcWire, frames_of, message

FIELDS = [
    (":method", "POST"), (":scheme", "http"), (":path", "/t.T/Echo"), (":authority", "h"),
    ("content-type", "application/grpc"), ("te", "trailers"),
]  # fmt: skip


class Peer:
    """Both ends; ``data`` and ``trailers`` are what came back, by stream."""

    def __init__(self, echo: EchoMethods) -> None:
        self.wire = GrpcWire(echo.listener(), preface=False)
        config = h2.config.H2Configuration(client_side=True, header_encoding="ascii")
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.data: dict[int, bytearray] = {}
        self.trailers: dict[int, dict[str, str]] = {}
        self.ended: set[int] = set()
        self.exchange()

    def exchange(self, *, give_back: bool = True) -> list[h2.events.Event]:
        """Carries bytes in both directions until neither side has any."""
        happened: list[h2.events.Event] = []
        while True:
            self.wire.feed(self.h2.data_to_send())
            sent = bytes(self.wire.transport.sent)
            self.wire.transport.sent.clear()
            if not sent:
                return happened
            # One by one: h2 looks at its own settings once for all that it is given.
            for frame in frames_of(sent)[0]:
                for event in self.h2.receive_data(frame.packed()):
                    happened.append(event)
                    self.note(event, give_back)

    def note(self, event: h2.events.Event, give_back: bool) -> None:
        if isinstance(event, h2.events.DataReceived):
            stream = event.stream_id
            self.data.setdefault(stream, bytearray()).extend(event.data)
            if give_back:
                self.h2.acknowledge_received_data(event.flow_controlled_length, stream)
        elif isinstance(event, h2.events.TrailersReceived):
            self.trailers[event.stream_id] = dict(event.headers)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended.add(event.stream_id)

    def call(self, payload: bytes, fields: list[tuple[str, str]] | None = None) -> int:
        """Sends a call as fast as our windows allow."""
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, fields or FIELDS)
        rest = memoryview(message(payload))
        while rest:
            size = min(
                self.h2.local_flow_control_window(stream),
                self.h2.max_outbound_frame_size,
                len(rest),
            )
            assert size, "the window was not renewed"
            self.h2.send_data(stream, bytes(rest[:size]))
            rest = rest[size:]
            self.exchange()
        self.h2.end_stream(stream)
        self.exchange()
        return stream


@pytest.fixture
def echo() -> EchoMethods:
    return EchoMethods()


@pytest.fixture
def peer(echo: EchoMethods) -> Peer:
    return Peer(echo)


@pytest.mark.parametrize("size", [0, 1, 16_379, 100_000, 5_000_000])
def test_calls(peer: Peer, size: int) -> None:
    payload = random.Random(size).randbytes(size)
    for _ in range(3):
        stream = peer.call(payload)
        assert peer.data[stream] == message(payload)
        assert peer.trailers[stream] == {"grpc-status": "0"}
        assert stream in peer.ended


def test_a_message_larger_than_every_window(peer: Peer) -> None:
    payload = bytes(40_000_000)
    assert peer.data[peer.call(payload)] == message(payload)


def test_a_client_that_gives_back_little_at_a_time(peer: Peer, echo: EchoMethods) -> None:
    echo.later = True
    stream = peer.call(b"x")
    echo.calls[0][0].reply((bytes(300_000),))
    peer.exchange(give_back=False)
    rng = random.Random(1)
    while stream not in peer.ended:
        peer.h2.increment_flow_control_window(rng.randint(1, 9000), stream)
        peer.h2.increment_flow_control_window(rng.randint(1, 9000))
        peer.exchange(give_back=False)
    assert peer.data[stream] == message(bytes(300_000))


def test_settings_that_change_while_replies_wait(peer: Peer, echo: EchoMethods) -> None:
    echo.later = True
    stream = peer.call(b"x")
    echo.calls[0][0].reply((bytes(300_000),))
    peer.exchange(give_back=False)
    codes = h2.settings.SettingCodes
    for window, frame in ((1, 16_384), (200_000, 20_000), (70_000, 100_000), (400_000, 16_384)):
        peer.h2.update_settings({codes.INITIAL_WINDOW_SIZE: window, codes.MAX_FRAME_SIZE: frame})
        peer.exchange(give_back=False)
        peer.h2.increment_flow_control_window(60_000)
        peer.exchange(give_back=False)
    peer.h2.increment_flow_control_window(300_000)
    peer.exchange(give_back=False)
    assert peer.data[stream] == message(bytes(300_000))


def test_smaller_header_tables(peer: Peer, echo: EchoMethods) -> None:
    for size in (0, 100, 4096):
        peer.h2.update_settings({h2.settings.SettingCodes.HEADER_TABLE_SIZE: size})
        peer.exchange()
        peer.h2.encoder.header_table_size = size
        for value in ("a", "b", "a"):
            stream = peer.call(value.encode(), [*FIELDS, ("key", value)])
            assert peer.data[stream] == message(value.encode())
    assert [head.metadata["key"] for _, head, _ in echo.calls] == ["a", "b", "a"] * 3
