"""A lean closed-loop HTTP/1.1 load generator for loopback.

N keep-alive connections each send one prebuilt request, wait for the whole reply and send the next
(or keep ``pipeline`` of them in flight). Knows HTTP framing and the clock. Must not know what the
requests mean: whoever builds them also says by ``Checks`` how a right answer is recognised.

Meant to run outside the measured process: ``python -m penstock.loadtest.blast --url ...`` prints
the result as JSON. Nothing waits forever: a reply later than ``timeout_s`` is a failure.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

from penstock.loadtest import procstat
from penstock.loadtest.latency import Latencies
from penstock.loadtest.replies import MalformedReply, Reply, ReplyParser

_OPENING_AT_ONCE = 128
_WATCH_EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class Target:
    """A server and the complete bytes of the request sent to it again and again."""

    host: str
    port: int
    request: bytes


@dataclass(frozen=True, slots=True)
class Checks:
    """How right answers are told from wrong ones.

    ``same_length``: every body is as long as the first. ``contains`` (byte strings) and ``check``
    are applied to the first reply of every connection and to one in ``every`` after that.
    """

    same_length: bool = True
    contains: tuple[bytes, ...] = ()
    check: Callable[[bytes], bool] | None = None
    every: int = 16

    def right(self, body: bytes) -> bool:
        """Whether a sampled body is right."""
        return all(part in body for part in self.contains) and (
            self.check is None or self.check(body)
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. It ends at ``seconds`` or ``requests`` measured ones, whichever comes first.

    ``idle``: this many more connections are opened first and stay silent. ``watch_pid``: a process
    whose CPU time over the measured span is reported.
    """

    target: Target
    connections: int = 8
    seconds: float = 5.0
    requests: int = 0
    warmup_s: float = 0.3
    pipeline: int = 1
    idle: int = 0
    timeout_s: float = 10.0
    checks: Checks = field(default_factory=Checks)
    watch_pid: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """What was seen in the measured span; ``failures`` by kind over the whole run.

    Kinds: connect, status (not 200), wrong (a check failed), malformed, closed (by the server, with
    requests in flight or not), timeout.
    """

    requests: int
    seconds: float
    errors: int
    rps: float
    p50_us: int
    p90_us: int
    p99_us: int
    max_us: int
    client_cpu_s: float
    server_cpu_s: float
    failures: Mapping[str, int]
    first_failure: str


async def run(plan: Plan) -> Result:
    """Run on the current loop (use uvloop for figures; any loop for tests)."""
    raise_fd_limit(plan.connections + plan.idle + 64)
    return await _Run(plan).go()


