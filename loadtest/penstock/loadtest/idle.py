"""The check of many idle connections: do they cost the server anything, and do they stay usable?

Opens K keep-alive connections that each ask once, lets them rest, runs a load of a few busy
connections beside them, then lets a sample of the resting ones ask again. Knows sockets and the
server's pid. Must not know what the requests mean.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from penstock.loadtest import blast, children, loops, procstat, samples
from penstock.loadtest.blast import Checks, Plan, Target, raise_fd_limit
from penstock.loadtest.payload import Payload
from penstock.loadtest.replies import MalformedReply, Reply, ReplyParser

_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class Rest:
    """One run. ``quiet_s``: how long nothing at all is sent, to see the idle CPU."""

    host: str
    port: int
    payload: Payload
    pid: int
    idle: int = 10_000
    sample: int = 500
    quiet_s: float = 3.0
    load_s: float = 5.0
    load_connections: int = 32
    timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Findings:
    """``failures`` by kind: connect, closed (by the server while resting), answer (missing or
    wrong), load (errors of the busy connections). CPU in seconds a second.
    """

    opened: int
    failures: Mapping[str, int]
    first_failure: str
    rss_bytes_before: int
    rss_bytes_idle: int
    rss_bytes_after: int
    cpu_idle: float
    load_rps: float
    load_p99_us: int
    load_rps_alone: float
    load_p99_us_alone: int

    @property
    def rss_bytes_a_connection(self) -> float:
        """Server memory that one resting connection holds."""
        return (self.rss_bytes_idle - self.rss_bytes_before) / max(1, self.opened)


class _Resting(asyncio.Protocol):
    """One connection; asks when told to, and remembers whether the server hung up."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._parser = ReplyParser()
        self._waiter: asyncio.Future[Reply] | None = None
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    async def ask(self, request: bytes) -> Reply:
        """Raises: MalformedReply, ConnectionError."""
        if self.lost:
            raise ConnectionResetError("closed by the server while at rest")
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._waiter

    def data_received(self, data: bytes) -> None:
        waiter, problem = self._waiter, None
        try:
            replies = self._parser.feed(data)
        except MalformedReply as malformed:
            replies, problem = [], malformed
        if waiter is None or waiter.done():
            self._transport.abort()  # nobody asked: counted as closed
        elif problem:
            waiter.set_exception(problem)
        elif replies:
            waiter.set_result(replies[0])

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(ConnectionResetError("closed instead of an answer"))

    def close(self) -> None:
        self._transport.abort()


