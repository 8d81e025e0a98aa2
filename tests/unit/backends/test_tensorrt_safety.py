"""Machines without a driver: nothing is imported early, and nothing takes the process with it."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.unit.backends.fake_tensorrt import plan

from penstock.backends.base import LoadError
from penstock.backends.tensorrt import cuda as tensorrt_cuda
from penstock.backends.tensorrt import facade as tensorrt_facade
from penstock.backends.tensorrt.cuda import bindings, device_names, driver_missing
from penstock.backends.tensorrt.facade import Said, clean, installed, library

PROGRAM = """
import sys
from pathlib import Path
from penstock.backends import catalog
from penstock.backends.base import LoadError, ModelSource
backend = catalog.get("tensorrt")
early = [name for name in sys.modules if name.startswith(("tensorrt", "cuda"))]
found = backend.engine()
assert early == [name for name in sys.modules if name.startswith(("tensorrt", "cuda"))] == []
for file in sorted(Path(sys.argv[1]).iterdir()):
    try:
        backend.load(ModelSource("m", file, "cuda:0", options={"cache_dir": sys.argv[1] + "/c"}))
    except LoadError as error:
        print(f"{file.name}: {error}")
print(found.missing)
"""


def test_a_process_without_a_driver_lives(tmp_path: Path) -> None:
    if not driver_missing():
        pytest.skip("there is a driver here")
    for name, data in {
        "a.plan": plan("add_sub", (11, 4, 0, 106)),
        "b.plan": plan("add_sub", (1, 7, 1, 116)),
        "c.plan": b"ptrt" + bytes(100),
        "d.plan": b"\x93garbage" * 100,
        "e.plan": plan("add_sub", (1, 7, 1, 116))[:40],
        "f.plan": b"",
        "g.onnx": b"\x93garbage" * 100,
    }.items():
        (tmp_path / name).write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 8
    assert "driver" in lines[-1] or "not installed" in lines[-1]
    assert "built by TensorRT 8.5 or older" in lines[2]
    assert "is no plan of TensorRT" in lines[3]
    assert "its header says" in lines[4]
    assert "is empty" in lines[5]


def test_a_machine_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_cuda, "_DRIVER", "libno-such-driver.so.1")
    assert driver_missing() == "there is no NVIDIA driver (libno-such-driver.so.1) on this machine"
    assert device_names() == ()


class Driver:
    """libcuda.so.1 as ctypes shows it: results go where pointers say."""

    def __init__(self, status: int) -> None:
        self.status = status

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.status

    def cuDeviceGetCount(self, count: object) -> int:  # noqa: N802
        count._obj.value = 2
        return 0

    def cuDeviceGet(self, device: object, ordinal: int) -> int:  # noqa: N802
        device._obj.value = ordinal
        return 0

    def cuDeviceGetName(self, text: object, size: int, device: object) -> int:  # noqa: N802
        text.value = f"GPU {device.value}".encode()
        return 0


def test_a_driver_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_cuda.ctypes, "CDLL", lambda _name: Driver(100))
    assert "cuInit says 100" in driver_missing()
    assert device_names() == ()


def test_the_names_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_cuda.ctypes, "CDLL", lambda _name: Driver(0))
    assert driver_missing() == ""
    assert device_names() == ("cuda:0 (GPU 0)", "cuda:1 (GPU 1)")


def test_engines_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_facade, "MODULES", {"tensorrt": ("no_such_module_at_all",)})
    monkeypatch.setattr(tensorrt_facade, "KINDS", ("tensorrt",))
    assert installed() == {}
    library.cache_clear()
    try:
        with pytest.raises(
            LoadError, match=r"needs its engine: pip install 'penstock\[tensorrt\]'"
        ):
            library("tensorrt")
    finally:
        library.cache_clear()


def test_a_folder_of_the_name_is_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "an_engine_by_name").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tensorrt_facade, "MODULES", {"tensorrt": ("an_engine_by_name",)})
    monkeypatch.setattr(tensorrt_facade, "KINDS", ("tensorrt",))
    assert installed() == {}
    (tmp_path / "an_engine_by_name" / "__init__.py").touch()
    assert installed().keys() == {"tensorrt"}


def test_bindings_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(LoadError, match=r"CUDA's bindings: pip install 'penstock\[tensorrt\]'"):
        bindings()


@pytest.mark.parametrize(
    ("said", "cleaned"),
    [
        (
            "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (Network has dynamic "
            "inputs. In validate at /_src/optimizer/api/network.cpp:4023)",
            "API Usage Error (Network has dynamic inputs.)",
        ),
        ("onnxOpImporters.cpp:1980: TensorRT supports", "TensorRT supports"),
        ("[cudaResources.cpp::ScopedCudaStream::25] Error Code 1: Cuda Runtime", "Cuda Runtime"),
        ("two\n  lines", "two lines"),
    ],
)
def test_what_engines_say_is_made_one_line(said: str, cleaned: str) -> None:
    assert clean(said) == cleaned


def test_the_last_complaint_counts_and_older_ones_are_forgotten() -> None:
    said = Said()
    assert said.why() == ""
    for severity, text in ((1, "first"), (2, "careful"), (0, "last"), (3, "chatter")):
        said.hear(severity, text)
    assert said.why() == "last"
    said.forget()
    assert said.why() == ""


def test_what_is_listened_for_is_not_lost_among_what_others_say() -> None:
    said = Said()
    with said.listening() as heard:
        said.hear(2, "this is computed wrongly")
        other = threading.Thread(target=lambda: [said.hear(2, str(i)) for i in range(100)])
        other.start()
        other.join()
        said.forget()
        said.hear(3, "chatter")
        for _ in range(100):
            said.hear(2, "again")
    said.hear(2, "later")
    assert heard == ["this is computed wrongly", "again"]
