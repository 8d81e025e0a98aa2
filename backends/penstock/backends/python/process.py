"""One worker process: started, asked, and ended without a trace.

Knows processes, sockets and ``worker``'s packets. Must not know sessions, or what is in
shared memory; segments are passed on to the process as files.

Contract: the process ends with this one, however that ends; ``end`` leaves no zombie, no file and
no process that it forked. One thread at a time asks. ``signal`` may be called from any thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep
from typing import Final

from penstock.backends.base import LoadError
from penstock.backends.python import worker as python_worker
from penstock.backends.python.memory import Segment, make_segment
from penstock.backends.python.options import Options, Recipe, recipe_json
from penstock.backends.python.output import Drain
from penstock.backends.python.worker import Ear
from penstock.protocol import message

_LOOK_S: Final = 0.05
"""How often a wait for an answer looks whether it shall go on."""
CLOSE_S_MAX: Final = 5.0
"""What a model's own close may take."""
_EXIT_S_MAX: Final = 1.0
"""From the end of its socket to the end of the process."""
_SEND_S_MAX: Final = 10

_SPAWNER: Final = ThreadPoolExecutor(1, thread_name_prefix="python-spawn")
"""The kernel ends a worker when the *thread* that started it ends: this one stays."""


class Ended(Exception):
    """The process is gone. The text continues a sentence that names it; ``last`` is what it said
    last, which is for operators only.
    """

    def __init__(self, how: str, last: str = "") -> None:
        super().__init__(how)
        self.last = last


class Unheard(Ended):
    """The process had gone before it could read what it was told."""


class Process:
    """A worker that was told to load a model.

    ``segments`` are the memory that both have, by slot.

    Raises:
        LoadError: it could not be started.
    """

    def __init__(self, recipe: Recipe, options: Options) -> None:
        self.segments: dict[int, Segment] = {}
        self._memory_mb = options.memory_bytes_max >> 20
        self._ending = threading.Lock()
        self._ended = self._last = ""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        _limit(self._socket, socket.SO_RCVTIMEO, _LOOK_S)
        _limit(self._socket, socket.SO_SNDTIMEO, _SEND_S_MAX)
        self._ear = Ear(self._socket)
        output, pipe = os.pipe()
        try:
            started = _SPAWNER.submit(_spawn, recipe, options, theirs.fileno(), pipe)
            self._process = started.result()
        except (OSError, RuntimeError) as error:  # The latter once this process is on its way out.
            self._socket.close()
            os.close(output)
            why = getattr(error, "strerror", None) or error
            raise LoadError(f"cannot start {options.python}: {why}") from error
        finally:
            theirs.close()
            os.close(pipe)
        self.pid = self._process.pid
        self._drain = Drain(output, recipe.name)
        told = {"recipe": recipe_json(recipe), "memory_bytes_max": options.memory_bytes_max}
        with contextlib.suppress(Ended):  # Found again by who waits for an answer.
            self.tell(b"L" + json.dumps(told).encode())

    def receive(self, watch: Callable[[], None]) -> bytes:
        """The next answer. ``watch`` is called now and then while there is none, and stops the wait
        by raising. The first answer is that the model is made, or why it is not.

        Raises:
            Ended: there is none, and will be none.
        """
        while True:
            try:
                answer = self._ear.packet()
            except BlockingIOError:
                watch()
                # What it forked may hold the socket open.
                if self._gone():
                    raise Ended(self.end(), self._last) from None
                continue
            except OSError:
                answer = b""
            if not answer:
                raise Ended(self.end(_EXIT_S_MAX), self._last)
            return answer

    def tell(self, packet: bytes) -> None:
        """Sends what has no answer.

        Raises:
            Unheard: nobody is there to read it.
        """
        try:
            self._socket.send(packet)
        except OSError:
            raise Unheard(self.end(_EXIT_S_MAX), self._last) from None

    def share(self, slot: int, size: int) -> Segment:
        """Gives ``slot`` a new segment of at least ``size`` bytes.

        Raises:
            OSError: there is no memory for it.
            Unheard: as ``tell``.
        """
        segment, file = make_segment(size)
        try:
            self.tell(b"F" + bytes([slot]))
            socket.send_fds(self._socket, [b"F"], [file])
        except OSError:
            raise Unheard(self.end(_EXIT_S_MAX), self._last) from None
        finally:
            os.close(file)
        self.segments[slot] = segment
        return segment

    def forget(self, slot: int) -> None:
        """Takes the segment of ``slot`` away; whoever still uses it here may go on."""
        if self.segments.pop(slot, None) is not None:
            with contextlib.suppress(Ended):  # Found again by who asks it something.
                self.tell(b"D" + bytes([slot]))

    def signal(self, number: int) -> None:
        """Sends a signal, unless the process has ended or is being ended. Never waits."""
        if self._ending.acquire(blocking=False):
            try:
                if not self._ended:
                    os.kill(self.pid, number)
            finally:
                self._ending.release()

    def end(self, grace_s: float = 0.0) -> str:
        """Ends the process and what it forked; how it ended, in words. Idempotent.

        With ``grace_s`` it is asked first, and may close its model.
        """
        with self._ending:
            if self._ended:
                return self._ended
            until = monotonic() + grace_s
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
            until = max(until, monotonic() + _LOOK_S)
            while not self._gone() and monotonic() < until:
                sleep(0.002)
            killed = not self._gone()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            status = self._process.wait()
            self._socket.close()
            self.segments.clear()
            self._last = self._drain.last(1.0)[:300]
            killed = killed and status == -signal.SIGKILL
            self._ended = "did not end by itself" if killed else self._how(status)
            return self._ended

    def _how(self, status: int) -> str:
        limit = f"; memory_limit_mb is {self._memory_mb}" if self._memory_mb else ""
        if status >= 0:
            return f"ended with status {status}"
        name = signal.Signals(-status).name if -status in signal.valid_signals() else "unknown"
        memory = " (out of memory?)" if -status == signal.SIGKILL else ""
        return f"was ended by signal {-status}, {name}{memory}{limit}"

    def _gone(self) -> bool:
        """Whether it has ended; leaves it to be waited for, so that its number stays its own."""
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            return os.waitid(os.P_PID, self.pid, flags) is not None
        except ChildProcessError:
            return True


def _limit(end: socket.socket, option: int, seconds: float) -> None:
    whole = int(seconds)
    end.setsockopt(
        socket.SOL_SOCKET, option, struct.pack("ll", whole, round((seconds - whole) * 1e6))
    )


def _spawn(recipe: Recipe, options: Options, file: int, output: int) -> subprocess.Popen[bytes]:
    threads = str(recipe.threads)
    numbers = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    protocol = Path(message.__file__).parent
    return subprocess.Popen(
        # -P: what lies beside the program must not hide what the model imports. -B: a model's
        # directory that changes would be loaded again.
        [
            options.python, "-P", "-B", "-u", python_worker.__file__,
            str(file), str(os.getpid()), str(protocol),
        ],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=(file,),
        start_new_session=True,
        env={**os.environ, **dict.fromkeys(numbers, threads)},
    )  # fmt: skip
