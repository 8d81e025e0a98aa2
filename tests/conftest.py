"""What tests of a whole server share: a running demo, and virtual environments of other programs.

Environments are kept in ``.cache/venvs`` between runs (``PENSTOCK_TEST_CACHE`` names another
folder). What cannot be had (no network, no system library) is skipped with its reason on a
developer's machine and fails where ``CI`` is set.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from penstock.server import demo

ROOT = Path(__file__).resolve().parents[1]
READY_S_MAX = 60
STOP_S_MAX = 20

MakeVenv = Callable[..., Path]


@dataclass(frozen=True, slots=True)
class Served:
    """A server in a process of its own, on 127.0.0.1."""

    http: int
    metrics: int
    pid: int
    grpc: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    @property
    def authority(self) -> str:
        return f"127.0.0.1:{self.http}"


@pytest.fixture(scope="session")
def digits_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """``digits`` on free ports, shared by all tests; it must end in order."""
    folder = tmp_path_factory.mktemp("demo-server")
    # Regions in shared memory are for perf_analyzer.
    with _serving(folder, demo.model_repository(), "--allow-client-shm") as served:
        yield served


@pytest.fixture(scope="module")
def model_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Served]]:
    """``model_server(repository, *flags)`` serves other models until the module's tests are over;
    it must end in order too."""
    with contextlib.ExitStack() as servers:

        def start(repository: Path, *flags: str) -> Served:
            folder = tmp_path_factory.mktemp("model-server")
            return servers.enter_context(_serving(folder, repository, *flags))

        yield start


@contextlib.contextmanager
def _serving(folder: Path, repository: Path, *flags: str) -> Iterator[Served]:
    ready, log = folder / "ready.json", folder / "log"
    command = [
        sys.executable, "-m", "penstock.server.cli", "serve",
        "--model-repository", str(repository), "--host", "127.0.0.1",
        "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0",
        "--ready-file", str(ready), *flags,
    ]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        yield _await_ready(process, ready, log)
        process.terminate()
        assert process.wait(STOP_S_MAX) == 0, log.read_text()[-4000:]
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _await_ready(process: subprocess.Popen[bytes], ready: Path, log: Path) -> Served:
    end = time.monotonic() + READY_S_MAX
    while time.monotonic() < end and process.poll() is None:
        try:
            told = json.loads(ready.read_text())
        except (FileNotFoundError, ValueError):  # not there yet, or half written
            time.sleep(0.05)
        else:
            return Served(told["http"], told["metrics"], told["pid"], told["grpc"])
    pytest.fail(f"the server did not get ready ({process.poll()}):\n{log.read_text()[-4000:]}")


def unobtainable(what: str) -> NoReturn:
    """Ends a test that lacks something from outside: loudly, and in CI as a failure."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def make_venv() -> MakeVenv:
    """``make_venv(name, [pip arguments], [pip arguments]...)`` to the environment's folder.

    Each list is one ``pip install``. An environment with the same lists is used again.
    """
    cache = Path(os.environ.get("PENSTOCK_TEST_CACHE") or ROOT / ".cache")

    def make(name: str, *installs: list[str]) -> Path:
        recipe = json.dumps([sys.version, *installs])
        venv = cache / "venvs" / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
        stamp = venv / ".complete"
        if not stamp.exists():
            shutil.rmtree(venv, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
            for arguments in installs:
                pip_install(venv, *arguments)
            stamp.write_text(recipe)
        return venv

    return make


def pip_install(venv: Path, *arguments: str) -> None:
    """Installs into ``venv``; without the network that ends the test as ``unobtainable``."""
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "-q", *arguments]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        unobtainable(f"pip install {' '.join(arguments)} failed: {done.stderr.strip()[-1500:]}")


@pytest.fixture(scope="session")
def install() -> Callable[..., None]:
    """``install(venv, *pip_arguments)``."""
    return pip_install


@pytest.fixture(scope="session")
def cannot_have() -> Callable[[str], NoReturn]:
    """``cannot_have(reason)``: see ``unobtainable``."""
    return unobtainable


@pytest.fixture(scope="session")
def make_pki(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes a folder with ca.pem, and server.pem for localhost and client.pem signed by it, and
    their keys."""
    if shutil.which("openssl") is None:
        unobtainable("NOT TESTED: TLS needs the openssl command to make certificates")

    def make() -> Path:
        folder = tmp_path_factory.mktemp("pki")
        (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")

        def openssl(*arguments: str) -> None:
            subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2",
                "-subj", "/CN=an authority")  # fmt: skip
        for name in ("server", "client"):
            openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr",
                    "-subj", f"/CN={name}")  # fmt: skip
            openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
                    "-out", f"{name}.pem", "-days", "2", "-extfile", "names")  # fmt: skip
        return folder

    return make


@pytest.fixture(scope="session")
def pki(make_pki: Callable[[], Path]) -> Path:
    """One such folder."""
    return make_pki()
