"""The robustness proof for gRPC: damaged conversations by the thousand, none of which may hang.

As ``corrupt``, over HTTP/2: sends the attacks of ``mutations_h2``, half-closes, and holds the
server to what it owes: well-formed frames, and the end of the connection. Asks valid questions in
between.

Failures: hang (no end in time), malformed (no frames came), refused (no new connection), wrong (a
valid call was not answered right), internal (a GOAWAY or status that tells of an unexpected
exception), leak (descriptors stay open).
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from penstock.loadtest import children, loops, procstat
from penstock.loadtest.blast import raise_fd_limit
from penstock.loadtest.corrupt import Failure
from penstock.loadtest.mutations_h2 import PREFACE, SERVICE, attack, call, infer_request

_LEAK_FDS = 8
_SETTLE_S_MAX = 5.0
_READ_BYTES = 262_144
_OK = b"\x0bgrpc-status\x010"
_SETTINGS = b"\0\0\0\4\0\0\0\0\0"
PROBE = PREFACE + _SETTINGS + call(1, SERVICE + "ModelInfer", infer_request())


@dataclass(frozen=True, slots=True)
class Siege:
    """One run; it stops early after ``failures_max``, so that it ends on a dead server."""

    host: str
    port: int
    count: int = 100_000
    seed: int = 1
    concurrency: int = 32
    timeout_s: float = 5.0
    probe_every: int = 100
    failures_max: int = 20
    pid: int = 0


@dataclass(frozen=True, slots=True)
class Findings:
    """``kinds``: how each kind of attack was answered: goaway, replies or silence."""

    attacks: int
    probes: int
    failures: Mapping[str, int]
    kinds: Mapping[str, Mapping[str, int]]
    examples: Sequence[str]
    rss_bytes_before: int
    rss_bytes_after: int
    fds_before: int
    fds_after: int

    @property
    def ok(self) -> bool:
        return not self.failures


async def besiege(siege: Siege) -> Findings:
    """Runs all attacks. Bounded: every wait ends at ``timeout_s``."""
    raise_fd_limit(siege.concurrency + 64)
    return await _Run(siege).go()


class _Run:
    def __init__(self, siege: Siege) -> None:
        self.siege = siege
        self.numbers: Iterator[int] = iter(range(siege.count))
        self.failures: Counter[str] = Counter()
        self.kinds: dict[str, Counter[str]] = {}
        self.examples: list[str] = []
        self.attacks = self.probes = 0

    async def go(self) -> Findings:
        for _ in range(50):
            if self.failures.total() < self.siege.failures_max:
                await self.probe("before the first attack")
        pid = self.siege.pid
        before = procstat.read(pid) if pid else None
        async with asyncio.TaskGroup() as group:
            for _ in range(self.siege.concurrency):
                group.create_task(self.work())
        if self.attacks:
            await self.probe("after the last attack")
        after = await self.settled(before.fds) if before else None
        return Findings(
            attacks=self.attacks,
            probes=self.probes,
            failures=dict(self.failures),
            kinds={kind: dict(counts) for kind, counts in sorted(self.kinds.items())},
            examples=self.examples,
            rss_bytes_before=before.rss_bytes if before else 0,
            rss_bytes_after=after.rss_bytes if after else 0,
            fds_before=before.fds if before else 0,
            fds_after=after.fds if after else 0,
        )

    async def work(self) -> None:
        for number in self.numbers:
            if self.failures.total() >= self.siege.failures_max:
                return
            bad = attack(self.siege.seed, number)
            self.attacks += 1
            try:
                outcome = _outcome(await self.exchange(bad.pieces))
            except Failure as failure:
                outcome = failure.kind
                self.failed(failure, f"attack {number} ({bad.kind})")
            self.kinds.setdefault(bad.kind, Counter())[outcome] += 1
            if number % self.siege.probe_every == 0:
                await self.probe(f"after attack {number}")

    async def probe(self, when: str) -> None:
        """A valid call on a new connection must be answered right."""
        self.probes += 1
        try:
            data = await self.exchange((PROBE,), wait_for=_OK)
            if _OK not in data or b"OUTPUT1" not in data:
                raise Failure("wrong", f"a valid call got {data[-200:]!r}")
        except Failure as failure:
            self.failed(failure, f"probe {when}")

    async def exchange(self, pieces: Sequence[bytes], wait_for: bytes = b"") -> bytes:
        """Sends ``pieces``, half-closes, and reads to the end; ``wait_for`` comes before that."""
        data = b""
        try:
            async with asyncio.timeout(self.siege.timeout_s):
                reader, writer = await asyncio.open_connection(self.siege.host, self.siege.port)
                try:
                    for piece in pieces:
                        writer.write(piece)
                        await asyncio.sleep(0)
                    while wait_for and wait_for not in data:
                        more = await reader.read(_READ_BYTES)
                        if not more:
                            return data
                        data += more
                    writer.write_eof()
                    while more := await reader.read(_READ_BYTES):
                        data += more
                finally:
                    writer.transport.abort()
        except TimeoutError:
            raise Failure("hang", f"no end in {self.siege.timeout_s} s, {data[-100:]!r}") from None
        except ConnectionRefusedError as error:
            raise Failure("refused", str(error)) from None
        except OSError:
            pass  # Reset: that is an end too.
        return data

    def failed(self, failure: Failure, where: str) -> None:
        self.failures[failure.kind] += 1
        if len(self.examples) < 20:
            self.examples.append(f"{where}: {failure.kind}: {failure}")

    async def settled(self, fds: int) -> procstat.ProcStat | None:
        """The server after it had time to see that everybody has gone."""
        end = asyncio.get_running_loop().time() + _SETTLE_S_MAX
        try:
            while (now := procstat.read(self.siege.pid)).fds > fds:
                if asyncio.get_running_loop().time() > end:
                    break
                await asyncio.sleep(0.1)
        except ProcessLookupError:
            self.failed(Failure("refused", "the server process is gone"), "at the end")
            return None
        if now.fds > fds + _LEAK_FDS:
            self.failed(Failure("leak", f"{fds} descriptors, then {now.fds}"), "at the end")
        return now


def _outcome(data: bytes) -> str:
    """What came back, frame by frame.

    Raises:
        Failure: it is none of HTTP/2, or tells of a fault of the server's own.
    """
    if b"internal error" in data:
        raise Failure("internal", f"{data[-200:]!r}")
    if data.startswith(b"HTTP/1.1 4"):
        return "HTTP/1.1"
    at, found = 0, "silence"
    while len(data) - at >= 9:
        kind = data[at + 3]
        if kind > 9:
            raise Failure("malformed", f"{data[at : at + 50]!r}")
        if kind == 7 and int.from_bytes(data[at + 13 : at + 17], "big") == 2:
            raise Failure("internal", "GOAWAY with INTERNAL_ERROR")
        found = "goaway" if kind == 7 else "replies" if kind == 1 else found
        at += 9 + int.from_bytes(data[at : at + 3], "big")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 when the server failed."""
    parser = argparse.ArgumentParser(prog="python -m penstock.loadtest.corrupt_h2")
    add = parser.add_argument
    add("--count", type=int, default=100_000)
    add("--seed", type=int, default=1)
    add("--concurrency", type=int, default=32)
    add("--timeout", type=float, default=5.0, metavar="SECONDS")
    add("--json", action="store_true")
    args = parser.parse_args(argv)
    children.leave_on_sigterm()
    with children.add_sub_gateway() as child:
        siege = Siege(
            "127.0.0.1", child.grpc, args.count, args.seed, args.concurrency, args.timeout,
            pid=child.pid,
        )  # fmt: skip
        found = loops.run(besiege(siege))
    print(json.dumps(dataclasses.asdict(found)) if args.json else describe(found))
    return 0 if found.ok else 1


def describe(found: Findings) -> str:
    """For people: totals, a line a kind, examples."""
    mib = 1 / 2**20
    lines = [
        f"{found.attacks} attacks over HTTP/2, {found.probes} probes: "
        + ("ok" if found.ok else f"FAILED {dict(found.failures)}"),
        f"server memory {found.rss_bytes_before * mib:.1f} → {found.rss_bytes_after * mib:.1f} MiB,"
        f" descriptors {found.fds_before} → {found.fds_after}",
    ]
    lines += [f"  {kind:12} {dict(counts)}" for kind, counts in found.kinds.items()]
    return "\n".join([*lines, *found.examples])


if __name__ == "__main__":
    raise SystemExit(main())
