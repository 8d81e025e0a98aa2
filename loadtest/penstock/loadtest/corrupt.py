"""The robustness proof: damaged requests by the hundred thousand, none of which may hang.

Sends the attacks of ``mutations`` over many connections at once, holds the server to what it owes
to each, and asks valid questions in between. Knows sockets and time limits. Must not know why an
attack is refused: a well-formed reply of any status, or the end of the connection, is an answer.

Failures: hang (neither came in time), malformed (not HTTP came), refused (no new connection),
wrong (a valid request, slow or a probe, was not answered right), internal (status 500, which tells
of an unexpected exception), leak (descriptors stay open).
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from penstock.loadtest import children, loops, procstat, samples
from penstock.loadtest.blast import raise_fd_limit
from penstock.loadtest.mutations import Attack, Owed, attack
from penstock.loadtest.payload import Payload
from penstock.loadtest.replies import MalformedReply, Reply, ReplyParser

_EOF_AFTER_S = 0.02
_READ_BYTES = 262_144
_LEAK_FDS = 8
_SETTLE_S_MAX = 5.0
_SOURCES = 16


@dataclass(frozen=True, slots=True)
class Siege:
    """One run. ``failures_max``: it stops early after so many, so that it ends on a dead server.

    ``internal_meant``: a body of status 500 that holds one of these is no failure. Triton answers
    some malformed JSON with 500, and who is compatible does so on purpose.
    """

    host: str
    port: int
    payloads: Sequence[Payload]
    count: int = 100_000
    seed: int = 1
    concurrency: int = 64
    timeout_s: float = 5.0
    probe_every: int = 200
    failures_max: int = 20
    pid: int = 0
    internal_meant: tuple[bytes, ...] = (b"Unable to parse",)


@dataclass(frozen=True, slots=True)
class Findings:
    """``outcomes`` by answer (2xx, 4xx, 5xx, closed, dropped by us), ``kinds`` by attack too.

    ``internal``: replies of status 500, meant or not.
    ``examples``: the first failures and meant 500s, with the number that replays them.
    """

    attacks: int
    probes: int
    seconds: float
    failures: Mapping[str, int]
    outcomes: Mapping[str, int]
    kinds: Mapping[str, Mapping[str, int]]
    internal: int
    examples: Sequence[str]
    rss_bytes_before: int
    rss_bytes_after: int
    fds_before: int
    fds_after: int

    @property
    def ok(self) -> bool:
        """Every debt was paid."""
        return not self.failures


class Failure(Exception):
    """The server did not do what it owed; ``kind`` is one of the module's list."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


async def besiege(siege: Siege) -> Findings:
    """Run all attacks. Bounded: every wait ends at ``timeout_s``."""
    raise_fd_limit(siege.concurrency + 64)
    return await _Run(siege).go()


