"""Both gRPC transports, our own and grpcio's, driven by stock grpcio over small methods of a test.

One suite for both: what a method sees and what a client gets must not depend on the transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from penstock.protocol.errors import Code, InferError
from penstock.server.grpc_seam import Method
from penstock.server.transport.tls import PemFiles

PATIENCE_S = 30.0
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Service:
    """The methods of the tests, and what happened to their calls."""

    def __init__(self) -> None:
        self.held: list[Any] = []
        self.cancelled: list[str] = []
        self.deadlines: list[int] = []
        self.metadata: list[dict[str, Any]] = []
        self.received = 0
        self.sizes: list[int] = []

    def methods(self) -> dict[str, Method]:
        unary = {"Echo": self.echo, "Fail": self.fail, "Hold": self.hold, "Bug": self.bug}
        stream = {"Bidi": Bidi, "Count": Count, "Stuck": Stuck}
        made = [Method(f"/test.S/{name}", unary=method) for name, method in unary.items()]
        made += [
            Method(f"/test.S/{name}", stream=lambda call, head, kind=kind: kind(self, call, head))
            for name, kind in stream.items()
        ]
        made.append(Method("/test.S/Small", unary=self.echo, request_bytes_max=1000))
        return {method.path: method for method in made}

    def echo(self, call: Any, head: Any, message: Any) -> None:
        self.metadata.append(dict(head.metadata))
        self.deadlines.append(call.deadline_ns)
        self.sizes.append(len(message))
        trailers = [
            (name, value)
            for name, value in head.metadata.items()
            if name.startswith("x-") and isinstance(value, str)
        ]
        view = memoryview(message)
        half = len(view) // 2
        call.reply((view[:half], view[half:]), trailers)

    def fail(self, call: Any, head: Any, message: Any) -> None:
        text = bytes(message).decode()
        call.fail(InferError(Code[head.metadata["code"]], text), (("x-why", "because"),))

    def hold(self, call: Any, head: Any, message: Any) -> Any:
        self.held.append(call)
        return Cancelling(self, "hold")

    def bug(self, call: Any, head: Any, message: Any) -> None:
        raise ZeroDivisionError("a method's bug")

    def release(self) -> None:
        for call in self.held:
            call.reply((b"released",))
        self.held.clear()


class Cancelling:
    def __init__(self, service: Service, name: str) -> None:
        self._service, self._name = service, name

    def cancel(self) -> None:
        self._service.cancelled.append(self._name)


class Bidi:
    """Sends back what it gets; at the end how often."""

    full = False

    def __init__(self, service: Service, call: Any, head: Any) -> None:
        self.service, self.call, self.count = service, call, 0

    def received(self, message: Any) -> None:
        self.count += 1
        self.service.received += 1
        if bytes(message[:4]) == b"fail":
            self.call.fail(InferError(Code.INVALID_ARGUMENT, "as you wish"))
        else:
            self.call.send((message,))

    def half_closed(self) -> None:
        self.call.finish((("x-count", str(self.count)),))

    def drained(self) -> None: ...

    def cancel(self) -> None:
        self.service.cancelled.append("bidi")


class Count(Bidi):
    """``b"<messages> <bytes each>"``: sends so many, no faster than they are read."""

    def __init__(self, service: Service, call: Any, head: Any) -> None:
        super().__init__(service, call, head)
        self.left, self.size = 0, 0

    def received(self, message: Any) -> None:
        self.left, self.size = map(int, bytes(message).split())
        self.drained()

    def half_closed(self) -> None: ...

    def drained(self) -> None:
        while self.left and not self.call.congested:
            self.left -= 1
            self.service.received += 1
            self.call.send((bytes(self.size),))
        if not self.left and self.size:
            self.size = 0
            self.call.finish()


class Stuck(Bidi):
    """Takes two messages and is full until they are released."""

    @property
    def full(self) -> bool:  # type: ignore[override]
        return len(self.service.held) >= 2

    def received(self, message: Any) -> None:
        self.service.received += 1
        self.service.held.append(self)

    def release(self) -> None:
        self.service.held.clear()
        self.call.resume()

    def half_closed(self) -> None:
        self.call.finish()


@pytest.fixture(params=["own", "grpcio"])
def host(request: pytest.FixtureRequest, grpc_host: Any) -> Any:
    service = Service()
    made = grpc_host(request.param, service.methods())
    made.service = service
    return made


@pytest.fixture
def channel(host: Any) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(host.listen(), options=UNLIMITED) as channel:
        yield channel


def unary(channel: grpc.Channel, name: str, message: bytes = b"", **options: Any) -> bytes:
    options.setdefault("timeout", PATIENCE_S)
    return channel.unary_unary(f"/test.S/{name}")(message, **options)


def bidi(channel: grpc.Channel, name: str, messages: Any, **options: Any) -> Any:
    options.setdefault("timeout", PATIENCE_S)
    return channel.stream_stream(f"/test.S/{name}")(messages, **options)


# --- messages


@pytest.mark.parametrize("size", [0, 1, 5, 16_384, 65_536, 1_000_003])
def test_a_message_comes_back(channel: grpc.Channel, size: int) -> None:
    message = os.urandom(size)
    assert unary(channel, "Echo", message) == message


def test_100_megabytes(host: Any, channel: grpc.Channel) -> None:
    message = bytes(100_000_000)
    assert unary(channel, "Echo", message) == message


@pytest.mark.slow
def test_a_gigabyte(host: Any, channel: grpc.Channel) -> None:
    size = 1_000_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reply = unary(channel, "Echo", bytes(size), timeout=110)
    assert len(reply) == size
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    # Client and server are one process here; grpcio has a message as received and as bytes, twice.
    assert grown < (6.5 if host.kind == "own" else 9.5) * size


def test_a_message_beyond_the_method_s_limit(channel: grpc.Channel) -> None:
    assert unary(channel, "Small", bytes(1000)) == bytes(1000)
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel, "Small", bytes(1001))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger" in caught.value.details()


@pytest.mark.parametrize("coding", [grpc.Compression.Gzip, grpc.Compression.Deflate])
@pytest.mark.parametrize("size", [10, 100_000])
def test_compressed_messages(host: Any, coding: grpc.Compression, size: int) -> None:
    with grpc.insecure_channel(host.listen(), compression=coding) as channel:
        message = b"penstock " * size
        assert unary(channel, "Echo", message) == message
        assert list(bidi(channel, "Bidi", iter([message, b"x", message]))) == [
            message, b"x", message
        ]  # fmt: skip
    assert host.service.sizes == [len(message)]


# --- metadata


def test_metadata_both_ways(host: Any, channel: grpc.Channel) -> None:
    call = channel.unary_unary("/test.S/Echo")
    _, rpc = call.with_call(
        b"",
        metadata=(
            ("x-one", "1"),
            ("x-two", "a"),
            ("x-two", "b"),
            ("data-bin", bytes(range(256))),
            ("odd", "~!@#$%^&*()_+ =|"),
        ),
        timeout=PATIENCE_S,
    )
    (seen,) = host.service.metadata
    assert (seen["x-one"], seen["x-two"], seen["odd"]) == ("1", "a,b", "~!@#$%^&*()_+ =|")
    assert seen["data-bin"] == bytes(range(256))
    assert not [name for name in seen if name.startswith((":", "grpc-"))]
    assert dict(rpc.trailing_metadata()) == {"x-one": "1", "x-two": "a,b"}


def test_trailers_of_a_stream_and_of_an_error(channel: grpc.Channel) -> None:
    rpc = bidi(channel, "Bidi", iter([b"a", b"b"]))
    assert list(rpc) == [b"a", b"b"]
    assert dict(rpc.trailing_metadata()) == {"x-count": "2"}
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel, "Fail", b"no", metadata=(("code", "NOT_FOUND"),))
    assert dict(caught.value.trailing_metadata())["x-why"] == "because"


# --- statuses


@pytest.mark.parametrize("code", list(Code), ids=lambda code: code.name)
def test_every_status(channel: grpc.Channel, code: Code) -> None:
    text = f"{code.name}: 100% \t\x00 Grüße, 世界 🦀\r\n"
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel, "Fail", text.encode(), metadata=(("code", code.name),))
    assert caught.value.code().value[0] == code.grpc_status
    assert caught.value.details() == text


@pytest.mark.parametrize("path", ["/test.S/Nope", "/no.Such/Echo", "/nonsense"])
def test_unknown_methods(channel: grpc.Channel, path: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(path)(b"", timeout=PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_bug_of_a_method_is_internal_and_not_shown(channel: grpc.Channel, caplog: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel, "Bug")
    assert (caught.value.code(), caught.value.details()) == (
        grpc.StatusCode.INTERNAL, "internal error"
    )  # fmt: skip
    assert "ZeroDivisionError" in caplog.text


def test_an_error_in_the_middle_of_a_stream(channel: grpc.Channel) -> None:
    rpc = bidi(channel, "Bidi", iter([b"one", b"fail", b"two"]))
    assert next(rpc) == b"one"
    with pytest.raises(grpc.RpcError) as caught:
        next(rpc)
    assert caught.value.details() == "as you wish"


# --- streams


def test_ping_pong(channel: grpc.Channel) -> None:
    turn = threading.Semaphore(1)

    def messages() -> Iterator[bytes]:
        for size in (27182, 8, 0, 1828, 45904):
            assert turn.acquire(timeout=PATIENCE_S)
            yield bytes(size)

    sizes = []
    for message in bidi(channel, "Bidi", messages()):
        sizes.append(len(message))
        turn.release()
    assert sizes == [27182, 8, 0, 1828, 45904]


def test_an_empty_stream(channel: grpc.Channel) -> None:
    assert list(bidi(channel, "Bidi", iter(()))) == []


def test_a_long_stream_keeps_its_order(channel: grpc.Channel) -> None:
    sent = [b"%d" % i * (i % 50) for i in range(2000)]
    assert list(bidi(channel, "Bidi", iter(sent))) == sent


def test_a_slow_reader_holds_the_method_back(host: Any, channel: grpc.Channel) -> None:
    rpc = bidi(channel, "Count", iter([b"400 262144"]))
    next(rpc)
    time.sleep(0.3)
    produced = host.service.received
    assert produced < 200, "100 MB must not be produced for a client that does not read"
    assert sum(1 for _ in rpc) == 399


def test_a_full_stream_leaves_messages_with_the_client(host: Any, channel: grpc.Channel) -> None:
    rpc = bidi(channel, "Stuck", iter([bytes(100)] * 5))
    host.until(lambda: host.service.received == 2)
    time.sleep(0.1)
    assert host.service.received == 2
    for count in (4, 5):
        host.call(host.service.held[0].release)
        host.until(lambda count=count: host.service.received == count)
    host.call(host.service.held[0].release)
    assert list(rpc) == []


# --- deadlines and cancelling


def test_a_deadline_is_seen_and_kept(host: Any, channel: grpc.Channel) -> None:
    unary(channel, "Echo", timeout=20)
    left_s = (host.service.deadlines[0] - time.monotonic_ns()) / 1e9
    assert 5 < left_s <= 21  # clients round up
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel, "Hold", timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    host.until(lambda: host.service.cancelled == ["hold"])


def test_without_a_deadline(host: Any, channel: grpc.Channel) -> None:
    unary(channel, "Echo", timeout=None)
    assert host.service.deadlines == [0]


def test_a_deadline_ends_a_stream(host: Any, channel: grpc.Channel) -> None:
    stay = threading.Event()

    def messages() -> Iterator[bytes]:
        yield b"one"
        stay.wait(PATIENCE_S)

    rpc = bidi(channel, "Bidi", messages(), timeout=0.3)
    with pytest.raises(grpc.RpcError) as caught:
        list(rpc)
    stay.set()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    host.until(lambda: host.service.cancelled == ["bidi"])


def test_a_client_cancels(host: Any, channel: grpc.Channel) -> None:
    future = channel.unary_unary("/test.S/Hold").future(b"")
    host.until(lambda: len(host.service.held) == 1)
    future.cancel()
    host.until(lambda: host.service.cancelled == ["hold"])
    host.call(host.service.release)  # A reply that nobody waits for does nothing.
    stay = threading.Event()

    def messages() -> Iterator[bytes]:
        yield b"one"
        stay.wait(PATIENCE_S)

    rpc = bidi(channel, "Bidi", messages())
    assert next(rpc) == b"one"
    rpc.cancel()
    stay.set()
    host.until(lambda: host.service.cancelled == ["hold", "bidi"])
    assert unary(channel, "Echo", b"still there") == b"still there"


def test_cancel_after_begin(host: Any, channel: grpc.Channel) -> None:
    """A stream that is cancelled before its first message."""
    for _ in range(20):
        rpc = bidi(channel, "Bidi", iter(()))
        rpc.cancel()
    assert unary(channel, "Echo", b"x") == b"x"


def test_a_client_that_vanishes(host: Any) -> None:
    address = host.listen()
    channel = grpc.insecure_channel(address)
    calls = [channel.unary_unary("/test.S/Hold").future(b"") for _ in range(3)]
    host.until(lambda: len(host.service.held) == 3)
    channel.close()
    host.until(lambda: host.service.cancelled == ["hold"] * 3)
    assert all(call.done() for call in calls)
    host.until(lambda: host.listener.connections == 0)


# --- many calls


async def test_a_thousand_calls_at_once_on_one_channel(host: Any) -> None:
    async with grpc.aio.insecure_channel(host.listen()) as channel:
        hold = channel.unary_unary("/test.S/Hold")
        waiting = [hold(b"", timeout=PATIENCE_S) for _ in range(1000)]
        tasks = [asyncio.ensure_future(_answer(call)) for call in waiting]
        async with asyncio.timeout(PATIENCE_S):
            while len(host.service.held) < 1000:
                await asyncio.sleep(0.01)
        await asyncio.to_thread(host.call, host.service.release)
        assert await asyncio.gather(*tasks) == [b"released"] * 1000
        echo = channel.unary_unary("/test.S/Echo")
        replies = await asyncio.gather(*[_answer(echo(b"%d" % i)) for i in range(1000)])
        assert replies == [b"%d" % i for i in range(1000)]


async def _answer(call: Any) -> bytes:
    return await call


async def test_streams_of_the_async_client(host: Any) -> None:
    async with grpc.aio.insecure_channel(host.listen()) as channel:
        rpc = channel.stream_stream("/test.S/Bidi")(timeout=PATIENCE_S)
        for i in range(100):
            await rpc.write(b"%d" % i)
            assert await rpc.read() == b"%d" % i
        await rpc.done_writing()
        assert await rpc.read() is grpc.aio.EOF
        assert dict(await rpc.trailing_metadata()) == {"x-count": "100"}


# --- addresses


def test_a_unix_socket(host: Any, tmp_path: Path) -> None:
    path = tmp_path / "grpc.sock"
    host.run(host.listener.listen_unix(path, 0o600))
    assert path.stat().st_mode & 0o777 == 0o600
    with grpc.insecure_channel(f"unix:{path}") as channel:
        assert unary(channel, "Echo", b"x") == b"x"
    with pytest.raises(OSError, match=r"another server|in use"):
        host.run(host.listener.listen_unix(path))
    host.run(host.listener.close(0))
    assert not path.exists()


def test_a_stale_socket_is_replaced_and_a_file_is_not(host: Any, tmp_path: Path) -> None:
    stale, file = tmp_path / "stale", tmp_path / "file"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(stale))
    host.run(host.listener.listen_unix(stale))
    with grpc.insecure_channel(f"unix:{stale}") as channel:
        assert unary(channel, "Echo", b"x") == b"x"
    file.write_text("precious")
    with pytest.raises(OSError):
        host.run(host.listener.listen_unix(file))
    assert file.read_text() == "precious"


def test_a_port_that_is_taken(host: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError):
            host.run(host.listener.listen("127.0.0.1", taken.getsockname()[1]))


# --- TLS


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, and server.pem and client.pem signed by it, each with a .key."""
    folder = tmp_path_factory.mktemp("pem")
    config = folder / "san.cnf"
    config.write_text("subjectAltName=IP:127.0.0.1\n")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test ca",
            "-days", "2")  # fmt: skip
    for name in ("server", "client"):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", "/CN=test")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
                "-out", f"{name}.pem", "-days", "2", "-extfile", "san.cnf")  # fmt: skip
    return folder


