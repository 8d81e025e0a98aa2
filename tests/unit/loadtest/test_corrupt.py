from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from penstock.loadtest.corrupt import Findings, Siege, besiege, describe
from penstock.loadtest.mutations import Owed, attack
from penstock.loadtest.payload import Payload

BODY = bytes(range(256)) * 2
JSON = b'{"inputs":[{"name":"A","shape":[1,16],"datatype":"INT32"}],"x":null}'
ANSWER = b"the right answer"
PAYLOADS = [
    Payload("graphpipe", "/graphpipe/m", BODY, {"Content-Type": "a/b"}, 0, (ANSWER,)),
    Payload("v2", "/v2/m", JSON + BODY, {"C": "d"}, len(JSON), (ANSWER,)),
]
BODY_BYTES_MAX = 2**20


def test_a_seed_and_a_number_give_the_same_attack() -> None:
    first = [attack(PAYLOADS, 3, number) for number in range(400)]
    again = [attack(PAYLOADS, 3, number) for number in reversed(range(400))][::-1]
    other = [attack(PAYLOADS, 4, number) for number in range(400)]
    assert first == again
    assert sum(a == b for a, b in zip(first, other, strict=True)) < 20


def test_every_kind_occurs_and_only_slow_ones_are_whole() -> None:
    whole = {payload.http() for payload in PAYLOADS}
    kinds: Counter[str] = Counter()
    for number in range(3000):
        bad = attack(PAYLOADS, 1, number)
        kinds[bad.kind] += 1
        assert all(bad.pieces)
        if bad.owed is Owed.RIGHT_ANSWER:
            assert b"".join(bad.pieces) in whole
    assert len(kinds) == 16
    assert kinds["slow"] < 60


class _Careful(asyncio.Protocol):
    """The least server that owes nothing: no chunks, no pipelining, closes after a refusal."""

    right = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.held = transport, b""

    def data_received(self, data: bytes) -> None:
        self.held += data
        head, end, body = self.held.partition(b"\r\n\r\n")
        lines = [line.partition(b":") for line in head.split(b"\r\n")[1:]]
        fields = {name.lower(): value.strip() for name, _, value in lines}
        length = fields.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > BODY_BYTES_MAX or len(head) > 10_000:
            self.reply(b"400 Bad", b"bad length", close=True)
        elif end and len(body) >= int(length):
            whole = {payload.body for payload in PAYLOADS}
            if body in whole and self.right:
                self.reply(b"200 OK", ANSWER, close=False)
            else:
                self.reply(b"400 Bad", b"bad body", close=len(body) > int(length))

    def reply(self, status: bytes, body: bytes, *, close: bool) -> None:
        self.held = b""
        tail = b"Connection: close\r\n" if close else b""
        self.transport.write(
            b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status, tail, len(body), body)
        )
        if close:
            self.transport.close()


class _Deaf(_Careful):
    """Answers what it likes, hangs on what it does not; stays open at the end of the stream."""

    def reply(self, status: bytes, body: bytes, *, close: bool) -> None:
        if status.startswith(b"200"):
            super().reply(status, body, close=close)

    def eof_received(self) -> bool:
        return True


class _Silent(asyncio.Protocol):
    def eof_received(self) -> bool:
        return True


class _Babbling(_Careful):
    def reply(self, status: bytes, body: bytes, *, close: bool) -> None:
        if status.startswith(b"400"):
            self.transport.write(b"Traceback (most recent call last):\n")
        else:
            super().reply(status, body, close=close)


class _Mistaken(_Careful):
    right = False


class _Crashing(_Careful):
    text = b"oops"

    def reply(self, status: bytes, body: bytes, *, close: bool) -> None:
        if status.startswith(b"400"):
            status, body = b"500 Oops", self.text
        super().reply(status, body, close=close)


class _MeaningIt(_Crashing):
    text = b"Unable to parse 123"


class _Twice(_Careful):
    def reply(self, status: bytes, body: bytes, *, close: bool) -> None:
        super().reply(status, body, close=False)
        super().reply(status, body, close=close)


@asynccontextmanager
async def _serving(make: Callable[[], asyncio.Protocol]) -> AsyncIterator[int]:
    made: list[asyncio.BaseTransport] = []

    def protocol() -> asyncio.Protocol:
        kept = make()
        inner = kept.connection_made

        def connection_made(transport: asyncio.BaseTransport) -> None:
            made.append(transport)
            inner(transport)

        kept.connection_made = connection_made  # type: ignore[method-assign]
        return kept

    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for transport in made:
        transport.close()
    await asyncio.sleep(0.02)


async def _besiege(make: Callable[[], asyncio.Protocol], **changes: object) -> Findings:
    async with _serving(make) as port:
        siege = Siege(
            "127.0.0.1", port, PAYLOADS, count=300, concurrency=16, timeout_s=0.5, probe_every=20,
            **changes,  # type: ignore[arg-type]
        )  # fmt: skip
        return await besiege(siege)


async def test_a_careful_server_passes() -> None:
    found = await _besiege(_Careful, pid=os.getpid())
    assert found.ok, describe(found)
    assert found.attacks == sum(found.outcomes.values()) == 300
    assert found.probes >= 115
    assert {"4xx", "closed", "dropped", "2xx"} <= found.outcomes.keys()
    assert found.rss_bytes_before > 0
    assert "ok" in describe(found)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (_Deaf, "hang"),
        (_Silent, "hang"),
        (_Babbling, "malformed"),
        (_Twice, "malformed"),
        (_Mistaken, "wrong"),
        (_Crashing, "internal"),
    ],
)
async def test_a_failing_server_is_found_out(make: type[asyncio.Protocol], kind: str) -> None:
    async with asyncio.timeout(20):
        found = await _besiege(make, failures_max=5)
    assert not found.ok
    assert found.failures[kind] >= 1
    assert any(kind in example for example in found.examples)
    assert "FAILED" in describe(found)


async def test_a_meant_500_is_told_once_and_no_failure() -> None:
    found = await _besiege(_MeaningIt)
    assert found.ok
    assert found.internal > 100
    assert len(found.examples) == 1


async def test_nobody_there_is_found_out() -> None:
    found = await besiege(Siege("127.0.0.1", 1, PAYLOADS, count=50, timeout_s=0.5, failures_max=3))
    assert found.failures["refused"] >= 3
    assert found.attacks < 50 + 64