class _Run:
    def __init__(self, siege: Siege) -> None:
        self.siege = siege
        self.numbers: Iterator[int] = iter(range(siege.count))
        self.failures: Counter[str] = Counter()
        self.kinds: dict[str, Counter[str]] = {}
        self.examples: list[str] = []
        self.seen: set[bytes] = set()
        self.attacks = self.probes = self.internal = 0

    async def go(self) -> Findings:
        siege = self.siege
        await self.warm_up()
        before = procstat.read(siege.pid) if siege.pid else None
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for index in range(siege.concurrency):
                group.create_task(self.work(f"127.0.0.{1 + index % _SOURCES}"))
        await self.probe("after the last attack")
        seconds = time.perf_counter() - started
        after = await self.settled(before) if before else None
        outcomes: Counter[str] = sum(self.kinds.values(), Counter())
        return Findings(
            attacks=self.attacks,
            probes=self.probes,
            seconds=seconds,
            failures=dict(self.failures),
            outcomes=dict(outcomes),
            kinds={kind: dict(counts) for kind, counts in sorted(self.kinds.items())},
            internal=self.internal,
            examples=self.examples,
            rss_bytes_before=before.rss_bytes if before else 0,
            rss_bytes_after=after.rss_bytes if after else 0,
            fds_before=before.fds if before else 0,
            fds_after=after.fds if after else 0,
        )

    async def warm_up(self) -> None:
        """So that the memory compared later is that of a server at work."""
        for _ in range(min(100, self.siege.count)):
            await self.probe("before the first attack")
            if self.failures:
                return

    async def work(self, source: str) -> None:
        line = _Line(self.siege, source)
        try:
            for number in self.numbers:
                if self.failures.total() >= self.siege.failures_max:
                    return
                await self.one(line, number)
                if number % self.siege.probe_every == 0:
                    await self.probe(f"after attack {number}")
        finally:
            line.drop()

    async def one(self, line: _Line, number: int) -> None:
        bad = attack(self.siege.payloads, self.siege.seed, number)
        self.attacks += 1
        try:
            outcome, reply = await line.suffer(bad)
        except Failure as failure:
            line.drop()
            outcome, reply = failure.kind, None
            self.failed(failure, f"attack {number} ({bad.kind})")
        self.kinds.setdefault(bad.kind, Counter())[outcome] += 1
        if reply is not None and reply.status == 500:
            self.told_internal(reply.body, f"attack {number} ({bad.kind})")

    def told_internal(self, body: bytes, where: str) -> None:
        self.internal += 1
        if not any(part in body for part in self.siege.internal_meant):
            self.failed(Failure("internal", f"status 500 {body[:200]!r}"), where)
            return
        alike = re.sub(rb"[0-9]+", b"#", body)
        if alike not in self.seen:  # one example of each, or one sort fills the list
            self.seen.add(alike)
            self.example(f"{where}: status 500, meant: {body[:200]!r}")

    async def probe(self, when: str) -> None:
        """A valid request on a new connection must be answered right."""
        payload = self.siege.payloads[self.probes % len(self.siege.payloads)]
        self.probes += 1
        line = _Line(self.siege, "")
        whole = Attack("probe", (payload.http(),), Owed.RIGHT_ANSWER, contains=payload.contains)
        try:
            await line.suffer(whole)
        except Failure as failure:
            self.failed(failure, f"{payload.wire} probe {when}")
        finally:
            line.drop()

    def failed(self, failure: Failure, where: str) -> None:
        self.failures[failure.kind] += 1
        self.example(f"{where}: {failure.kind}: {failure}")

    def example(self, text: str) -> None:
        if len(self.examples) < 20:
            self.examples.append(text)

    async def settled(self, before: procstat.ProcStat) -> procstat.ProcStat | None:
        """The server after it had time to see that everybody has gone."""
        end = time.monotonic() + _SETTLE_S_MAX
        try:
            while (now := procstat.read(self.siege.pid)).fds > before.fds:
                if time.monotonic() > end:
                    break
                await asyncio.sleep(0.1)
        except ProcessLookupError:
            self.failed(Failure("refused", "the server process is gone"), "at the end")
            return None
        if now.fds > before.fds + _LEAK_FDS:
            text = f"{before.fds} descriptors before, {now.fds} after"
            self.failed(Failure("leak", text), "at the end")
        return now


