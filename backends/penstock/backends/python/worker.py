"""The program of a worker process: hosts one model and answers over a socket.

Knows the socket's messages and shared memory. Must not need more than the standard library before
it was told what to load, and NumPy after: the interpreter may be another than the server's, with
packages of its own. Run by its path, with the number of the socket's file.

Messages are packets: one letter, for some the number of a segment's slot, and JSON.

====== ========================================= ==========================================
to us                                            answer
====== ========================================= ==========================================
``L``  recipe and limits: make the model         ``l`` specs and whether it streams
``F``  a slot; the next packet carries a file    none: its segment is that slot's now
``D``  a slot: forget its segment                none
``R``  a slot and a header: run on slot 0        ``r`` header of what is in the slot
``S``  as ``R``: begin a stream                  ``o``
``N``  a slot: the stream's next response        ``r``, or ``x`` if there is none
``E``  close the stream                          ``x``
====== ========================================= ==========================================

``e`` answers whatever failed. ``m`` and a number of bytes asks for a larger slot before ``r``; it
is answered by ``F``, or by ``D`` if there is none to be had. The socket's end ends the process.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Generator
from pathlib import Path
from time import perf_counter
from types import FrameType, ModuleType
from typing import Any

PACKET_BYTES_MAX = 64 << 10
_TEXT_MAX = 2000
_TRACE_MAX = 8 << 10
_FORMS_MAX = 256
_SPIN_S = 40e-6
_SOON_S = 100e-6
"""What a wait takes that would have been over within the former, had nobody to be woken."""
_PAUSE_MAX = 256
_PR_SET_PDEATHSIG = 1


class Ear:
    """Receives packets. Where they come fast it looks for the next one for a moment before it
    sleeps, because to be woken on another core takes longer than a small model does; each time that
    was in vain it sleeps at once more often.

    Raises BlockingIOError where the socket's time limit is over, else as ``recv``.
    """

    __slots__ = ("_may_spin", "_pause", "_pause_next", "_receive")

    def __init__(self, peer: socket.socket) -> None:
        self._receive = peer.recv
        self._may_spin = len(os.sched_getaffinity(0)) > 1
        self._pause = self._pause_next = 1

    def packet(self) -> bytes:
        receive, started = self._receive, perf_counter()
        if not self._pause and self._may_spin:
            while perf_counter() - started < _SPIN_S:
                try:
                    packet = receive(PACKET_BYTES_MAX, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    continue
                self._pause_next = 1
                return packet
            self._pause = self._pause_next
            self._pause_next = min(2 * self._pause_next, _PAUSE_MAX)
        packet = receive(PACKET_BYTES_MAX)
        if self._pause and perf_counter() - started < _SOON_S:
            self._pause -= 1
        return packet


class Worker:
    """One model and its memory, by slot. ``calling`` is True while the model's own code runs."""

    def __init__(self, peer: socket.socket) -> None:
        self.calling = False
        self._peer = peer
        self._ear = Ear(peer)
        self._hosted: Any = None
        self._stream: Generator[Any, None, None] | None = None
        self._segments: dict[int, Any] = {}
        self._forms: dict[bytes, Any] = {}
        self._told_of: dict[Any, Any] = {}
        self._kinds: list[Any] = []
        self._packs = False

    def serve(self) -> None:
        """Answers until the socket's other end is closed."""
        answers: dict[int, Callable[[bytes], None]] = {
            ord("R"): self._run, ord("N"): self._next, ord("S"): self._open, ord("E"): self._close,
            ord("L"): self._load, ord("F"): self._take, ord("D"): self._forget,
        }  # fmt: skip
        while packet := self._ear.packet():
            try:
                answers[packet[0]](packet)
            except BaseException as error:
                self.calling = False
                self._fail(error)
        if self._hosted is not None:
            self._hosted.close()

    def interrupted(self, _number: int, _frame: FrameType | None) -> None:
        """Handles SIGINT: the model's code is left, once; nothing else is disturbed."""
        if self.calling:
            self.calling = False
            raise KeyboardInterrupt

    def _load(self, packet: bytes) -> None:
        told = json.loads(packet[1:])
        if told["memory_bytes_max"]:
            import resource

            limit = told["memory_bytes_max"]
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        try:
            from penstock.backends.python import host, memory, options
        except ImportError as error:
            raise RuntimeError(f"{sys.executable} has no NumPy that works: {error}") from error
        self._memory = memory
        self._hosted = host.load(options.Recipe(**told["recipe"]), _imported, own=False)
        self._kinds = [spec.dtype for spec in self._hosted.inputs]
        self._packs = any(spec.dtype.name == "BYTES" for spec in self._hosted.outputs)
        rows = options.spec_rows
        specs = [rows(self._hosted.inputs), rows(self._hosted.outputs)]
        self._answer(b"l", [*specs, self._hosted.streams])

    def _take(self, packet: bytes) -> None:
        _, files, _, _ = socket.recv_fds(self._peer, 1, 1)
        try:
            size = os.fstat(files[0]).st_size
            self._segments[packet[1]] = self._memory.Segment(files[0], size)
        finally:
            os.close(files[0])

    def _forget(self, packet: bytes) -> None:
        self._segments.pop(packet[1], None)

    def _inputs(self, form: bytes) -> list[Any]:
        places = self._forms.get(form)
        if places is None:
            places, _ = self._memory.laid_out(json.loads(form))
            _remember(self._forms, form, places)
        segment = self._segments.get(0)
        return [segment.array(at, k) for at, k in zip(places, self._kinds)] if segment else []  # noqa: B905

    def _run(self, packet: bytes) -> None:
        inputs = self._inputs(packet[2:])
        self.calling = True
        outputs = self._hosted.run(inputs)
        self.calling = False
        del inputs
        self._give(packet[1], outputs)

    def _open(self, packet: bytes) -> None:
        self._stream = self._hosted.stream(self._inputs(packet[2:]))
        self._peer.send(b"o")

    def _next(self, packet: bytes) -> None:
        assert self._stream is not None
        self.calling = True
        outputs = next(self._stream, None)
        self.calling = False
        if outputs is None:
            self._peer.send(b"x")
        else:
            self._give(packet[1], outputs)

    def _close(self, _packet: bytes) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            self.calling = True
            stream.close()
            self.calling = False
        self._peer.send(b"x")

    def _give(self, slot: int, outputs: list[Any]) -> None:
        packet, places, size, flat = self._told(outputs)
        segment = self._segments.get(slot)
        if size and (segment is None or segment.size < size):
            self._answer(b"m", size)
            reply = self._peer.recv(PACKET_BYTES_MAX)
            if reply[:1] != b"F":
                self._forget(reply)
                return  # Whoever asked knows already that there is no memory.
            self._take(reply)
            segment = self._segments[slot]
        if segment is not None:
            segment.write(places, flat)
        self._peer.send(packet)

    def _told(self, outputs: list[Any]) -> tuple[bytes, Any, int, list[Any]]:
        """The answer that tells of ``outputs``, their places, the bytes needed, what to copy."""
        key = tuple([array.shape for array in outputs])
        known = self._told_of.get(key)
        if known is not None:
            return (*known, outputs)
        header, flat = self._memory.stored(outputs)
        places, size = self._memory.laid_out(header)
        packet = _packet(b"r", header)
        if not self._packs:
            _remember(self._told_of, key, (packet, places, size))
        return packet, places, size, flat

    def _answer(self, letter: bytes, value: Any) -> None:
        self._peer.send(_packet(letter, value))

    def _fail(self, error: BaseException) -> None:
        trace = "".join(traceback.format_exception(error.__cause__ or error))
        told = {
            "text": _sayable(str(error)[:_TEXT_MAX]) or type(error).__name__,
            "caller_fault": getattr(error, "caller_fault", False),
            "interrupted": isinstance(error, KeyboardInterrupt),
            "trace": _sayable(trace[-_TRACE_MAX:]),
        }
        self._answer(b"e", told)


