from __future__ import annotations

import asyncio
import os

from penstock.loadtest import echo
from penstock.loadtest.idle import Rest, describe, rest_beside_load
from penstock.loadtest.payload import Payload

PAYLOAD = Payload("graphpipe", "/x", b"abc", contains=(echo.REPLY_BODY,))


def rest(port: int, payload: Payload = PAYLOAD) -> Rest:
    return Rest(
        "127.0.0.1", port, payload, os.getpid(), idle=60, sample=20, quiet_s=0.3, load_s=0.2,
        load_connections=2, timeout_s=1,
    )  # fmt: skip


async def test_echo_keeps_its_idle_connections() -> None:
    async with await echo.serve("127.0.0.1", 0) as server:
        found = await rest_beside_load(rest(echo.port_of(server)))
    assert (found.opened, found.failures) == (60, {})
    assert found.cpu_idle < 0.2
    assert found.load_rps > 100
    assert "60 idle connections: ok" in describe(found)


async def test_hanging_up_on_the_idle_is_found_out() -> None:
    class Impatient(echo.Echo):
        def on_message_complete(self) -> None:
            super().on_message_complete()
            asyncio.get_running_loop().call_later(0.15, self._transport.close)

    loop = asyncio.get_running_loop()
    async with await loop.create_server(Impatient, "127.0.0.1", 0) as server:
        found = await rest_beside_load(rest(echo.port_of(server)))
    assert found.failures["closed"] == 60
    assert "FAILED" in describe(found)


async def test_wrong_answers_are_found_out() -> None:
    payload = Payload("graphpipe", "/x", b"abc", contains=(b"absent",))
    async with await echo.serve("127.0.0.1", 0) as server:
        found = await rest_beside_load(rest(echo.port_of(server), payload))
    assert found.failures["answer"] == 80
    assert found.failures["load"] >= 1
