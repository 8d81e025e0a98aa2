"""Bad artefacts cost their own model only: it is unavailable and says why, the server serves on.

One server has all of them at the same time, beside two models that are asked throughout. What fails
at the load stands in the repository's index; what fails in a run is answered to its caller.
"""

from __future__ import annotations

import ctypes.util
import importlib
import json
import re
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.zoo import digits
from tests.zoo.engines import engine_of

from penstock.client import Client
from penstock.loadtest.models import write_add_sub
from penstock.protocol.errors import InferError

LOAD_S_MAX = 90

ECHO = """
class Model:
    inputs = {"x": ("FP32", [-1, 4])}
    outputs = {"y": ("FP32", [-1, 4])}

    def predict(self, x):
        return 2 * x
"""

CONSTRUCTORS = {
    "raises": ("raise KeyError('weights')", "weights"),
    "exits": ("import sys; sys.exit(3)", "exit"),
    "exits_hard": ("import os; os._exit(4)", "exit code 4|status 4|ended"),
    "segfaults": ("import ctypes; ctypes.string_at(0)", "signal|SIGSEGV|ended"),
    "hangs": ("import time; time.sleep(1000)", "load_timeout_s|2 s|took longer"),
    "lacks_package": ("import no_such_package_anywhere", "no_such_package_anywhere"),
}
"""What a Python model does in its constructor, and what the reason must say."""

RUNS = {
    "run_raises": "raise KeyError('row')",
    "run_exits": "import os; os._exit(5)",
    "run_segfaults": "import ctypes; ctypes.string_at(0)",
    "run_hangs": "import time; time.sleep(1000)",
    "run_lies": "return x[:, :3]",
}
"""What a Python model does with a batch whose first number is negative."""


def model(repository: Path, name: str, filename: str, data: bytes | str, config: str = "") -> Path:
    path = repository / name / "1" / filename
    path.parent.mkdir(parents=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    if config:
        (repository / name / "config.pbtxt").write_text(config)
    return path


def python_model(repository: Path, name: str, code: str, *options: tuple[str, str]) -> None:
    parameters = "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        for key, value in options
    )
    model(repository, name, "model.py", code, f'backend: "python"\n{parameters}')


