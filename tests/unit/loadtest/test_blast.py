from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.loadtest import blast, blast_cli, children, echo, procstat
from penstock.loadtest.blast import Checks, Plan, Target
from penstock.loadtest.payload import build_request

REQUEST = build_request("/x", b"y" * 100, {"A": "b"})


@pytest.fixture
async def target() -> AsyncIterator[Target]:
    server = await echo.serve("127.0.0.1", 0)
    yield Target("127.0.0.1", echo.port_of(server), REQUEST)
    server.close()
    await server.wait_closed()


def plan(target: Target, **changes: object) -> Plan:
    base = Plan(target, connections=3, seconds=5, requests=200, warmup_s=0.01, timeout_s=1)
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("pipeline", [1, 5])
async def test_echo_answers_everything(target: Target, pipeline: int) -> None:
    checks = Checks(contains=(echo.REPLY_BODY,), every=1)
    result = await blast.run(plan(target, pipeline=pipeline, checks=checks, watch_pid=os.getpid()))
    assert (result.requests, result.errors, result.failures) == (200, 0, {})
    assert 0 < result.p50_us <= result.p90_us <= result.p99_us <= result.max_us
    assert result.rps == pytest.approx(200 / result.seconds)
    assert result.server_cpu_s > 0


async def test_time_ends_a_run_too(target: Target) -> None:
    result = await blast.run(plan(target, seconds=0.1, requests=0))
    assert result.errors == 0
    assert result.requests > 10
    assert 0.1 <= result.seconds < 0.5


async def test_idle_connections_are_opened_and_closed(target: Target) -> None:
    before = procstat.fd_count(os.getpid())
    running = asyncio.create_task(blast.run(plan(target, idle=40, seconds=0.2, requests=0)))
    await asyncio.sleep(0.1)
    during = procstat.fd_count(os.getpid())
    assert (await running).errors == 0
    await asyncio.sleep(0.05)
    assert during >= before + 2 * 43  # both ends are ours
    assert procstat.fd_count(os.getpid()) <= before + 1


@pytest.mark.parametrize(
    ("checks", "failing"),
    [
        (Checks(contains=(b"absent",)), True),
        (Checks(check=lambda body: False), True),
        (Checks(check=lambda body: len(body) == 128), False),
    ],
)
async def test_wrong_answers_are_noticed(target: Target, checks: Checks, failing: bool) -> None:
    result = await blast.run(plan(target, checks=checks))
    assert ("wrong" in result.failures) == failing


async def _against(replies: list[bytes], **changes: object) -> blast.Result:
    """A server that gives these replies in turn on each connection, and then says nothing."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in replies:
            await reader.readuntil(b"y" * 100)
            writer.write(reply)
            if not reply:
                break
        else:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        return await blast.run(
            plan(Target("127.0.0.1", port, REQUEST), connections=1, timeout_s=0.2, **changes)
        )
    finally:
        server.close()
        await server.wait_closed()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.mark.parametrize(
    ("replies", "kind"),
    [
        ([OK, OK, b""], "closed"),
        ([OK, OK], "timeout"),
        ([OK, OK[:-1]], "timeout"),
        ([OK, b"garbage"], "malformed"),
        ([OK + OK], "malformed"),
        ([OK, OK.replace(b"200", b"503"), b""], "status"),
        ([OK, OK.replace(b"2\r", b"3\r") + b"!", b""], "wrong"),
    ],
)
async def test_every_kind_of_failure_is_counted(replies: list[bytes], kind: str) -> None:
    result = await _against(replies, warmup_s=0.0)
    assert result.failures[kind] == 1
    assert result.errors >= 1
    assert result.first_failure.startswith(kind)


async def test_nobody_listening_is_a_failure() -> None:
    result = await blast.run(plan(Target("127.0.0.1", 1, REQUEST)))
    assert result.failures == {"connect": 3}
    assert result.requests == 0


def test_as_a_process_against_the_echo_process() -> None:
    with children.echo() as server:
        there = Target("127.0.0.1", server.port, REQUEST)
        result = blast_cli.run_apart(plan(there, watch_pid=server.pid))
        assert (result.requests, result.errors) == (200, 0)
        assert result.server_cpu_s > 0
        wrong = blast_cli.run_apart(plan(there, checks=Checks(contains=(b"absent",))))
        assert wrong.failures["wrong"] > 0
    assert not procstat.is_running(server.pid)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"z" * 10)
    with children.echo() as server:
        words = ["--url", f"http://127.0.0.1:{server.port}/p", "--body-file", str(body)]
        words += ["--header", "A: b", "--requests", "20", "--warmup", "0"]
        assert blast_cli.main([*words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["requests"] == 20
        assert blast_cli.main(words) == 0
        assert re.match(r"20 requests in .* errors 0$", capsys.readouterr().out)
        absent = tmp_path / "absent"
        absent.write_bytes(b"absent")
        assert blast_cli.main([*words, "--contains-file", str(absent)]) == 1
    with pytest.raises(SystemExit):
        blast_cli.main(["--url", "https://127.0.0.1/"])


def test_a_request_is_built_to_the_byte() -> None:
    assert build_request("/p", b"ab", {"X": "1"}) == (
        b"POST /p HTTP/1.1\r\nHost: load\r\nX: 1\r\nContent-Length: 2\r\n\r\nab"
    )
    assert build_request("/p") == b"GET /p HTTP/1.1\r\nHost: load\r\n\r\n"