def secure(pem: Path, address: str, *, client: bool) -> grpc.Channel:
    read = (pem / "client.key").read_bytes(), (pem / "client.pem").read_bytes()
    credentials = grpc.ssl_channel_credentials(
        (pem / "ca.pem").read_bytes(), *(read if client else ())
    )
    return grpc.secure_channel(address, credentials)


def test_tls(host: Any, pem: Path) -> None:
    address = host.listen(PemFiles(pem / "server.pem", pem / "server.key"))
    with secure(pem, address, client=False) as channel:
        message = os.urandom(1_000_000)
        assert unary(channel, "Echo", message) == message
        assert list(bidi(channel, "Bidi", iter([b"a", message]))) == [b"a", message]
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
        unary(channel, "Echo", timeout=2)
    assert caught.value.code() in (
        grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED
    )  # fmt: skip


def test_mutual_tls(host: Any, pem: Path) -> None:
    files = PemFiles(pem / "server.pem", pem / "server.key", pem / "ca.pem")
    address = host.listen(files)
    with secure(pem, address, client=True) as channel:
        assert unary(channel, "Echo", b"x") == b"x"
    with secure(pem, address, client=False) as channel, pytest.raises(grpc.RpcError):
        unary(channel, "Echo", timeout=2)


def test_only_http2_is_offered(host: Any, pem: Path) -> None:
    host.listen(PemFiles(pem / "server.pem", pem / "server.key"))
    context = ssl.create_default_context(cafile=str(pem / "ca.pem"))
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", host.port)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
    ):
        assert wrapped.selected_alpn_protocol() == "h2"


