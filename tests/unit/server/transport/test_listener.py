"""The listener over real sockets, on both kinds of loop: limits, unix sockets, the end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from penstock.server.transport.fake import Echo, Wire, parse_replies
from penstock.server.transport.http1 import Http1Connection
from penstock.server.transport.listener import Http1Listener, HttpLimits

GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
GET_REPLY = b"GET /a "
Scenario = Callable[[], Awaitable[None]]
LOOPS = {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=LOOPS.values(), ids=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Scenario], None]:
    """Runs a scenario on a loop of its own and fails on whatever the loop complains of."""

    def go(scenario: Scenario) -> None:
        complaints: list[dict[str, Any]] = []

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: complaints.append(context))
            async with asyncio.timeout(20):
                await scenario()

        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(main())
        assert complaints == []

    return go


def listener_of(endpoint: Any, **limits: int) -> Http1Listener:
    return Http1Listener(lambda head: endpoint, Http1Connection, HttpLimits(**limits))


@contextlib.asynccontextmanager
async def listening(endpoint: Any, **limits: int) -> AsyncIterator[tuple[Http1Listener, int]]:
    listener = listener_of(endpoint, **limits)
    port = await listener.listen("127.0.0.1", 0)
    try:
        yield listener, port
    finally:
        await listener.close(1)


class Client:
    """A plain socket; every method waits for what it promises."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int, receive_bytes: int = 0) -> Client:
        sock = socket.socket()
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        except OSError:
            sock.close()
            raise
        return cls(*await asyncio.open_connection(sock=sock, limit=1 << 16))

    async def ask(self, data: bytes, count: int = 1) -> list[Any]:
        self.writer.write(data)
        return await self.replies(count)

    async def replies(self, count: int = 1) -> list[Any]:
        data = b""
        while len(parse_replies(data)[0]) < count:
            more = await self.reader.read(1 << 16)
            assert more, f"the connection ended after {data!r}"
            data += more
        found, rest = parse_replies(data)
        assert rest == b""
        return found

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


Run = Callable[[Scenario], None]


def test_replies_over_sockets(run: Run) -> None:
    async def scenario() -> None:
        async with listening(Echo()) as (listener, port):
            client = await Client.connect(port)
            (reply,) = await client.ask(GET)
            assert (reply.status, reply.body) == (200, GET_REPLY)
            assert reply.headers["date"].endswith("GMT")
            assert [r.body for r in await client.ask(GET * 50, 50)] == [GET_REPLY] * 50
            assert listener.connections == 1
            await client.close()
            await until(lambda: listener.connections == 0)

    run(scenario)


@pytest.mark.parametrize("size", [100, 30_000, 100_000, 5_000_000])
@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_large_bodies_both_ways(run: Run, size: int, coding: str) -> None:
    body = os.urandom(size)
    if coding == "length":
        ask = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (size, body)
    else:
        head = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        ask = head + b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)

    async def scenario() -> None:
        async with listening(Echo()) as (listener, port):
            client = await Client.connect(port)
            for _ in range(2):
                replies = await client.ask(ask + GET, 2)
                assert [r.body for r in replies] == [b"POST / " + body, GET_REPLY]
            assert listener._body_bytes == 0
            await client.close()

    run(scenario)


def test_a_reply_of_many_buffers(run: Run) -> None:
    parts = [bytes([i % 256]) * (i % 40) for i in range(5000)]

    async def scenario() -> None:
        endpoint = lambda responder, head, body: responder.reply(200, "", parts)  # noqa: E731
        async with listening(endpoint) as (_, port):
            client = await Client.connect(port)
            (reply,) = await client.ask(GET)
            assert reply.body == b"".join(parts)
            await client.close()

    run(scenario)


def test_the_refusal_arrives_although_the_client_is_still_sending(run: Run) -> None:
    async def scenario() -> None:
        async with listening(Echo(), body_bytes_max=1000) as (listener, port):
            client = await Client.connect(port)
            client.writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5000000\r\n\r\n")
            for _ in range(50):
                client.writer.write(b"x" * 100_000)
                await client.writer.drain()
            data = await client.reader.read()
            ((reply,), rest) = parse_replies(data)
            assert (reply.status, rest) == (413, b"")
            await client.close()
            await until(lambda: listener.connections == 0)

    run(scenario)


def test_a_client_that_reads_nothing_holds_back_the_rest(run: Run) -> None:
    calls = 0

    def endpoint(responder: Any, head: Any, body: Any) -> None:
        nonlocal calls
        calls += 1
        responder.reply(200, "", (b"x" * 1_000_000,), close=calls == 20)

    async def scenario() -> None:
        async with listening(endpoint) as (_, port):
            client = await Client.connect(port, receive_bytes=64 * 1024)
            client.writer.write(GET * 20)
            await until(lambda: calls > 0)
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert calls < 15
            replies, rest = parse_replies(await client.reader.read())
            assert ([len(r.body) for r in replies], rest) == ([1_000_000] * 20, b"")
            assert calls == 20
            await client.close()

    run(scenario)


