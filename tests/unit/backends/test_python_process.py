"""Whatever a model does in its process, the session answers, and nothing is left behind."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import venv
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.backends.base import LoadError, ModelSource, RunError
from penstock.backends.python import PythonBackend
from penstock.backends.python import process as python_process
from penstock.backends.python import session as python_session
from penstock.backends.python import supervisor as python_supervisor
from penstock.backends.python.supervisor import RESTARTS_MAX, WINDOW_S, Restarts

HEAD = """
import ctypes, os, signal, subprocess, sys, threading, time
import numpy as np

class Model:
    inputs = {"x": ("FP32", [-1, 2])}
    outputs = {"y": ("FP32", [-1, 2])}
"""
PID = """
class Model:
    inputs = {"x": ("FP32", [-1, 2])}
    outputs = {"pid": ("INT64", [])}

    def predict(self, x):
        import os
        return os.getpid()
"""
X = np.array([[1, 2]], np.float32)
DEADLY = np.array([[-1, 0]], np.float32)
WAIT_S = 10.0

Load = Callable[..., Any]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """``load(methods, **options)`` loads a class with these methods, in a process."""
    sessions: list[Any] = []

    def load(text: str, **options: str) -> Any:
        if not text.startswith("\nclass"):
            text = HEAD + textwrap.indent(textwrap.dedent(text), "    ")
        (tmp_path / "model.py").write_text(text)
        source = ModelSource("m", tmp_path / "model.py", options=options)
        sessions.append(PythonBackend().load(source))
        return sessions[-1]

    yield load
    for session in sessions:
        session.close()


def on_deadly(statement: str) -> str:
    return f"""
        def predict(self, x):
            if x[0, 0] < 0:
                {statement}
            return x
        """


def failed(session: Any, x: Any = DEADLY) -> str:
    with pytest.raises(RunError) as caught:
        session.run([x])
    assert not caught.value.caller_fault
    return str(caught.value)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(true: Callable[[], bool]) -> bool:
    """Whether it became true; a hang is what the limit is for."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end and not true():
        time.sleep(0.01)
    return true()


def logged(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == level]


# ---------------------------------------------------------------------- ends


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("os._exit(3)", "ended with status 3"),
        ("os.kill(os.getpid(), 9)", "signal 9, SIGKILL (out of memory?)"),
        ("os.abort()", "signal 6, SIGABRT"),
        ("ctypes.string_at(0)", "signal 11, SIGSEGV"),
        ("os.fork() and os._exit(5); time.sleep(600)", "ended with status 5"),
    ],
)
def test_a_process_that_ends_fails_its_run_and_starts_again(
    load: Load, caplog: pytest.LogCaptureFixture, statement: str, said: str
) -> None:
    session = load(on_deadly(statement))
    for _ in range(2):
        error = failed(session)
        assert "the worker process of model 'm'" in error
        assert said in error
        np.testing.assert_array_equal(session.run([X])[0], X)
    ends = logged(caplog, logging.ERROR)
    assert "(1 such ends" in ends[0]
    assert "(2 such ends" in ends[1]