def _sayable(text: str) -> str:
    """``text`` without halves of characters, which no encoding has."""
    return text.encode(errors="replace").decode()


def _packet(letter: bytes, value: Any) -> bytes:
    packet = letter + json.dumps(value).encode()
    if len(packet) > PACKET_BYTES_MAX:
        raise ValueError(f"an answer of {len(packet)} bytes is more than fits a packet")
    return packet


def _remember(known: dict[Any, Any], key: Any, value: Any) -> None:
    if len(known) >= _FORMS_MAX:
        known.clear()
    known[key] = value


def _imported(path: Path) -> ModuleType:
    """The model's file as the module that its siblings, and pickles, would import by its name."""
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path.name} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _prepare(parent: int) -> None:
    """Ends with the server, and sooner than it where memory runs out."""
    with contextlib.suppress(ImportError):  # Some interpreters are built without it.
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # It was gone before it could be asked for.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def _stand_in(folders: dict[str, str]) -> None:
    """Makes the packages that hold these modules importable from where they lie, and first."""
    for name, folder in folders.items():
        spec = importlib.util.find_spec(name)
        own = list(spec.submodule_search_locations or ()) if spec else []
        package = ModuleType(name)
        package.__path__ = [*([folder] if folder else []), *own]
        sys.modules[name] = package


def main(arguments: list[str]) -> None:
    """``arguments``: the socket's file, the server's process and the folder of our protocol."""
    file, parent, protocol = arguments
    _prepare(int(parent))
    here = os.path.dirname(os.path.abspath(__file__))
    _stand_in(
        {
            "penstock": "",
            "penstock.backends": os.path.dirname(here),
            "penstock.backends.python": here,
            "penstock.protocol": protocol,
        }
    )
    worker = Worker(socket.socket(fileno=int(file)))
    signal.signal(signal.SIGINT, worker.interrupted)
    worker.serve()


if __name__ == "__main__":
    main(sys.argv[1:])
