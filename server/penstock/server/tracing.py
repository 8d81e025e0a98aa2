"""Traces of single requests: which are traced, what is noted, and where it goes.

Knows jobs and the trace settings. Must not know wires.

A trace is written when its request is answered: to the file of its settings as Triton writes it, a
JSON array of objects {id, model_name, model_version, ...} and {id, timestamps: [{name, ns}]}, with
tensors as {id, activity, tensor}; or to the log where there is no file. Files are written by a
thread and are valid JSON at each moment between two writes; what cannot be written in time or at
all is dropped and counted, never waited for.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from penstock.protocol.message import Array, TensorSpec
from penstock.server.job import Job
from penstock.server.trace_settings import MODELS_MAX, TraceBook, TraceSettings

_log = logging.getLogger(__name__)

PENDING_MAX: Final = 4096
"""Traces that wait to be written."""
PENDING_CHARS_MAX: Final = 64 << 20
"""Of tensors in them."""
ELEMENTS_MAX: Final = 4096
"""Elements of a tensor that are written; of more, that many and a mark."""
CHARS_MAX: Final = 128 << 10
"""Of these elements together: enough for any numbers."""
_FLUSH_S: Final = 0.5


class _Counter:
    """Where one model stands in its settings: requests seen, traces still to be made."""

    __slots__ = ("left", "seen", "settings")

    def __init__(self, settings: TraceSettings) -> None:
        self.settings = settings
        self.seen = 0
        self.left = settings.count


class Tracer:
    """Samples the requests of one server. Used on the event loop alone."""

    def __init__(self, start: TraceSettings | None = None) -> None:
        self.book = TraceBook(start, self._reset)
        self.dropped = 0
        self._counters: dict[str, _Counter] = {}
        self._next_id = 1
        self._pending: list[tuple[TraceSettings, list[dict[str, Any]]]] = []
        self._pending_chars = 0
        self._sink = TraceSink()
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Future[None] | None = None
        self.on = False
        """Whether any request may be traced: all that an untraced server looks at."""
        self._reset()

    def _reset(self) -> None:
        # Counting starts anew for whoever's settings changed, and goes on for the others.
        self._counters = {
            name: counter
            for name, counter in self._counters.items()
            if counter.settings == self.book.of(name)
        }
        self.on = any(self.book.of(name).on for name in ("", *self.book.models))

    def sample(self, job: Job, model: str) -> None:
        """Lets ``job``, which ``model`` just accepted, be traced if it is its turn."""
        counter = self._counters.get(model)
        if counter is None:
            if len(self._counters) >= MODELS_MAX:
                self._counters.clear()
            counter = self._counters[model] = _Counter(self.book.of(model))
        settings = counter.settings
        if not settings.on or not counter.left:
            return
        counter.seen += 1
        if counter.seen % settings.rate:
            return
        done = job.on_done
        job.times = ()

        def traced(job: Job) -> None:
            inputs: list[dict[str, Any]] = []
            try:
                if counter.left:  # others may have been faster
                    inputs = _tensors(job.request.signature.tensors, job.request.arrays, settings)
            finally:
                done(job)
            if counter.left:
                counter.left -= counter.left > 0
                self._add(settings, job, inputs)

        job.on_done = traced

    def _add(self, settings: TraceSettings, job: Job, inputs: list[dict[str, Any]]) -> None:
        if len(self._pending) >= PENDING_MAX or self._pending_chars >= PENDING_CHARS_MAX:
            self.dropped += 1
            return
        parts = _trace(self._next_id, settings, job, inputs)
        self._next_id += 1
        self._pending.append((settings, parts))
        self._pending_chars += sum(
            len(part["tensor"]["data"]) for part in parts if "tensor" in part
        )
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_FLUSH_S, self._flush)

    def _flush(self) -> None:
        self._timer = None
        if self._writing is not None and not self._writing.done():
            self._timer = asyncio.get_running_loop().call_later(_FLUSH_S, self._flush)
            return
        pending, self._pending, self._pending_chars = self._pending, [], 0
        loop = asyncio.get_running_loop()
        self._writing = loop.run_in_executor(None, self._sink.write, pending)

    async def close(self) -> None:
        """Writes what is pending."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writing is not None:
            await self._writing
        if self._pending:
            self._flush()
        if self._writing is not None:
            await self._writing


