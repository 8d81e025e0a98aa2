"""The command line of ``blast``, and how another process runs it and reads its result.

Knows flags, files and JSON. Kept apart so that starting the generator imports nothing heavy.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from penstock.loadtest import blast, loops
from penstock.loadtest.blast import Checks, Plan, Result, Target
from penstock.loadtest.payload import build_request

_GRACE_S = 30.0


def host_port_path(url: str) -> tuple[str, int, str]:
    """The parts of ``http://host:port/path``.

    Raises:
        ValueError: it is something else.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"{url!r} is not http://host:port/path")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return parts.hostname, parts.port or 80, path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m penstock.loadtest.blast")
    add = parser.add_argument
    add("--url", required=True, help="http://host:port/path")
    add("--body-file", type=Path, help="the request body (GET without it)")
    add("--header", action="append", default=[], metavar="'NAME: VALUE'")
    add("--raw-file", type=Path, help="the whole request as sent; instead of body and headers")
    add("--connections", type=int, default=8)
    add("--pipeline", type=int, default=1, help="requests in flight a connection")
    add("--seconds", type=float, default=5.0)
    add("--requests", type=int, default=0, help="stop after this many (0: by time only)")
    add("--warmup", type=float, default=0.3, metavar="SECONDS")
    add("--timeout", type=float, default=10.0, metavar="SECONDS")
    add("--idle", type=int, default=0, help="extra connections that stay silent")
    add("--contains-file", type=Path, action="append", default=[], help="bytes in a right reply")
    add("--any-length", action="store_true", help="replies may differ in length")
    add("--watch-pid", type=int, default=0, help="report this process's CPU time")
    add("--json", action="store_true")
    return parser


def _plan(args: argparse.Namespace) -> Plan:
    host, port, path = host_port_path(args.url)
    if args.raw_file:
        request = args.raw_file.read_bytes()
    else:
        headers = dict(_header(line) for line in args.header)
        body = args.body_file.read_bytes() if args.body_file else b""
        request = build_request(path, body, headers, host=f"{host}:{port}")
    return Plan(
        target=Target(host, port, request),
        connections=args.connections,
        seconds=args.seconds,
        requests=args.requests,
        warmup_s=args.warmup,
        pipeline=args.pipeline,
        idle=args.idle,
        timeout_s=args.timeout,
        checks=Checks(
            same_length=not args.any_length,
            contains=tuple(path.read_bytes() for path in args.contains_file),
        ),
        watch_pid=args.watch_pid,
    )


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon:
        raise ValueError(f"header {line!r} has no colon")
    return name.strip(), value.strip()


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 when anything failed, 2 for a wrong command line."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        plan = _plan(args)
    except (OSError, ValueError) as problem:
        parser.error(str(problem))
    result = loops.run(blast.run(plan))
    if args.json:
        print(json.dumps(dataclasses.asdict(result)))
    else:
        print(describe(result))
    return 1 if result.errors else 0


def describe(result: Result) -> str:
    """One line for people."""
    line = (
        f"{result.requests} requests in {result.seconds:.2f} s = {result.rps:.0f}/s; "
        f"p50 {result.p50_us} p90 {result.p90_us} p99 {result.p99_us} max {result.max_us} µs; "
        f"errors {result.errors}"
    )
    return line + (f" ({dict(result.failures)}; {result.first_failure})" if result.errors else "")


def run_apart(plan: Plan) -> Result:
    """Run ``plan`` in a process of its own and wait for it; ``check`` callables cannot go along.

    Raises:
        ValueError: the plan has a ``check``.
        RuntimeError: the process did not bring a result.
    """
    if plan.checks.check is not None:
        raise ValueError("a check callable cannot be sent to another process")
    with tempfile.TemporaryDirectory(prefix="penstock-blast-") as folder:
        command = [sys.executable, "-m", "penstock.loadtest.blast", *_flags(plan, Path(folder))]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=plan.warmup_s + plan.seconds + plan.timeout_s + _GRACE_S,
        )
    try:
        fields: Mapping[str, Any] = json.loads(done.stdout)
        return Result(**fields)
    except (ValueError, TypeError) as problem:
        raise RuntimeError(f"no result from the load generator: {done.stderr[-2000:]}") from problem


def _flags(plan: Plan, folder: Path) -> list[str]:
    raw = folder / "request"
    raw.write_bytes(plan.target.request)
    flags = {
        "--url": f"http://{plan.target.host}:{plan.target.port}/",
        "--raw-file": raw,
        "--connections": plan.connections,
        "--pipeline": plan.pipeline,
        "--seconds": plan.seconds,
        "--requests": plan.requests,
        "--warmup": plan.warmup_s,
        "--timeout": plan.timeout_s,
        "--idle": plan.idle,
        "--watch-pid": plan.watch_pid,
    }
    words = ["--json", *(str(word) for pair in flags.items() for word in pair)]
    for index, part in enumerate(plan.checks.contains):
        path = folder / f"contains{index}"
        path.write_bytes(part)
        words += ["--contains-file", str(path)]
    return words if plan.checks.same_length else [*words, "--any-length"]