def write_onnx(repository: Path) -> dict[str, str]:
    whole = digits.MODEL.read_bytes()
    model(repository, "onnx_truncated", "model.onnx", whole[: len(whole) // 2])
    model(repository, "onnx_empty", "model.onnx", b"")
    model(repository, "onnx_text", "model.onnx", "<html>404 Not Found</html>")
    future = onnx.load(digits.MODEL)
    future.opset_import[0].version = 999
    model(repository, "onnx_opset", "model.onnx", future.SerializeToString())
    foreign = onnx.load(digits.MODEL)
    foreign.graph.node[0].domain = "com.example.secret"
    foreign.opset_import.add(domain="com.example.secret", version=1)
    model(repository, "onnx_operator", "model.onnx", foreign.SerializeToString())
    return {
        "onnx_truncated": "onnx",
        "onnx_empty": "is empty",
        "onnx_text": "onnx",
        "onnx_opset": "opset|999",
        "onnx_operator": "com.example.secret|Conv",
    }


def write_libraries(repository: Path) -> dict[str, str]:
    """Shared libraries that are no models, for the backend that loads shared libraries."""
    library = next(Path("/").glob(f"lib/*/{ctypes.util.find_library('m')}"))
    tvm = digits.config("tvm")
    model(repository, "so_foreign", "model.so", library.resolve().read_bytes(), tvm)
    model(repository, "so_truncated", "model.so", library.resolve().read_bytes()[:5000], tvm)
    model(repository, "so_text", "model.so", "not ELF", tvm)
    return dict.fromkeys(("so_foreign", "so_truncated", "so_text"), "model.so|TVM|tvm")


def write_python(repository: Path) -> dict[str, str]:
    for name, (code, _) in CONSTRUCTORS.items():
        source = ECHO + f"\n    def __init__(self):\n        {code}\n"
        python_model(repository, name, source, ("load_timeout_s", "2"))
    for name, code in RUNS.items():
        source = ECHO.replace(
            "return 2 * x", f"if x[0, 0] < 0:\n            {code}\n        return 2 * x"
        )
        python_model(repository, name, source, ("timeout_s", "2"))
    python_model(repository, "syntax", "class Model:\n    def predict(self x): pass\n")
    python_model(repository, "no_class", "answer = 42\n")
    said = {name: reason for name, (_, reason) in CONSTRUCTORS.items()}
    return {**said, "syntax": "model.py", "no_class": "Model|class"}


def write_halves(repository: Path) -> dict[str, str]:
    """Half of a good artefact of each other engine that is here."""
    said = {}
    for name in ("jax", "lightgbm", "litert", "openvino", "tensorrt", "xgboost"):
        if engine_of(name).missing and name != "tensorrt":
            continue
        zoo = importlib.import_module(f"tests.zoo.{name}")
        version = repository / f"half_{name}" / "1"
        version.mkdir(parents=True)
        config = zoo.write(version)
        (version.parent / "config.pbtxt").write_text(config)
        largest = max(
            (p for p in version.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
        )
        data = largest.read_bytes()
        largest.write_bytes(data[: len(data) // 2])
        said[version.parent.name] = "."
    plan = b"ftrt" + bytes(range(256)) * 40
    model(repository, "plan_other", "model.plan", plan, digits.config("tensorrt"))
    return {**said, "plan_other": "TensorRT|plan|driver|GPU"}


@pytest.fixture(scope="module")
def site(model_server, tmp_path_factory) -> tuple[Any, dict[str, str]]:
    """The server, and for each bad model a pattern that its reason must match."""
    repository = tmp_path_factory.mktemp("bad")
    write_add_sub(repository / "good_onnx" / "1" / "model.onnx")
    python_model(repository, "good_python", ECHO)
    bad = {
        **write_onnx(repository),
        **write_python(repository),
        **write_halves(repository),
    }
    if not engine_of("tvm").missing:
        bad |= write_libraries(repository)
    return model_server(repository, "--allow-code", "all"), bad


def index(served: Any) -> dict[str, dict[str, str]]:
    request = urllib.request.Request(f"{served.url}/v2/repository/index", b"", method="POST")
    with urllib.request.urlopen(request, timeout=30) as reply:
        return {entry["name"]: entry for entry in json.load(reply)}


def settled(served: Any) -> dict[str, dict[str, str]]:
    """The index when nothing loads any more; the good models are asked all the while."""
    until = time.monotonic() + LOAD_S_MAX
    while True:
        found = index(served)
        both_good_ones_answer(served)
        if all(entry["state"] not in ("LOADING", "") for entry in found.values()):
            return found
        assert time.monotonic() < until, found


def both_good_ones_answer(served: Any) -> None:
    with Client(served.url, protocol="v2", timeout=30) as client:
        ones = np.ones((1, 16), np.int32)
        sums = client.infer("good_onnx", {"INPUT0": ones, "INPUT1": ones})["OUTPUT0"]
        assert (sums == 2).all()
        doubled = client.infer("good_python", np.ones((1, 4), np.float32))["y"]
        assert (doubled == 2).all()


def test_each_is_unavailable_with_its_reason_and_the_others_serve(site):
    served, bad = site
    found = settled(served)
    for name, pattern in bad.items():
        entry = found[name]
        assert entry["state"] == "UNAVAILABLE", entry
        reason = entry["reason"]
        assert "\n" not in reason, (name, reason)
        assert len(reason) > 15, (name, reason)
        assert re.search(pattern, reason, re.IGNORECASE), (name, reason)
    for name in {*found} - {*bad}:
        assert found[name]["state"] == "READY", found[name]
    both_good_ones_answer(served)


def test_a_request_for_one_is_told_the_reason(site):
    served, _ = site
    settled(served)
    with (
        Client(served.url, protocol="v2", timeout=30) as client,
        pytest.raises(InferError, match="weights"),
    ):
        client.infer("raises", np.ones((1, 4), np.float32))


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_fails_costs_its_caller_only(site, name):
    served, _ = site
    settled(served)
    good, bad = np.ones((1, 4), np.float32), -np.ones((1, 4), np.float32)

    def ask_others(_: int) -> None:
        both_good_ones_answer(served)

    with (
        ThreadPoolExecutor(2) as pool,
        Client(served.url, protocol="v2", timeout=60) as client,
    ):
        assert (client.infer(name, good)["y"] == 2).all()
        asked = pool.map(ask_others, range(8))
        with pytest.raises(InferError) as caught:
            client.infer(name, bad)
        assert len(str(caught.value)) > 10
        list(asked)
        # A worker process that ended is started again; until then its model says so.
        until = time.monotonic() + 30
        while True:
            try:
                assert (client.infer(name, good)["y"] == 2).all()
                break
            except InferError:
                assert time.monotonic() < until
                time.sleep(0.1)
    assert index(served)[name]["state"] == "READY"