class TraceSink:
    """Writes traces; used by one thread at a time. Never raises."""

    def __init__(self) -> None:
        self._written: dict[str, int] = {}
        """Traces in each file of this process."""

    def write(self, traces: Sequence[tuple[TraceSettings, list[dict[str, Any]]]]) -> None:
        files: dict[Path, list[dict[str, Any]]] = {}
        for settings, parts in traces:
            if not settings.file:
                for part in parts:
                    _log.info("trace %s", json.dumps(part))
                continue
            count = self._written.get(settings.file, 0)
            self._written[settings.file] = count + 1
            path = Path(settings.file)
            if settings.log_frequency:
                path = path.with_name(f"{path.name}.{count // settings.log_frequency}")
            files.setdefault(path, []).extend(parts)
        for path, parts in files.items():
            try:
                _append(path, parts)
            except (OSError, ValueError) as error:
                _log.error("traces cannot be written to %s: %s", path, error)


def _append(path: Path, parts: Sequence[dict[str, Any]]) -> None:
    """Adds elements to the JSON array in ``path``, in place of its closing bracket."""
    body = ",\n".join(map(json.dumps, parts)).encode()
    with path.open("r+b" if path.exists() else "w+b") as file:
        end = file.seek(0, 2)
        file.seek(max(end - 1, 0))
        if end and file.read(1) != b"]":
            raise OSError("this file is not a trace")
        file.seek(max(end - 1, 0))
        file.write((b",\n" if end else b"[") + body + b"]")


def _trace(
    number: int, settings: TraceSettings, job: Job, inputs: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    lane = job.lane
    first = {"id": number, "model_name": lane.name, "model_version": int(lane.version)}
    if job.request.id:
        first["request_id"] = job.request.id
    parts: list[dict[str, Any]] = [first]
    if "TIMESTAMPS" in settings.level:
        stamps = [{"name": name, "ns": ns} for name, ns in _timestamps(job)]
        parts.append({"id": number, "timestamps": stamps})
    if "TENSORS" in settings.level:
        outputs: list[dict[str, Any]] = []
        if job.reply is not None:
            outputs = _tensors(job.reply.signature.tensors, job.reply.arrays, settings)
        for activity, tensors in (("QUEUE_INPUT", inputs), ("BACKEND_OUTPUT", outputs)):
            parts += [
                {"id": number, "activity": f"TENSOR_{activity}", "tensor": tensor}
                for tensor in tensors
            ]
    return parts


def _timestamps(job: Job) -> list[tuple[str, int]]:
    """Monotonic nanoseconds under Triton's names; an unanswered job has no compute phases."""
    stamps = [("REQUEST_START", job.arrived_ns), ("QUEUE_START", job.arrived_ns)]
    times = job.times
    if times:
        names = ("COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_END")
        stamps += zip(names, times, strict=True)
        stamps.append(("REQUEST_END", times[-1]))
    return stamps


def _tensors(
    specs: Sequence[TensorSpec], arrays: Sequence[Array], settings: TraceSettings
) -> list[dict[str, Any]]:
    if "TENSORS" not in settings.level or not arrays:  # those of a job that never ran are gone
        return []
    return [
        {
            "name": spec.name,
            "data": _values(array),
            "shape": ",".join(map(str, array.shape)),
            "dtype": str(spec.dtype),
        }
        for spec, array in zip(specs, arrays, strict=True)
    ]


def _values(array: Array) -> str:
    flat = np.asarray(array).reshape(-1)
    shown: list[str] = []
    room, cut = CHARS_MAX, flat.size > ELEMENTS_MAX
    for item in flat[:ELEMENTS_MAX].tolist():
        text = item[:CHARS_MAX].decode("utf-8", "replace") if isinstance(item, bytes) else str(item)
        shown.append(text[:room])
        room -= len(text) + 1
        if room < 0:
            cut = True
            break
    return ",".join([*shown, "..."] if cut else shown)