def test_what_the_client_reads_counts_as_progress(run: Run) -> None:
    """The sweep learns from the transport's buffer whether a slow client still reads."""

    async def scenario() -> None:
        body = b"x" * 8_000_000
        endpoint = lambda r, head, b: r.reply(200, "", (body,), close=True)  # noqa: E731
        async with listening(endpoint, write_timeout_s=3) as (listener, port):
            client = await Client.connect(port, receive_bytes=64 * 1024)
            client.writer.write(GET)
            await until(lambda: any(c._transport.get_write_buffer_size()
                                    for c in listener._connections))  # fmt: skip
            (connection,) = listener._connections
            got = 0
            for tick in range(1000, 1000 + 2 * 8):
                connection.sweep(tick)
                unsent = connection._transport.get_write_buffer_size()
                while connection._transport.get_write_buffer_size() == unsent > 0:
                    got += len(await client.reader.read(200_000))
            while more := await client.reader.read(1 << 20):
                got += len(more)
            assert got > len(body)
            await client.close()

        async with listening(endpoint, write_timeout_s=3) as (listener, port):
            client = await Client.connect(port, receive_bytes=64 * 1024)
            client.writer.write(GET)
            await until(lambda: any(c._transport.get_write_buffer_size()
                                    for c in listener._connections))  # fmt: skip
            (connection,) = listener._connections
            for _ in range(100):
                await asyncio.sleep(0)
            for tick in (1000, 1003):
                connection.sweep(tick)
            assert listener.connections == 1
            connection.sweep(1004)
            await until(lambda: listener.connections == 0)
            await client.close()

    run(scenario)


def test_a_reset_in_the_middle_of_everything(run: Run) -> None:
    async def scenario() -> None:
        echo = Echo(later=True)
        async with listening(echo) as (listener, port):
            for sent in (b"", GET[:9], GET, GET * 2000, b"POST / HTTP/1.1\r\nHost: h\r\n"
                         b"Content-Length: 9999999\r\n\r\n" + b"x" * 300_000):  # fmt: skip
                client = await Client.connect(port)
                client.writer.write(sent)
                await client.writer.drain()
                await until(lambda: listener.connections == 1)
                if sent[-4:] == b"\r\n\r\n":
                    await until(lambda: bool(echo.waiting))
                linger = b"\x01\0\0\0\0\0\0\0"
                sock = client.writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                client.writer.transport.abort()
                await until(lambda: listener.connections == 0)
                while echo.waiting:
                    echo.answer()
            assert echo.cancelled == 2
            assert listener._body_bytes == 0

    run(scenario)


def test_half_close_gets_the_replies_that_are_made(run: Run) -> None:
    async def scenario() -> None:
        async with listening(Echo()) as (listener, port):
            client = await Client.connect(port)
            client.writer.write(GET * 3)
            client.writer.write_eof()
            replies, rest = parse_replies(await client.reader.read())
            assert ([r.body for r in replies], rest) == ([GET_REPLY] * 3, b"")
            await client.close()
            await until(lambda: listener.connections == 0)

    run(scenario)


def test_too_many_connections(run: Run) -> None:
    async def scenario() -> None:
        async with listening(Echo(), connections_max=2) as (listener, port):
            clients = [await Client.connect(port) for _ in range(2)]
            for client in clients:
                await client.ask(GET)
            extra = await Client.connect(port)
            (reply,) = await extra.ask(GET)
            assert reply.status == 503
            assert await extra.reader.read() == b""
            await extra.close()
            await clients.pop().close()
            await until(lambda: listener.connections == 1)
            late = await Client.connect(port)
            assert [r.status for r in await late.ask(GET)] == [200]
            for client in (late, *clients):
                await client.close()

    run(scenario)


# ---------------------------------------------------------------------- the sweep


def test_reasons_that_are_kept_are_short() -> None:
    listener = listener_of(Echo())
    head = listener.reply_head(400, "text/plain", "x" * 1_000_000)
    assert head.startswith(b"HTTP/1.1 400 " + b"x" * 197 + b"...\r\n")
    assert all(len(reason) < 300 for _, _, reason in vars(listener)["_reply_heads"])


