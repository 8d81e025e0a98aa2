"""The siege over HTTP/2 finds what it looks for; its attacks are the same for ever."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from penstock.loadtest import corrupt_h2
from penstock.loadtest.mutations_h2 import Frame, attack

RIGHT = Frame(1, 5, 1, b"\x00\x0bgrpc-status\x010 OUTPUT1").packed()
FAULT = Frame(7, 0, 0, b"\0\0\0\0\0\0\0\2").packed()
Answer = Callable[[bytes], bytes | None]


@contextlib.asynccontextmanager
async def server(answer: Answer, probe: bytes = RIGHT) -> AsyncIterator[int]:
    """Answers what it got to the end, probes with ``probe``; with None it stays open for long."""
    serving: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        with contextlib.suppress(OSError):
            first = await reader.read(100_000)
            data = probe if first == corrupt_h2.PROBE else answer(first)
            writer.write(data or b"")
            while await reader.read(100_000):
                pass
            if data is None:
                await asyncio.sleep(0.6)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1]
    await asyncio.gather(*[task for task in serving if task is not None])


def siege(port: int) -> corrupt_h2.Siege:
    return corrupt_h2.Siege(
        "127.0.0.1", port, count=20, concurrency=2, timeout_s=0.2, failures_max=3
    )


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (lambda data: None, "hang"),
        (lambda data: b"garbage, and more of it", "malformed"),
        (lambda data: FAULT, "internal"),
        (lambda data: Frame(1, 5, 1, b"internal error").packed(), "internal"),
    ],
)
async def test_what_a_bad_server_does_is_found(answer: Answer, kind: str) -> None:
    async with server(answer) as port:
        found = await corrupt_h2.besiege(siege(port))
    assert not found.ok
    assert found.failures[kind]
    assert found.examples


async def test_a_wrong_answer_is_found() -> None:
    async with server(lambda data: RIGHT, probe=RIGHT.replace(b"OUTPUT1", b"OUTPUT2")) as port:
        found = await corrupt_h2.besiege(siege(port))
    assert found.failures == {"wrong": 3}
    assert found.attacks == 0, "it stops early"


async def test_a_good_server_passes() -> None:
    async with server(lambda data: RIGHT) as port:
        found = await corrupt_h2.besiege(siege(port))
    assert found.ok, found.examples
    assert found.attacks == 20


def test_attacks_are_reproducible_and_various() -> None:
    made = [attack(1, number) for number in range(300)]
    assert made == [attack(1, number) for number in range(300)]
    assert made != [attack(2, number) for number in range(300)]
    assert {one.kind for one in made} == {
        "frames", "bytes", "message", "truncated", "noise", "flood"
    }  # fmt: skip