class _Line:
    """One client connection at a time, made anew when the last one is spent."""

    def __init__(self, siege: Siege, source: str) -> None:
        self._siege = siege
        # Several source addresses: each has its own ephemeral ports, which would run out else.
        self._source = (source, 0) if source and siege.host.startswith("127.") else None
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._parser = ReplyParser()

    def drop(self) -> None:
        """Close without ceremony."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def suffer(self, bad: Attack) -> tuple[str, Reply | None]:
        """Attack and wait for what is owed: (outcome, the reply if one came).

        Raises:
            Failure: it did not come.
        """
        reused = self._streams is not None
        try:
            async with asyncio.timeout(self._siege.timeout_s + bad.pause_s * len(bad.pieces)):
                reply = await self._exchange(bad)
        except TimeoutError:
            raise Failure("hang", f"nothing in {self._siege.timeout_s} s") from None
        except MalformedReply as problem:
            raise Failure("malformed", str(problem)) from None
        except OSError:  # reset: the connection has ended
            reply = None
        if bad.owed is Owed.RIGHT_ANSWER:
            if reply is None and reused:  # a server may close between requests: ask it anew
                self.drop()
                return await self.suffer(bad)
            _check_right(bad, reply)
        if reply is None or not bad.reusable or reply.close:
            self.drop()
        if reply is None:
            return ("dropped" if bad.owed is Owed.NOTHING else "closed"), None
        return f"{reply.status // 100}xx", reply

    async def _exchange(self, bad: Attack) -> Reply | None:
        reader, writer = self._streams or await self._connect()
        for index, piece in enumerate(bad.pieces):
            if index:
                await asyncio.sleep(bad.pause_s)
            writer.write(piece)
        if bad.owed is Owed.NOTHING:
            await asyncio.sleep(0)
            return None
        if bad.owed is Owed.AT_EOF:
            try:
                async with asyncio.timeout(_EOF_AFTER_S):
                    return await self._reply(reader, bad)
            except TimeoutError:
                if not writer.is_closing():
                    writer.write_eof()
        return await self._reply(reader, bad)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            self._streams = await asyncio.open_connection(
                self._siege.host, self._siege.port, local_addr=self._source
            )
        except OSError as problem:
            raise Failure("refused", str(problem)) from None
        self._parser = ReplyParser()
        return self._streams

    async def _reply(self, reader: asyncio.StreamReader, bad: Attack) -> Reply | None:
        """The first reply; None when the connection ended without one."""
        while True:
            data = await reader.read(_READ_BYTES)
            if not data:
                if not self._parser.idle:
                    raise MalformedReply("the connection ended within a reply")
                return None
            replies = self._parser.feed(data)
            if replies and bad.reusable and (len(replies) > 1 or not self._parser.idle):
                raise MalformedReply("more than one reply to one request")
            if replies:
                return replies[0]


def _check_right(bad: Attack, reply: Reply | None) -> None:
    if reply is None:
        raise Failure("wrong", "a valid request was not answered")
    if reply.status != 200 or not all(part in reply.body for part in bad.contains):
        raise Failure("wrong", f"a valid request got {reply.status} {reply.body[:200]!r}")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 when the server failed."""
    parser = argparse.ArgumentParser(prog="python -m penstock.loadtest.corrupt")
    add = parser.add_argument
    add("--url", help="the server, which must serve --model; else a gateway is started")
    add("--model", default="add_sub")
    add("--count", type=int, default=100_000)
    add("--seed", type=int, default=1)
    add("--concurrency", type=int, default=64)
    add("--timeout", type=float, default=5.0, metavar="SECONDS")
    add("--pid", type=int, default=0, help="the server's, to compare memory and descriptors")
    add("--json", action="store_true")
    args = parser.parse_args(argv)
    children.leave_on_sigterm()
    with children.at(args.url, args.pid) as (host, port, pid):
        siege = Siege(
            host, port, samples.add_sub(model=args.model), args.count, args.seed,
            args.concurrency, args.timeout, pid=pid,
        )  # fmt: skip
        found = loops.run(besiege(siege))
    print(json.dumps(dataclasses.asdict(found)) if args.json else describe(found))
    return 0 if found.ok else 1


def describe(found: Findings) -> str:
    """For people: totals, a line a kind, examples."""
    mib = 1 / 2**20
    lines = [
        f"{found.attacks} attacks, {found.probes} probes in {found.seconds:.1f} s: "
        + ("ok" if found.ok else f"FAILED {dict(found.failures)}"),
        f"outcomes {dict(found.outcomes)}; status 500: {found.internal}",
        f"server memory {found.rss_bytes_before * mib:.1f} → {found.rss_bytes_after * mib:.1f} MiB,"
        f" descriptors {found.fds_before} → {found.fds_after}",
    ]
    lines += [f"  {kind:12} {dict(counts)}" for kind, counts in found.kinds.items()]
    return "\n".join([*lines, *found.examples])


if __name__ == "__main__":
    raise SystemExit(main())
