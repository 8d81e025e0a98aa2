"""TensorFlow Serving's own stubs get right answers unmodified, over both gRPC transports.

PyPI's tensorflow-serving-api imports TensorFlow's message classes, which min-tfs-client (a small
client of 380 KB, used here as well) brings without TensorFlow. Both were generated for an old
protobuf, so they run in an environment of their own: about 25 MB to download, once;
``tensorflow_serving_client.py`` is the program.
"""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2

from penstock.loadtest.models import write_identity
from penstock.protocol import dtype as dt
from penstock.server import tfs_schema
from penstock.server.tfs_schema.descriptor import FILES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TYPES = ("INT32", "INT64", "UINT8", "FP64", "BOOL", "BYTES")


@pytest.fixture(scope="module")
def python(make_venv: Any) -> Path:
    venv: Path = make_venv(
        "tensorflow-serving",
        # Without what they ask for, which is TensorFlow; the second overwrites the first's copy.
        ["--no-deps", "min-tfs-client==1.0.2"],
        ["--no-deps", "--force-reinstall", "tensorflow-serving-api==2.8.4"],
        ["protobuf==3.20.3", "grpcio>=1.60", "numpy"],
    )
    return venv / "bin" / "python"


@pytest.fixture(scope="module")
def images(heldout: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tfs") / "heldout.npy"
    np.save(path, heldout[0])
    return path


@pytest.fixture(scope="module", params=["own", "grpcio"])
def report(
    request: Any, model_server: Any, python: Path, images: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:  # fmt: skip
    repository = tmp_path_factory.mktemp("identities")
    for name in TYPES:
        write_identity(repository / f"identity_{name}" / "1" / "model.onnx", dt.BY_NAME[name])
    flags = ["--grpc-transport", request.param, "--version-label", "digits:stable=1"]
    server = model_server(repository, "--demo", *flags)
    script = Path(__file__).with_name("tensorflow_serving_client.py")
    done = subprocess.run(
        [python, script, "127.0.0.1", str(server.grpc), images],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("way", ["raw", "typed"])
def test_answers(report: dict[str, Any], check_accuracy: Any, way: str) -> None:
    check_accuracy(np.array(report[way]))


def test_every_type_comes_back(report: dict[str, Any]) -> None:
    assert report["round_trips"] == dict.fromkeys(TYPES, True)


def test_versions_and_labels(report: dict[str, Any]) -> None:
    assert (report["version"], report["label"]) == (1, 1)
    assert (report["relabelled"], report["canary"]) == (0, 1)


def test_classify(report: dict[str, Any]) -> None:
    best = np.array(report["raw"])[:20].argmax(axis=1)
    assert report["classes"] == [str(label) for label in best]


def test_documents(report: dict[str, Any]) -> None:
    assert report["metadata"] == {
        "version": 1, "dtype": "DT_FLOAT", "shape": [-1, 1, 8, 8], "outputs": ["probabilities"],
    }  # fmt: skip
    assert report["status"] == [[1, "AVAILABLE"]]


@pytest.mark.parametrize(
    ("case", "code", "text"),
    [
        ("unknown_model", "NOT_FOUND", "letters"),
        ("unknown_version", "NOT_FOUND", "version 9"),
        ("unknown_label", "NOT_FOUND", "label: x"),
        ("unknown_signature", "INVALID_ARGUMENT", "signature"),
        ("wrong_shape", "INVALID_ARGUMENT", "image"),
        ("unknown_status", "NOT_FOUND", "letters"),
        ("multi_inference", "UNIMPLEMENTED", "Classify and Regress"),
        ("dropping", "FAILED_PRECONDITION", "leaves out model 'digits'"),
    ],
)
def test_errors(report: dict[str, Any], case: str, code: str, text: str) -> None:
    assert report[case]["code"] == code
    assert text in report[case]["text"]


def test_our_schema_is_a_part_of_theirs(report: dict[str, Any]) -> None:
    """Every field of ours has its number and type there; dtypes and codes are enums there."""
    theirs = {(m, name): (n, kind, many) for m, name, n, kind, many in report["facts"]["fields"]}
    checked = 0
    for name, field in _fields():
        number, kind, many = theirs[name, field.name]
        assert number == field.number, field.name
        if kind == "enum":
            assert field.type in (field.TYPE_INT32, field.TYPE_ENUM), field.name
        else:
            assert kind == field.type, field.name
        assert many == (field.label == field.LABEL_REPEATED), field.name
        checked += 1
    assert checked > 80
    ours = {
        f"{service}/{method.name}"
        for service in (tfs_schema.PREDICTION, tfs_schema.MODEL)
        for method in tfs_schema.POOL.FindServiceByName(service).methods
    }
    assert ours <= set(report["facts"]["methods"])


def _fields() -> Iterator[tuple[str, Any]]:
    """(message's full name, field) of all that the server has a schema of."""

    def walk(prefix: str, messages: Any) -> Iterator[tuple[str, Any]]:
        for message in messages:
            name = f"{prefix}.{message.name}"
            yield from ((name, field) for field in message.field)
            yield from walk(name, message.nested_type)

    for text in FILES.values():
        file = descriptor_pb2.FileDescriptorProto.FromString(base64.b64decode(text))
        yield from walk(file.package, file.message_type)
