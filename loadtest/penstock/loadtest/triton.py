"""NVIDIA's Triton, a real one, to compare with: fetched from the package registry and started.

The wheel of nvidia-pytriton holds the ``tritonserver`` binary with its Python backend and nothing
else, no GPU needed. For models in ONNX, ``add_onnxruntime`` gives it a backend in C of ours
(``triton_onnxruntime.c``), as NVIDIA's own comes in a container only. Knows that wheel, the flags
and the environment that the binary needs. Must not know which models it serves, nor what is asked
of it.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from penstock.loadtest import fetched

VERSION = "2.51.0"
WHEEL = "nvidia-pytriton==0.7.0"
READY_S_MAX = 120.0
_GOING_S_MAX = 40.0
"""Beyond the 30 s that Triton gives its models."""
_STUB = "triton_python_backend_stub"
_BACKEND = Path(__file__).with_name("triton_onnxruntime.c")


@dataclass(frozen=True, slots=True)
class Triton:
    """A running server; ``log`` is what it wrote."""

    pid: int
    http: int
    grpc: int
    metrics: int
    log: Path

    def pids(self) -> list[int]:
        """The server's and those of its Python models."""
        return [self.pid, *_children(self.pid)]


def fetch(*packages: str) -> Path:
    """Triton's environment, with what its models need besides NumPy.

    Raises:
        fetched.Unobtainable: not for this machine, or no network.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise fetched.Unobtainable("tritonserver is to be had for x86-64 Linux only")
    # Its backend reads arrays as NumPy 1 laid them out.
    environment = fetched.venv("triton", ["--no-deps", WHEEL], ["numpy<2", *packages])
    home = _home(environment)
    (home / "bin" / "tritonserver").chmod(0o755)
    stub = home / "backends" / "python" / _STUB
    if not stub.exists():
        ours = home / "python_backend_stubs" / "{}.{}".format(*sys.version_info) / _STUB
        if not ours.exists():
            raise fetched.Unobtainable(f"Triton has no Python backend for {sys.version}")
        half = stub.with_suffix(f".{os.getpid()}")
        shutil.copy(ours, half)
        half.chmod(0o755)
        half.rename(stub)
    return environment


def add_onnxruntime(environment: Path) -> None:
    """Builds the backend ``onnxruntime`` with the ONNX Runtime of an environment.

    Raises:
        fetched.Unobtainable: there is no C compiler.
    """
    folder = _home(environment) / "backends" / "onnxruntime"
    made = folder / "libtriton_onnxruntime.so"
    if made.exists() and made.stat().st_mtime > _BACKEND.stat().st_mtime:
        return
    compiler = shutil.which("cc")
    if compiler is None:
        raise fetched.Unobtainable("Triton's backend needs a C compiler: apt install gcc")
    folder.mkdir(exist_ok=True)
    runtime = folder / "libonnxruntime.so.1"
    (library,) = fetched.packages(environment).glob("onnxruntime/capi/libonnxruntime.so.*")
    shutil.copy(library, runtime)
    half = made.with_suffix(f".{os.getpid()}")
    command = [
        compiler, "-O2", "-shared", "-fPIC", "-o", str(half), str(_BACKEND), str(runtime),
        "-Wl,-rpath,$ORIGIN",
    ]  # fmt: skip
    subprocess.run(command, check=True)
    half.rename(made)


@contextmanager
def serving(environment: Path, repository: Path, *flags: str) -> Iterator[Triton]:
    """Triton over a model repository, on free ports of 127.0.0.1.

    Raises:
        RuntimeError: it ended or was not live within ``READY_S_MAX``; tells what it wrote.
    """
    home = _home(environment)
    http, grpc, metrics = _free_ports(3)
    command = [
        str(home / "bin" / "tritonserver"), f"--model-repository={repository}",
        f"--backend-directory={home / 'backends'}",
        "--http-address=127.0.0.1", f"--http-port={http}",
        "--grpc-address=127.0.0.1", f"--grpc-port={grpc}", f"--metrics-port={metrics}", *flags,
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="penstock-triton-") as folder:
        log = Path(folder, "log")
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                env=_variables(environment),
            )  # fmt: skip
        try:
            _wait_live(process, http, log)
            yield Triton(process.pid, http, grpc, metrics, log)
        finally:
            _end(process)


def _home(environment: Path) -> Path:
    return fetched.packages(environment) / "pytriton" / "tritonserver"


def _variables(environment: Path) -> dict[str, str]:
    """The backend embeds Python: it finds the library and, by ``python3``, the packages."""
    return {
        **os.environ,
        "LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR"),
        "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
    }


def _free_ports(count: int) -> list[int]:
    """Triton cannot choose ports itself; between this and its start another may take them."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait_live(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Live, not ready: a server whose models failed to load is one to ask about that."""
    end = time.monotonic() + READY_S_MAX
    while time.monotonic() < end and process.poll() is None:
        try:
            urlopen(f"http://127.0.0.1:{port}/v2/health/live", timeout=1).close()
        except (URLError, OSError):
            time.sleep(0.1)
        else:
            return
    tail = log.read_text(errors="replace")[-4000:]
    raise RuntimeError(f"Triton did not start (status {process.poll()}):\n{tail}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_GOING_S_MAX)
    except subprocess.TimeoutExpired:
        for pid in _children(process.pid):
            os.kill(pid, 9)
        process.kill()
        process.wait()


def _children(pid: int) -> list[int]:
    """Its descendants, by /proc."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        direct = [int(c) for t in tasks for c in (t / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return direct + [below for child in direct for below in _children(child)]