def test_the_sweep_goes_on_whatever_a_connection_does() -> None:
    listener = listener_of(Echo())

    class Loop:
        calls: list[Callable[..., None]] = []

        def call_later(self, delay_s: float, call: Callable[..., None], *args: Any) -> Any:
            self.calls.append(lambda: call(*args))
            return self

    class Bad:
        def sweep(self, tick: int) -> None:
            raise RuntimeError("a bug")

    loop: Any = Loop()
    listener._start(loop)
    listener._start(loop)
    assert len(loop.calls) == 1
    assert listener.date.startswith(b"Date: ")
    bad: Any = Bad()
    listener.add(bad)
    with pytest.raises(RuntimeError, match="a bug"):
        loop.calls.pop()()
    assert len(loop.calls) == 1
    listener.discard(bad)
    loop.calls.pop()()
    assert listener.tick == 2


# ---------------------------------------------------------------------- unix sockets


def test_a_unix_socket(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "s"

    async def scenario() -> None:
        listener = listener_of(Echo())
        await listener.listen_unix(path, 0o600)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        client = Client(*await asyncio.open_unix_connection(str(path)))
        assert [r.body for r in await client.ask(GET)] == [GET_REPLY]
        await client.close()
        await listener.close(1)
        assert not path.exists()

    run(scenario)


def test_a_stale_unix_socket_is_replaced(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "s"

    async def scenario() -> None:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
        listener = listener_of(Echo())
        await listener.listen_unix(path)
        client = Client(*await asyncio.open_unix_connection(str(path)))
        assert [r.status for r in await client.ask(GET)] == [200]
        await client.close()
        await listener.close(1)

    run(scenario)


def test_the_unix_socket_of_a_living_server_is_not_taken(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "s"

    async def scenario() -> None:
        first, second = listener_of(Echo()), listener_of(Echo())
        await first.listen_unix(path)
        with pytest.raises(OSError, match="another server listens") as caught:
            await second.listen_unix(path)
        assert caught.value.errno == errno.EADDRINUSE
        await second.close(0)
        client = Client(*await asyncio.open_unix_connection(str(path)))
        assert [r.status for r in await client.ask(GET)] == [200]
        await client.close()
        await first.close(1)

    run(scenario)


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_file_is_never_replaced_by_a_unix_socket(run: Run, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    if kind == "file":
        path.write_text("precious")
    else:
        path.mkdir()

    async def scenario() -> None:
        listener = listener_of(Echo())
        with pytest.raises(OSError):
            await listener.listen_unix(path)
        await listener.close(0)

    run(scenario)
    assert path.is_dir() if kind == "directory" else path.read_text() == "precious"


# ---------------------------------------------------------------------- the end


def test_close_ends_idle_connections_at_once_and_answers_what_runs(run: Run) -> None:
    async def scenario() -> None:
        echo = Echo(later=True)
        listener = listener_of(echo)
        port = await listener.listen("127.0.0.1", 0)
        idle, busy = await Client.connect(port), await Client.connect(port)
        busy.writer.write(GET)
        await until(lambda: listener.connections == 2 and bool(echo.waiting))
        closing = asyncio.ensure_future(listener.close(15))
        assert await idle.reader.read() == b""
        await until(lambda: listener.connections == 1)
        with pytest.raises(ConnectionRefusedError):
            await Client.connect(port)
        assert not closing.done()
        echo.answer()
        (reply,), _ = parse_replies(await busy.reader.read())
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        await busy.close()
        await closing
        assert listener.connections == 0
        await idle.close()

    run(scenario)


async def test_close_ends_connections_that_are_announced_late() -> None:
    echo = Echo(later=True)
    listener = listener_of(echo)
    busy = Wire(listener)
    busy.feed(GET)
    closing = asyncio.ensure_future(listener.close(20))
    await asyncio.sleep(0)
    late = Wire(listener)
    while not late.lost:
        await asyncio.sleep(0.001)
        late.pump()
    assert not closing.done()
    echo.answer()
    busy.end()
    await closing


def test_close_aborts_what_is_left_at_the_deadline(run: Run) -> None:
    async def scenario() -> None:
        echo = Echo(later=True)
        listener = listener_of(echo)
        port = await listener.listen("127.0.0.1", 0)
        client = await Client.connect(port)
        client.writer.write(GET)
        await until(lambda: bool(echo.waiting))
        await listener.close(0.05)
        with contextlib.suppress(ConnectionResetError):
            assert await client.reader.read() == b""
        await until(lambda: listener.connections == 0)
        assert echo.cancelled == 1
        await client.close()

    run(scenario)


def test_a_port_in_use(run: Run) -> None:
    async def scenario() -> None:
        async with listening(Echo()) as (_, port):
            other = listener_of(Echo())
            with pytest.raises(OSError, match=r"in use") as caught:
                await other.listen("127.0.0.1", port)
            assert caught.value.errno == errno.EADDRINUSE
            await other.close(0)

    run(scenario)
