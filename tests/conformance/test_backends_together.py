"""Every backend, one server, the same pictures: the answers agree within stated tolerances.

The artefacts are those of ``tests/zoo``. What cannot run on this machine is skipped and says why,
and where ``CI`` is set only what ``NOT_IN_CI`` names may be. Requests come over HTTP, gRPC and
GraphPipe, so the batches that backends see are those that a gateway makes.
"""

from __future__ import annotations

import importlib
import pkgutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tests.zoo
import tritonclient.grpc
import tritonclient.http
from tests.zoo import digits
from tests.zoo.engines import BACKEND_OF, NOT_IN_CI, engine_of, engine_or_skip

from penstock.backends import catalog
from penstock.client import Client

_NOT_MODELS = {"digits", "engines"}
MODELS = sorted({m.name for m in pkgutil.iter_modules(tests.zoo.__path__)} - _NOT_MODELS)
_THREADS = 8


@dataclass(frozen=True, slots=True)
class Zoo:
    """A server with every model that can run here; ``reference`` has what each must answer."""

    served: Any
    reference: dict[str, np.ndarray]


def backend_of(model: str) -> str:
    return BACKEND_OF.get(model, model)


def pictures_for(model: str) -> np.ndarray:
    """As the model takes them: trees have no use for rows and columns."""
    pictures = digits.pictures()
    trees = hasattr(importlib.import_module(f"tests.zoo.{model}"), "expected")
    return pictures.reshape(len(pictures), -1) if trees else pictures


@pytest.fixture(scope="module")
def zoo(model_server, tmp_path_factory) -> Zoo:
    repository = tmp_path_factory.mktemp("zoo")
    expected = {}
    for model in MODELS:
        if engine_of(backend_of(model)).missing:
            continue
        module = importlib.import_module(f"tests.zoo.{model}")
        version = repository / model / "1"
        version.mkdir(parents=True)
        (repository / model / "config.pbtxt").write_text(module.write(version))
        if hasattr(module, "expected"):
            expected[model] = module.expected(pictures_for(model))
    served = model_server(repository, "--allow-code", "all")
    with Client(served.url, protocol="v2", timeout=60) as client:
        probabilities = client.infer("onnxruntime", digits.pictures()[:64]).array
    return Zoo(served, {m: expected.get(m, probabilities)[:64] for m in MODELS})


@pytest.fixture(params=MODELS)
def model(request, zoo) -> str:
    engine_or_skip(backend_of(request.param))
    return request.param


def close_to_reference(zoo: Zoo, model: str, found: np.ndarray, rows: slice) -> None:
    tolerance = importlib.import_module(f"tests.zoo.{model}").TOLERANCE
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, zoo.reference[model][rows], rtol=0, atol=tolerance)


def test_every_backend_has_a_model_in_the_zoo():
    built_in = {name for name in catalog.offered() if name in catalog._BUILT_IN}
    assert {backend_of(model) for model in MODELS} == built_in


def test_only_what_needs_a_gpu_or_gigabytes_may_be_missing_in_ci():
    assert set(NOT_IN_CI) == {"pytorch", "tensorrt"}


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_graphpipe_and_v2_through_our_client(zoo, model, rows):
    pictures = pictures_for(model)[:rows]
    for protocol in ("v2", "graphpipe"):
        with Client(zoo.served.url, protocol=protocol, timeout=60) as client:
            found = client.infer(model, pictures).array
        close_to_reference(zoo, model, found, slice(rows))


def test_tritons_clients(zoo, model):
    pictures = pictures_for(model)[:3]
    for module, address in (
        (tritonclient.http, zoo.served.authority),
        (tritonclient.grpc, f"127.0.0.1:{zoo.served.grpc}"),
    ):
        with module.InferenceServerClient(address) as client:
            assert client.is_model_ready(model)
            metadata = client.get_model_metadata(model)
            if not isinstance(metadata, dict):
                metadata = {"inputs": [{"name": metadata.inputs[0].name}],
                            "outputs": [{"name": metadata.outputs[0].name}]}  # fmt: skip
            tensor = module.InferInput(metadata["inputs"][0]["name"], pictures.shape, "FP32")
            tensor.set_data_from_numpy(pictures)
            reply = client.infer(model, [tensor])
            found = reply.as_numpy(metadata["outputs"][0]["name"])
        close_to_reference(zoo, model, found, slice(3))


def test_requests_at_the_same_time_get_their_own_rows(zoo, model):
    pictures = pictures_for(model)

    def ask(i: int) -> None:
        with Client(zoo.served.url, protocol="v2", timeout=100) as client:
            for at in range(i, 64 - 3, _THREADS):
                rows = slice(at, at + 1 + i % 3)
                close_to_reference(zoo, model, client.infer(model, pictures[rows]).array, rows)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(ask, range(_THREADS)))


def test_the_classes_are_those_of_the_network(zoo, model):
    """Tolerances say how far scores may be; what a user sees is the digit."""
    with Client(zoo.served.url, protocol="v2", timeout=60) as client:
        found = client.infer(model, pictures_for(model)[:64]).array
    assert (found.argmax(1) == zoo.reference[model].argmax(1)).all()