class _Run:
    def __init__(self, rest: Rest) -> None:
        self.rest = rest
        self.request = rest.payload.http()
        self.failures: Counter[str] = Counter()
        self.first_failure = ""

    async def go(self) -> Findings:
        rest = self.rest
        resting: list[_Resting] = []
        try:
            alone = await self.load()
            before = procstat.rss_bytes(rest.pid)
            await self.open(resting)
            idle = procstat.rss_bytes(rest.pid)
            cpu = procstat.cpu_s(rest.pid)
            await asyncio.sleep(rest.quiet_s)
            cpu = procstat.cpu_s(rest.pid) - cpu
            beside = await self.load()
            await self.wake(resting)
        finally:
            for connection in resting:
                connection.close()
        await asyncio.sleep(1.0)
        return Findings(
            opened=len(resting),
            failures=dict(self.failures),
            first_failure=self.first_failure,
            rss_bytes_before=before,
            rss_bytes_idle=idle,
            rss_bytes_after=procstat.rss_bytes(rest.pid),
            cpu_idle=cpu / rest.quiet_s,
            load_rps=beside.rps,
            load_p99_us=beside.p99_us,
            load_rps_alone=alone.rps,
            load_p99_us_alone=alone.p99_us,
        )

    async def load(self) -> blast.Result:
        rest = self.rest
        result = await blast.run(
            Plan(
                Target(rest.host, rest.port, self.request),
                connections=rest.load_connections,
                seconds=rest.load_s,
                timeout_s=rest.timeout_s,
                checks=Checks(contains=rest.payload.contains),
            )
        )
        if result.errors:
            self.failed("load", f"{result.errors} errors, first {result.first_failure}")
        return result

    async def open(self, resting: list[_Resting]) -> None:
        loop, rest = asyncio.get_running_loop(), self.rest
        for start in range(0, rest.idle, _AT_ONCE):
            opening = [
                loop.create_connection(_Resting, rest.host, rest.port)
                for _ in range(min(_AT_ONCE, rest.idle - start))
            ]
            new: list[_Resting] = []
            for opened in await asyncio.gather(*opening, return_exceptions=True):
                if isinstance(opened, BaseException):
                    self.failed("connect", str(opened))
                else:
                    new.append(opened[1])
            resting += new
            await asyncio.gather(*(self.ask(connection) for connection in new))

    async def wake(self, resting: list[_Resting]) -> None:
        """Count those that were hung up on, and let a sample, spread evenly, ask again."""
        for connection in resting:
            if connection.lost:
                self.failed("closed", "by the server while at rest")
        step = max(1, len(resting) // max(1, self.rest.sample))
        sample = [connection for connection in resting[::step] if not connection.lost]
        await asyncio.gather(*(self.ask(connection) for connection in sample))

    async def ask(self, connection: _Resting) -> None:
        try:
            async with asyncio.timeout(self.rest.timeout_s):
                reply = await connection.ask(self.request)
        except (TimeoutError, OSError, MalformedReply) as problem:
            self.failed("answer", repr(problem))
            return
        if reply.status != 200 or not all(p in reply.body for p in self.rest.payload.contains):
            self.failed("answer", f"{reply.status} {reply.body[:200]!r}")

    def failed(self, kind: str, detail: str) -> None:
        self.failures[kind] += 1
        self.first_failure = self.first_failure or f"{kind}: {detail}"


async def rest_beside_load(rest: Rest) -> Findings:
    """Run the check; every wait is bounded by ``timeout_s``."""
    raise_fd_limit(rest.idle + rest.load_connections + 64)
    return await _Run(rest).go()


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 when anything failed."""
    parser = argparse.ArgumentParser(prog="python -m penstock.loadtest.idle")
    add = parser.add_argument
    add("--url", help="the server, which must serve --model; else a gateway is started")
    add("--pid", type=int, default=0, help="the server's; required with --url")
    add("--model", default="add_sub")
    add("--wire", choices=("graphpipe", "v2"), default="graphpipe")
    add("--idle", type=int, default=10_000)
    add("--sample", type=int, default=500)
    add("--seconds", type=float, default=5.0, help="of the load, alone and beside")
    add("--quiet", type=float, default=3.0, metavar="SECONDS")
    add("--json", action="store_true")
    args = parser.parse_args(argv)
    if args.url and not args.pid:
        parser.error("--url needs --pid")
    by_wire = {payload.wire: payload for payload in samples.add_sub(model=args.model)}
    children.leave_on_sigterm()
    with children.at(args.url, args.pid) as (host, port, pid):
        rest = Rest(
            host, port, by_wire[args.wire], pid, args.idle, args.sample, args.quiet, args.seconds
        )
        found = loops.run(rest_beside_load(rest))
    print(json.dumps(dataclasses.asdict(found)) if args.json else describe(found))
    return 1 if found.failures else 0


def describe(found: Findings) -> str:
    """For people."""
    mib = 1 / 2**20
    return "\n".join(
        (
            f"{found.opened} idle connections: "
            + (f"FAILED {dict(found.failures)}; {found.first_failure}" if found.failures else "ok"),
            f"server memory {found.rss_bytes_before * mib:.1f} MiB before, "
            f"{found.rss_bytes_idle * mib:.1f} with ({found.rss_bytes_a_connection:.0f} bytes a "
            f"connection), {found.rss_bytes_after * mib:.1f} after; idle CPU {found.cpu_idle:.2%}",
            f"load alone {found.load_rps_alone:.0f}/s p99 {found.load_p99_us_alone} µs; "
            f"beside them {found.load_rps:.0f}/s p99 {found.load_p99_us} µs",
        )
    )


if __name__ == "__main__":
    raise SystemExit(main())
