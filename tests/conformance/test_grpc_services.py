"""What stock tools expect beside inference: health probes, reflection, restricted methods, the end.

Driven by the packages that gRPC publishes for them, against a server in a process of its own.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc

from penstock.backends.fake import artefact

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
        ProtoReflectionDescriptorDatabase,
    )

pytest.importorskip("tritonclient.grpc")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the client's imports are not ours to warn about
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

WAIT_S = 20.0
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name, options, config in (
        ("one", {"shape": "1"}, ""),
        ("slow", {"shape": "1", "delay_ms": "400"}, ""),
        ("repeat", {"kind": "repeat", "shape": "1", "times": "-1"},
         "model_transaction_policy { decoupled: true }"),
    ):  # fmt: skip
        (root / name / "1").mkdir(parents=True)
        (root / name / "1" / "model.fake").write_bytes(artefact(options))
        (root / name / "config.pbtxt").write_text(f'backend: "fake" {config}')
    return root


@pytest.fixture(scope="module", params=["own", "grpcio"])
def server(request: pytest.FixtureRequest, root: Path, model_server: Callable[..., Any]) -> Any:
    flags = ("--grpc-transport", request.param, "--model-control-mode", "explicit")
    return model_server(root, *flags, "--load-model", "*")


@pytest.fixture
def channel(server: Any) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        yield channel


def number(value: int) -> list[Any]:
    given = triton.InferInput("INPUT0", [1, 1], "INT32")
    given.set_data_from_numpy(np.array([[value]], np.int32))
    return [given]


# --- health


def test_health_check(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)

    def check(service: str) -> int:
        request = health_pb2.HealthCheckRequest(service=service)
        status: int = stub.Check(request, timeout=WAIT_S).status
        return status

    for service in ("", "inference.GRPCInferenceService", "grpc.health.v1.Health", "one"):
        assert check(service) == SERVING
    with pytest.raises(grpc.RpcError) as caught:
        check("nobody")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_health_watch(channel: grpc.Channel, server: Any) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    model = stub.Watch(health_pb2.HealthCheckRequest(service="one"), timeout=WAIT_S)
    nobody = stub.Watch(health_pb2.HealthCheckRequest(service="nobody"), timeout=WAIT_S)
    assert next(model).status == SERVING
    assert next(nobody).status == SERVICE_UNKNOWN
    with triton.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        client.unload_model("one")
        assert next(model).status == NOT_SERVING
        client.load_model("one")
        assert next(model).status == SERVING
    for watch in (model, nobody):
        watch.cancel()


# --- reflection


def test_reflection_gives_a_whole_client(channel: grpc.Channel) -> None:
    """A client that knows nothing but the address makes its messages from what it is told."""
    database = ProtoReflectionDescriptorDatabase(channel)
    services = set(database.get_services())
    assert {
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "grpc.reflection.v1.ServerReflection",
        "tensorflow.serving.PredictionService",
        "tensorflow.serving.ModelService",
    } <= services
    pool = descriptor_pool.DescriptorPool(database)
    for service in sorted(services):
        assert pool.FindServiceByName(service).methods
    method = pool.FindServiceByName("inference.GRPCInferenceService").FindMethodByName("ModelInfer")
    request_type = message_factory.GetMessageClass(method.input_type)
    reply_type = message_factory.GetMessageClass(method.output_type)
    request = request_type(model_name="one")
    request.inputs.add(name="INPUT0", datatype="INT32", shape=[1, 1]).contents.int_contents.append(
        7
    )
    call = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_type.SerializeToString,
        reply_type.FromString,
    )
    assert call(request, timeout=WAIT_S).raw_output_contents[0] == b"\x07\0\0\0"


# --- restrictions


@pytest.mark.parametrize("transport", ["own", "grpcio"])
def test_restricted_protocols(transport: str, root: Path, model_server: Any) -> None:
    server = model_server(
        root, "--grpc-transport", transport,
        "--grpc-restricted-protocol", "inference,model-config:Admin-Key=secret",
    )  # fmt: skip
    right = {"triton-grpc-protocol-admin-key": "secret"}
    with triton.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        assert client.is_server_live()
        text = "This protocol is restricted, expecting header 'triton-grpc-protocol-Admin-Key'"
        for headers in ({}, {"triton-grpc-protocol-admin-key": "guess"}):
            with pytest.raises(InferenceServerException) as caught:
                client.infer("one", number(1), headers=headers)
            assert (caught.value.status(), caught.value.message()) == (
                "StatusCode.UNAVAILABLE", text
            )  # fmt: skip
            with pytest.raises(InferenceServerException):
                client.get_model_config("one", headers=headers)
        assert client.infer("one", number(1), headers=right).as_numpy("OUTPUT0") == [[1]]
        assert client.get_model_config("one", headers=right).config.name == "one"


# --- the end


@pytest.mark.parametrize("transport", ["own", "grpcio"])
def test_a_server_that_ends_answers_what_it_accepted(
    transport: str, root: Path, model_server: Any
) -> None:
    """Idle streams and watchers do not keep it, requests in progress are answered."""
    server = model_server(root, "--grpc-transport", transport)
    address = f"127.0.0.1:{server.grpc}"
    answers: list[tuple[Any, Any]] = []
    streamed: list[tuple[Any, Any]] = []
    answered = threading.Event()

    def done(result: Any, error: Any) -> None:
        answers.append((result, error))
        answered.set()

    with grpc.insecure_channel(address) as channel, triton.InferenceServerClient(address) as client:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), timeout=WAIT_S
        )
        assert next(watch).status == SERVING
        client.start_stream(lambda result, error: streamed.append((result, error)))
        client.async_stream_infer("one", number(5))
        until(lambda: len(streamed) == 1)
        client.async_infer("slow", number(3), done)
        time.sleep(0.1)  # it is in the model now
        os.kill(server.pid, signal.SIGTERM)
        assert answered.wait(WAIT_S)
        ((result, error),) = answers
        assert error is None
        assert result.as_numpy("OUTPUT0") == [[3]]
        assert watch.code() is grpc.StatusCode.UNAVAILABLE  # waits for the end
        until(lambda: len(streamed) == 2)
        assert "shutting down" in streamed[1][1].message()
    until(lambda: Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)
