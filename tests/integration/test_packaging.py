"""What ``pip install penstock`` gives: the wheel is whole, and enough for a client by itself.

Both tests install into new, empty environments (pip's cache makes that quick) and need the package
registry.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.server import demo

ROOT = Path(__file__).resolve().parents[2]
PORTIONS = ("backends", "client", "loadtest", "protocol", "server")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CLIENT = """
import asyncio, importlib.util, json, sys
import numpy as np
from penstock.client import AsyncClient, Client

extra = [m for m in ("uvloop", "httptools", "onnxruntime", "google") if importlib.util.find_spec(m)]
assert not extra, f"the base install brought {extra}"
url, images = sys.argv[1], np.load(sys.argv[2])
answers = {}
for protocol in ("graphpipe", "v2"):
    with Client(url, protocol=protocol) as client:
        assert client.is_ready("digits")
        answers[protocol] = client.infer("digits", {"image": images}).array.argmax(1).tolist()

async def ask():
    async with AsyncClient(url) as client:
        return (await client.infer("digits", {"image": images})).array.argmax(1).tolist()

answers["async"] = asyncio.run(ask())
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the build backend of the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


def run(*command: object) -> str:
    words = [str(word) for word in command]
    # From elsewhere, so that nothing is imported from the working directory by accident.
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=240, cwd="/")
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout


def new_venv(folder: Path) -> Path:
    run(sys.executable, "-m", "venv", folder)
    return folder


def test_the_wheel_is_whole(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"penstock/{portion}/py.typed" for portion in PORTIONS} <= names
    ours = set().union(*[files_of(root) for root in package_roots()])
    assert ours <= names, sorted(ours - names)
    assert "penstock/server/demo/models/digits/1/model.onnx" in names
    assert "penstock/__init__.py" not in names
    metadata = {name for name in names if ".dist-info/" in name}
    assert names == ours | metadata
    assert any(name.endswith("licenses/LICENSE") for name in metadata)


def package_roots() -> list[Path]:
    """The folders named ``penstock``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return [
        ROOT / name for name in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    ]


def files_of(root: Path) -> set[str]:
    return {
        path.relative_to(root.parent).as_posix()
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_client_needs_no_extras(
    wheel: Path, digits_server: Any, install: Any, tmp_path: Path
) -> None:
    venv = new_venv(tmp_path / "venv")
    install(venv, str(wheel))
    images, labels = demo.heldout()
    np.save(tmp_path / "images.npy", images)
    python = venv / "bin" / "python"
    answers = json.loads(run(python, "-c", CLIENT, digits_server.url, tmp_path / "images.npy"))
    for way, digits in answers.items():
        assert (np.array(digits) == labels).mean() >= 0.97, way
    assert run(venv / "bin" / "penstock", "version").strip()


def test_an_editable_install_has_every_portion(install: Any, tmp_path: Path) -> None:
    venv = new_venv(tmp_path / "venv")
    install(venv, "--editable", str(ROOT))
    modules = [
        f"penstock.{name}"
        for name in ("protocol.graphpipe", "client", "backends.catalog", "server.demo",
                     "loadtest.samples")
    ]  # fmt: skip
    code = f"import {', '.join(modules)}; print({', '.join(m + '.__file__' for m in modules)})"
    files = run(venv / "bin" / "python", "-c", code).split()
    assert all(Path(file).is_relative_to(ROOT) for file in files), files
