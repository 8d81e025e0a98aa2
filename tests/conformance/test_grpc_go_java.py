"""grpc-go and grpc-java as clients of our transport, in the clear and with mutual TLS.

They are built by their own tools into the cache, and print a line for each check.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

HERE = Path(__file__).parent
CHECKS = [
    "unary", "large", "many at once", "compressed", "metadata", "errors", "deadline",
    "cancellation", "stream",
]  # fmt: skip
CannotHave = Callable[[str], NoReturn]

pytestmark = pytest.mark.slow


def build(folder: Path, out: Path, tool: str, command: list[str], fail: CannotHave) -> None:
    """Runs ``command`` in ``folder`` unless ``out`` was built from the same files."""
    found = shutil.which(tool)
    if found is None:
        fail(f"NOT TESTED: {folder.name} needs {tool} to be built")
    sources = sorted(path for path in folder.rglob("*") if path.is_file())
    state = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    stamp = out / "built-from"
    if stamp.exists() and stamp.read_text() == state:
        return
    out.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [found, *command], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "GOFLAGS": "-mod=readonly"},
    )  # fmt: skip
    if done.returncode:
        fail(f"NOT TESTED: {folder.name} was not built: {(done.stdout + done.stderr)[-1500:]}")
    stamp.write_text(state)


@pytest.fixture(scope="module")
def go_client(cache: Path, cannot_have: CannotHave) -> list[str]:
    out = cache / "go_grpc"
    program = out / "client"
    build(HERE / "go_grpc", out, "go", ["build", "-o", str(program), "."], cannot_have)
    return [str(program)]


@pytest.fixture(scope="module")
def java_client(cache: Path, cannot_have: CannotHave) -> list[str]:
    out = cache / "java_grpc"
    command = ["-q", "-B", f"-Dbuild.folder={out}", "package"]
    build(HERE / "java_grpc", out, "mvn", command, cannot_have)
    return ["java", "-Xmx1g", "-cp", f"{out}/classes:{out}/lib/*", "EchoClient"]


def check(client: list[str], more: list[str], address: str, files: list[str]) -> None:
    done = subprocess.run(
        [*client, address, *files], capture_output=True, text=True, check=False, timeout=110
    )
    assert done.stdout.splitlines() == [f"ok {name}" for name in [*CHECKS, *more]], done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "mutual TLS"])
def test_grpc_go(go_client: list[str], grpc_echo: Callable[..., int], pki: Path, tls: bool) -> None:
    check(go_client, ["slow reader"], *served(grpc_echo, pki, tls))


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "mutual TLS"])
def test_grpc_java(
    java_client: list[str], grpc_echo: Callable[..., int], pki: Path, tls: bool
) -> None:
    check(java_client, [], *served(grpc_echo, pki, tls))


def served(grpc_echo: Callable[..., int], pki: Path, tls: bool) -> tuple[str, list[str]]:
    if not tls:
        return f"127.0.0.1:{grpc_echo()}", []
    flags = ["--cert", pki / "server.pem", "--key", pki / "server.key", "--ca", pki / "ca.pem"]
    files = ["ca.pem", "client.pem", "client.key"]
    return f"localhost:{grpc_echo(*flags)}", [str(pki / name) for name in files]