# --- the end


def test_draining_finishes_what_was_accepted_and_refuses_the_rest(host: Any) -> None:
    with grpc.insecure_channel(host.listen()) as channel:
        held = channel.unary_unary("/test.S/Hold").future(b"")
        host.until(lambda: len(host.service.held) == 1)
        host.call(host.listener.leave)
        with pytest.raises(grpc.RpcError) as caught:
            unary(channel, "Echo", timeout=2)
        assert caught.value.code() in (
            grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED
        )  # fmt: skip
        assert not held.done()
        host.call(host.service.release)
        assert held.result(PATIENCE_S) == b"released"
    host.run(host.listener.close(5))


def test_what_does_not_finish_in_time_is_cut_off(host: Any) -> None:
    with grpc.insecure_channel(host.listen()) as channel:
        held = channel.unary_unary("/test.S/Hold").future(b"")
        host.until(lambda: len(host.service.held) == 1)
        host.run(host.listener.close(0.2))
        with pytest.raises(grpc.RpcError):
            held.result(PATIENCE_S)
        host.until(lambda: host.service.cancelled == ["hold"])


def test_nothing_listens_after_the_end(host: Any) -> None:
    host.listen()
    host.run(host.listener.close(0))
    with contextlib.closing(socket.socket()) as probe:
        assert probe.connect_ex(("127.0.0.1", host.port)) != 0