def test_what_it_said_last_is_for_the_log_alone(
    load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    session = load(on_deadly("print('a secret'); os._exit(1)"))
    assert "secret" not in failed(session)
    assert "status 1; it last said: a secret (1 such" in logged(caplog, logging.ERROR)[0]


def test_a_process_that_was_ended_between_runs_costs_no_run(load: Load) -> None:
    session = load(PID)
    pid = int(session.run([X])[0])
    os.kill(pid, signal.SIGKILL)
    assert until(lambda: not alive(pid))
    assert int(session.run([X])[0]) != pid


def test_what_a_caller_holds_outlives_the_process(load: Load) -> None:
    session = load("""
        def predict(self, x):
            if len(x) == 1:
                os._exit(1)
            return x + 1
        """)
    x = np.ones((100_000, 2), np.float32)
    (kept,) = session.run([x])
    failed(session, X)
    (other,) = session.run([2 * x])
    np.testing.assert_array_equal(kept, x + 1)
    np.testing.assert_array_equal(other, 2 * x + 1)


def test_a_server_on_its_way_out_starts_no_process(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = ThreadPoolExecutor(1)
    ended.shutdown()
    monkeypatch.setattr(python_process, "_SPAWNER", ended)
    files = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LoadError, match=r"cannot start .*shutdown"):
        load("def predict(self, x): return x")
    assert len(os.listdir("/proc/self/fd")) == files


def test_too_many_ends_stop_the_restarts_for_a_while(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(python_supervisor, "monotonic", lambda: now[0])
    session = load(on_deadly("os._exit(1)"))
    for _ in range(RESTARTS_MAX):
        assert "status 1" in failed(session)
    for _ in range(3):
        assert f"ended {RESTARTS_MAX} times" in failed(session, X)
    now[0] += WINDOW_S
    np.testing.assert_array_equal(session.run([X])[0], X)


def test_restarts_are_counted_within_a_window() -> None:
    restarts = Restarts()
    for i in range(RESTARTS_MAX):
        assert restarts.wait_s(float(i)) == 0
        restarts.ended(float(i))
    assert restarts.wait_s(20.0) == WINDOW_S - 20
    assert restarts.wait_s(WINDOW_S) == 0
    assert restarts.count(WINDOW_S) == RESTARTS_MAX - 1
    assert restarts.count(10 * WINDOW_S) == 0


def test_a_model_that_changed_its_mind_is_not_served(load: Load, tmp_path: Path) -> None:
    session = load(on_deadly("os._exit(1)"))
    path = tmp_path / "model.py"
    path.write_text(path.read_text().replace('"y"', '"z"'))
    failed(session)
    assert "other inputs or outputs" in failed(session, X)
    assert "closed" in failed(session, X)


def test_a_model_that_can_no_longer_be_made_says_why_in_the_log(
    load: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session = load(on_deadly("os._exit(1)"))
    whole = (tmp_path / "model.py").read_text()
    (tmp_path / "model.py").write_text("1 / 0\n")
    failed(session)
    assert "does not start again" in failed(session, X)
    assert "ZeroDivisionError: division by zero (model.py:1)" in logged(caplog, logging.ERROR)[1]
    (tmp_path / "model.py").write_text(whole)
    np.testing.assert_array_equal(session.run([X])[0], X)


def test_a_stream_whose_process_ends(load: Load) -> None:
    session = load("""
        def predict(self, x):
            yield x
            if x[0, 0] < 0:
                os._exit(4)
        """)
    stream = session.stream([DEADLY])
    next(stream)
    with pytest.raises(RunError, match="status 4"):
        next(stream)
    assert len(list(session.stream([X]))) == 1


@pytest.mark.parametrize("last", ["os._exit(4)", "1 / 0"])
def test_a_stream_that_fails_when_it_is_closed(
    load: Load, caplog: pytest.LogCaptureFixture, last: str
) -> None:
    session = load(f"""
        def predict(self, x):
            try:
                yield x
                yield x
            finally:
                if x[0, 0] < 0:
                    {last}
        """)
    stream = session.stream([DEADLY])
    next(stream)
    stream.close()
    assert len(logged(caplog, logging.ERROR)) == 1
    assert len(list(session.stream([X]))) == 2


def test_a_response_that_is_too_large_ends_its_stream(load: Load) -> None:
    text = "def predict(self, x):\n    yield x\n    yield np.ones((1 << 20, 2))\n    yield x\n"
    session = load(text, message_limit_mb="1")
    for _ in range(2):
        stream = session.stream([X])
        np.testing.assert_array_equal(next(stream)[0], X)
        with pytest.raises(RunError, match="message_limit_mb"):
            next(stream)


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ("def __init__(self): os._exit(3)", "ended with status 3"),
        ("def __init__(self): ctypes.string_at(0)", "SIGSEGV"),
        ("def __init__(self): print('Aargh'); os._exit(0)", "it last said: Aargh"),
        ("def __init__(self): os.close(int(sys.argv[1])); time.sleep(600)", "did not end"),
    ],
)
def test_a_constructor_that_ends_the_process(load: Load, methods: str, said: str) -> None:
    with pytest.raises(LoadError) as caught:
        load(methods + "\ndef predict(self, x): return x\n")
    assert said in str(caught.value)
    assert "model.py" in str(caught.value)


# ---------------------------------------------------------------------- limits


def test_memory_is_limited(load: Load) -> None:
    session = load(on_deadly("return np.ones((1 << 30, 2))"), memory_limit_mb="1000")
    assert "MemoryError" in failed(session) or "Unable to allocate" in failed(session)
    np.testing.assert_array_equal(session.run([X])[0], X)
    pid = session._supervisor._process.pid
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert f"Max data size             {1000 << 20}" in limits
    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "500"


def test_messages_are_limited(load: Load) -> None:
    text = "def predict(self, x): return np.repeat(x, 1000, axis=0) if x[0, 0] < 0 else x"
    session = load(text, message_limit_mb="1")
    large = np.ones((1 << 18, 2), np.float32)
    with pytest.raises(RunError, match=r"the inputs need .* message_limit_mb is 1") as caught:
        session.run([large])
    assert caught.value.caller_fault
    for _ in range(2):
        assert "the outputs need" in failed(session, -np.ones((1000, 2), np.float32))
        half = large[: 1 << 17]
        np.testing.assert_array_equal(session.run([half])[0], half)


def test_a_run_that_takes_too_long_is_interrupted_and_the_process_stays(load: Load) -> None:
    text = """
        def predict(self, x):
            if x[0, 0] < 0:
                time.sleep(600)
            return np.full((1, 2), os.getpid() % 4096, np.float32)
        """
    session = load(text, timeout_s="1")
    (before,) = session.run([X])
    assert "longer than 1 s, its timeout_s" in failed(session)
    np.testing.assert_array_equal(session.run([X])[0], before)


def test_a_run_that_will_not_stop_ends_with_its_process(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(python_session, "GRACE_S", 0.2)
    session = load(
        """
        def predict(self, x):
            while x[0, 0] < 0:
                try:
                    time.sleep(600)
                except KeyboardInterrupt:
                    pass
            return x
        """,
        timeout_s="1",
    )
    pid = session._supervisor._process.pid
    assert "timeout_s" in failed(session)
    assert not alive(pid)
    np.testing.assert_array_equal(session.run([X])[0], X)


def test_a_run_can_be_interrupted(load: Load, tmp_path: Path) -> None:
    mark = tmp_path / "running"
    session = load(f"""
        def predict(self, x):
            if x[0, 0] < 0:
                open({str(mark)!r}, "w").close()
                time.sleep(600)
            return np.full((1, 2), os.getpid() % 4096, np.float32)
        """)
    (before,) = session.run([X])
    session.interrupt()

    def interrupt() -> None:
        until(mark.exists)
        session.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert "interrupted" in failed(session)
    thread.join()
    np.testing.assert_array_equal(session.run([X])[0], before)


# ---------------------------------------------------------------------- nothing is left behind


def test_what_a_model_forked_ends_with_it(load: Load, tmp_path: Path) -> None:
    mark = tmp_path / "child"
    session = load(f"""
        def predict(self, x):
            child = subprocess.Popen(["sleep", "600"])
            with open({str(mark)!r}, "w") as file:
                file.write(str(child.pid))
            return x
        """)
    session.run([X])
    child = int(mark.read_text())
    assert alive(child)
    session.close()
    assert until(lambda: not alive(child))


def test_sessions_leave_no_files_threads_or_zombies(load: Load) -> None:
    load(on_deadly("os._exit(1)")).close()  # Whatever is made once is made now.
    gc.collect()

    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    before = held()
    pids = []
    for _ in range(3):
        session = load(on_deadly("os._exit(1)"))
        clone = session.clone()
        large = np.ones((100_000, 2), np.float32)
        for one in (session, clone):
            kept = [one.run([large])[0] for _ in range(6)]
            failed(one)
            kept += one.run([large])
            pids.append(one._supervisor._process.pid)
            del kept
            one.close()
    gc.collect()
    assert all(now <= then for now, then in zip(held(), before, strict=True))
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_memory_is_used_again_and_large_memory_is_given_back(load: Load) -> None:
    session = load("def predict(self, x): return x")
    segments = session._supervisor._process.segments
    x = np.ones((100_000, 2), np.float32)
    for _ in range(20):
        session.run([x])
    assert sorted(segments) == [0, 1]
    kept = [session.run([x])[0] for _ in range(8)]
    assert sorted(segments) == [0, 1, 2, 3, 4]
    for i, array in enumerate(kept):
        for other in kept[i + 1 :]:
            assert not np.shares_memory(array, other)
    del kept, array, other
    huge = np.ones((10_000_000, 2), np.float32)
    session.run([huge])
    assert all(s.size <= python_session.KEPT_BYTES_MAX for s in segments.values())


def test_a_worker_ends_with_its_server(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        HEAD
        + "    def predict(self, x):\n        open('busy', 'w').close()\n        time.sleep(600)"
    )
    program = """
import threading, time
import numpy as np
from pathlib import Path
from penstock.backends.base import ModelSource
from penstock.backends.python import PythonBackend
made = []
load = lambda: made.append(PythonBackend().load(ModelSource("m", Path("model.py"))))
thread = threading.Thread(target=load)
thread.start()
thread.join()
print(made[0]._supervisor._process.pid, flush=True)
made[0].run([np.ones((1, 2), np.float32)])
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        worker = int(server.stdout.readline())
        # The thread that loaded it has ended, and it still runs.
        assert until((tmp_path / "busy").exists)
        assert alive(worker)
        server.kill()
    assert until(lambda: not alive(worker))


# ---------------------------------------------------------------------- what it says


def test_what_a_model_prints_is_logged_and_never_stops_it(
    load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    session = load("""
        def predict(self, x):
            print("hello")
            print("to err", file=sys.stderr)
            print("w" * 1_000_000)
            for i in range(100_000):
                print("flood", i)
            return x
        """)
    np.testing.assert_array_equal(session.run([X])[0], X)
    session.close()
    lines = logged(caplog, logging.INFO)
    assert lines[:2] == ["model m: hello", "model m: to err"]
    assert max(map(len, lines)) < 3000
    assert len(lines) < 10_000
    assert lines[-1].endswith("more lines, too many to log)")


def test_an_error_of_any_size_or_script_comes_through(load: Load) -> None:
    session = load("def predict(self, x): raise ValueError('\\0\\ud800ä' * 100_000)")
    assert "ValueError" in failed(session)
    assert "ValueError" in failed(session)


# ---------------------------------------------------------------------- another interpreter


def test_an_interpreter_of_its_own(load: Load, tmp_path: Path) -> None:
    folder = tmp_path / "venv"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    text = """
class Model:
    inputs = {"x": ("FP32", [-1, 2])}
    outputs = {"told": ("BYTES", [2])}

    def predict(self, x):
        import sys
        from penstock.backends.python.model import BadInput
        return [sys.prefix, str("msgspec" in sys.modules)]
"""
    with pytest.raises(LoadError, match="venv/bin/python has no NumPy that works"):
        load(text, python=str(python))
    # NumPy and nothing else.
    (packages,) = folder.glob("lib/python*/site-packages")
    numpy = Path(np.__file__).parent
    for package in (numpy, *numpy.parent.glob("numpy.libs")):
        (packages / package.name).symlink_to(package)
    session = load(text, python=str(python))
    assert list(session.run([X])[0]) == [str(folder).encode(), b"False"]


@pytest.mark.parametrize(
    ("python", "said"),
    [
        ("/no/such/python", "there is no such program"),
        ("false", "ended with status 1"),
        ("true", "ended with status 0"),
    ],
)
def test_what_is_no_interpreter_is_refused(load: Load, python: str, said: str) -> None:
    with pytest.raises(LoadError, match=said):
        load(PID, python=python)


# ---------------------------------------------------------------------- a worker that is not ours

IMPOSTOR = """
import socket, sys
peer = socket.socket(fileno=int(sys.argv[-3]))
peer.recv(65536)
peer.send({loaded!r})
answers = {answers!r}
while peer.recv(65536):
    if answers:
        peer.send(answers.pop(0))
"""
LOADED = b'l[[["x","FP32",[-1,2]]],[["y","FP32",[-1,2]]],false]'
NONSENSE = [
    b"r", b"rnull", b"r[]", b"r[[[1,2],8],[[1,2],8]]", b"r[[[1,2],9]]", b"r[[[-1,-2],8]]",
    b"r[[[1,2],-8]]", b"r[[[1073741824,2],8589934592]]", b"r[[[1,2.5],8]]", b"r\xff", b"q", b"x",
    b"l[]", b"e", b"e[]", b'e{"text":"no more"}', b'e{"text":1,"caller_fault":2}', b"mmm", b"m-",
    b"m99999999999999999999999999",
]  # fmt: skip


def impostor(tmp_path: Path, loaded: bytes, answers: list[bytes]) -> str:
    """An interpreter that runs another program than it is told to."""
    program, python = tmp_path / "impostor.py", tmp_path / "python"
    program.write_text(IMPOSTOR.format(loaded=loaded, answers=answers))
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {program} "$@"\n')
    python.chmod(0o755)
    return str(python)


def test_a_worker_that_speaks_nonsense_harms_its_own_runs_only(load: Load, tmp_path: Path) -> None:
    session = load(PID, python=impostor(tmp_path, LOADED, list(NONSENSE)))
    for nonsense in NONSENSE:
        assert failed(session, X), nonsense


@pytest.mark.parametrize(
    "loaded",
    [b"l", b"l[]", b"l{}", b"e", b"q", b"e{}", LOADED.replace(b"FP32", b"FP31"), b"l\xff", b"r[]"],
)
def test_a_worker_that_loads_nonsense_is_refused(load: Load, tmp_path: Path, loaded: bytes) -> None:
    with pytest.raises(LoadError, match="nonsense"):
        load(PID, python=impostor(tmp_path, loaded, []))