def raise_fd_limit(fds: int) -> None:
    """Lift the soft limit of open files to hold ``fds`` more.

    Raises:
        OSError: the hard limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < fds != resource.RLIM_INFINITY:
        if hard != resource.RLIM_INFINITY and hard < fds:
            raise OSError(f"{fds} open files are needed, the hard limit is {hard}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (fds, hard))


class _Run:
    """The state that all connections of a run share; lives on one loop."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.latencies = Latencies()
        self.failures: Counter[str] = Counter()
        self.first_failure = ""
        self.body_bytes = -1
        self.measuring = False
        self.sending = False
        self.live: set[_Connection] = set()
        self.over = asyncio.Event()
        self.drained = asyncio.Event()

    async def go(self) -> Result:
        idle = await self.open(self.plan.idle)
        busy = await self.open(self.plan.connections)
        self.live = set(busy)
        watch = asyncio.create_task(self.watch())
        try:
            return await self.measure(busy)
        finally:
            watch.cancel()
            for connection in (*busy, *idle):
                connection.close()
            await asyncio.gather(watch, return_exceptions=True)

    async def open(self, count: int) -> list[_Connection]:
        loop, target = asyncio.get_running_loop(), self.plan.target
        connections: list[_Connection] = []
        for start in range(0, count, _OPENING_AT_ONCE):
            opening = [
                loop.create_connection(lambda: _Connection(self), target.host, target.port)
                for _ in range(min(_OPENING_AT_ONCE, count - start))
            ]
            for opened in await asyncio.gather(*opening, return_exceptions=True):
                if isinstance(opened, BaseException):
                    self.fail("connect", str(opened))
                else:
                    connections.append(opened[1])
        return connections

    async def measure(self, busy: Iterable[_Connection]) -> Result:
        plan = self.plan
        self.sending = True
        for connection in busy:
            connection.start(plan.pipeline)
        await self.wait_over(plan.warmup_s)
        self.measuring = True
        started, client, server = self.clocks()
        await self.wait_over(plan.seconds)
        ended, client_end, server_end = self.clocks()
        self.measuring = self.sending = False
        self.settle()
        await self.drained.wait()  # bounded: the watch fails whatever is late
        found, seconds = self.latencies, ended - started
        return Result(
            requests=found.count,
            seconds=seconds,
            errors=self.failures.total(),
            rps=found.count / seconds,
            p50_us=found.quantile_us(0.5),
            p90_us=found.quantile_us(0.9),
            p99_us=found.quantile_us(0.99),
            max_us=found.max_us,
            client_cpu_s=client_end - client,
            server_cpu_s=server_end - server,
            failures=dict(self.failures),
            first_failure=self.first_failure,
        )

    async def wait_over(self, seconds: float) -> None:
        """Until the time is up, enough was measured or nobody is left."""
        try:
            async with asyncio.timeout(seconds if self.live else 0):
                await self.over.wait()
        except TimeoutError:
            return

    def clocks(self) -> tuple[float, float, float]:
        pid = self.plan.watch_pid
        return time.perf_counter(), time.process_time(), procstat.cpu_s(pid) if pid else 0.0

    async def watch(self) -> None:
        """Give up on connections whose oldest request is late: the run cannot hang on one."""
        while True:
            await asyncio.sleep(min(_WATCH_EVERY_S, self.plan.timeout_s / 2))
            late = time.perf_counter() - self.plan.timeout_s
            for connection in list(self.live):
                if connection.sent and connection.sent[0] < late:
                    connection.give_up("timeout", f"no reply in {self.plan.timeout_s} s")

    def fail(self, kind: str, detail: str) -> None:
        self.failures[kind] += 1
        self.first_failure = self.first_failure or f"{kind}: {detail}"

    def lost(self, connection: _Connection) -> None:
        self.live.discard(connection)
        if not self.live:
            self.over.set()
        self.settle()

    def settle(self) -> None:
        if not self.sending and not any(connection.sent for connection in self.live):
            self.drained.set()

    def count(self, us: int) -> None:
        if self.measuring:
            self.latencies.add(us)
            if self.latencies.count == self.plan.requests:
                self.measuring = self.sending = False
                self.over.set()


class _Connection(asyncio.Protocol):
    """One client connection; ``sent`` holds the send times of the requests in flight."""

    __slots__ = ("_closing", "_parser", "_run", "_seen", "_transport", "sent")

    _transport: asyncio.Transport

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._parser = ReplyParser()
        self._closing = False
        self._seen = 0
        self.sent: deque[float] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def start(self, depth: int) -> None:
        if not self._closing:
            self.sent.extend([time.perf_counter()] * depth)
            self._transport.write(self._run.plan.target.request * depth)

    def data_received(self, data: bytes) -> None:
        run, sent = self._run, self.sent
        try:
            replies = self._parser.feed(data)
        except MalformedReply as problem:
            self.give_up("malformed", str(problem))
            return
        now = time.perf_counter()
        for reply in replies:
            if not sent:
                self.give_up("malformed", "a reply to no request")
                return
            run.count(int((now - sent.popleft()) * 1e6))
            self._judge(reply)
        if replies and run.sending:
            self.start(len(replies))
        elif not run.sending:
            run.settle()

    def _judge(self, reply: Reply) -> None:
        run = self._run
        checks, body = run.plan.checks, reply.body
        if reply.status != 200:
            run.fail("status", f"{reply.status} {body[:200]!r}")
            return
        if checks.same_length and len(body) != run.body_bytes:
            if run.body_bytes >= 0:
                run.fail("wrong", f"a body of {len(body)} bytes, not {run.body_bytes}")
            else:
                run.body_bytes = len(body)
        if self._seen % checks.every == 0 and not checks.right(body):
            run.fail("wrong", f"unexpected body {body[:200]!r}")
        self._seen += 1

    def give_up(self, kind: str, detail: str) -> None:
        """Count a failure and leave the run."""
        if not self._closing:
            self._run.fail(kind, detail)
            self.close()
            self._run.lost(self)

    def close(self) -> None:
        self._closing = True
        self.sent.clear()
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._closing:
            self.give_up("closed", f"by the server, {len(self.sent)} in flight, {exc}")


if __name__ == "__main__":
    from penstock.loadtest.blast_cli import main

    raise SystemExit(main())
