"""nghttp2's h2load as a gRPC client: lighter than perf_analyzer, so it finds a server's ceiling.

Knows h2load's flags and log, gRPC's frame around a message, and the few fields of a ModelInfer
request. Must not know which server answers. It sends one request again and again and does not look
into replies; that they are results is seen by their size, as a gRPC error has no message.
"""

from __future__ import annotations

import re
import shutil
import statistics
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock.loadtest import fetched

RUN_S_MAX = 120
_PATH = "/inference.GRPCInferenceService/ModelInfer"
_SPEED = re.compile(r"finished in .*?, ([0-9.]+) req/s")
_COUNTS = re.compile(r"requests: .*? (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout")
_DATA = re.compile(r"\((\d+)\) data$", re.MULTILINE)


class Failed(Exception):
    """It did not measure, or not every reply was a result."""


@dataclass(frozen=True, slots=True)
class Report:
    """Calls a second and latencies in µs."""

    calls_s: float
    p50_us: float
    p99_us: float
    calls: int


def program() -> str:
    """
    Raises:
        fetched.Unobtainable: it is not installed.
    """
    found = shutil.which("h2load")
    if found is None:
        raise fetched.Unobtainable("h2load is missing: apt install nghttp2-client")
    return found


def message(model: str, inputs: Sequence[tuple[str, str, Sequence[int], bytes]]) -> bytes:
    """A ModelInferRequest with (name, datatype, shape, raw contents) of each input."""
    parts = [_field(1, model.encode())]
    for name, datatype, shape, _ in inputs:
        sizes = b"".join(_varint(size) for size in shape)
        tensor = _field(1, name.encode()) + _field(2, datatype.encode()) + _field(3, sizes)
        parts.append(_field(5, tensor))
    parts += [_field(7, raw) for *_, raw in inputs]
    return b"".join(parts)


def run(
    authority: str, request: bytes, reply_bytes_min: int, seconds: float, *, at_once: int = 32
) -> Report:
    """Calls with ``request`` for about ``seconds``, ``at_once`` of them in flight over four
    connections; every reply must have ``reply_bytes_min`` bytes.

    Raises:
        Failed: something was refused, lost or too small.
    """
    with tempfile.TemporaryDirectory(prefix="penstock-h2load-") as folder:
        data, log = Path(folder, "data"), Path(folder, "log")
        data.write_bytes(struct.pack(">BI", 0, len(request)) + request)
        connections = min(4, at_once)
        command = [
            program(), f"http://{authority}{_PATH}", "-d", str(data), "-c", str(connections),
            "-m", str(at_once // connections), "-t", "1", "-D", str(max(1, round(seconds))),
            "-H", "content-type: application/grpc", "-H", "te: trailers", f"--log-file={log}",
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=RUN_S_MAX
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"h2load did not end in {RUN_S_MAX} s") from None
        return _report(done.stdout, done.stderr, reply_bytes_min, log)


def _report(said: str, complained: str, reply_bytes_min: int, log: Path) -> Report:
    speed, counts, data = _SPEED.search(said), _COUNTS.search(said), _DATA.search(said)
    if speed is None or counts is None or data is None:
        raise Failed(f"h2load told no result\n{said}{complained}")
    done, *bad = map(int, counts.groups())
    # In a run by time what is in flight at its end counts as begun, not as failed.
    if not done or any(bad) or int(data[1]) < done * reply_bytes_min:
        raise Failed(f"h2load: not every reply was a result\n{said}{complained}")
    spent_us = sorted(int(line.split("\t")[2]) for line in log.read_text().splitlines())
    return Report(
        calls_s=float(speed[1]),
        p50_us=statistics.median(spent_us),
        p99_us=spent_us[min(len(spent_us) - 1, len(spent_us) * 99 // 100)],
        calls=done,
    )


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
