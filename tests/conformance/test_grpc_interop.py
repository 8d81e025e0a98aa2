"""gRPC's interoperability test client (grpc-go's), unmodified, against both transports.

Its cases need a service ``grpc.testing.TestService``, which stands here on the seam that the front
doors stand on. Left out: the cases about Google's credentials and load balancers, and
custom_metadata, which wants metadata before the reply: methods here send none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from penstock.protocol.errors import BY_NUMBER, InferError
from penstock.server.grpc_seam import Method

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CLIENT = "google.golang.org/grpc/interop/client@v1.85.0"
CASES = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "unimplemented_method",
    "unimplemented_service",
]
# The fields of gRPC's messages.proto that these cases use: (name, number, type, repeated).
SCHEMA = {
    "Payload": [("body", 2, "bytes", False)],
    "EchoStatus": [("code", 1, "int32", False), ("message", 2, "string", False)],
    "SimpleRequest": [
        ("response_size", 2, "int32", False),
        ("response_status", 7, "EchoStatus", False),
    ],
    "SimpleResponse": [("payload", 1, "Payload", False)],
    "StreamingInputCallRequest": [("payload", 1, "Payload", False)],
    "StreamingInputCallResponse": [("aggregated_payload_size", 1, "int32", False)],
    "ResponseParameters": [("size", 1, "int32", False), ("interval_us", 2, "int32", False)],
    "StreamingOutputCallRequest": [
        ("response_parameters", 2, "ResponseParameters", True),
        ("response_status", 7, "EchoStatus", False),
    ],
    "StreamingOutputCallResponse": [("payload", 1, "Payload", False)],
}


def messages() -> dict[str, Any]:
    field = descriptor_pb2.FieldDescriptorProto
    plain = {"bytes": field.TYPE_BYTES, "int32": field.TYPE_INT32, "string": field.TYPE_STRING}
    file = descriptor_pb2.FileDescriptorProto(
        name="interop.proto", package="grpc.testing", syntax="proto3"
    )
    for name, fields in SCHEMA.items():
        made = file.message_type.add(name=name)
        for label, number, kind, repeated in fields:
            one = made.field.add(name=label, number=number)
            one.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if kind in plain:
                one.type = plain[kind]
            else:
                one.type, one.type_name = field.TYPE_MESSAGE, f".grpc.testing.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"grpc.testing.{name}"))
        for name in SCHEMA
    }


TYPES = messages()


def output(size: int) -> bytes:
    made = TYPES["StreamingOutputCallResponse"](payload={"body": bytes(size)})
    return bytes(made.SerializeToString())


def refused(call: Any, request: Any) -> bool:
    """Whether the client asked for an error, which it then gets."""
    if not request.HasField("response_status"):
        return False
    status = request.response_status
    call.fail(InferError(BY_NUMBER[status.code], status.message))
    return True


def empty(call: Any, head: Any, message: Any) -> None:
    call.reply((b"",))


def unary(call: Any, head: Any, message: Any) -> None:
    request = TYPES["SimpleRequest"].FromString(bytes(message))
    if not refused(call, request):
        reply = TYPES["SimpleResponse"](payload={"body": bytes(request.response_size)})
        call.reply((reply.SerializeToString(),))


class Summing:
    """StreamingInputCall: the size of all payloads."""

    full = False

    def __init__(self, call: Any, head: Any) -> None:
        self.call, self.size = call, 0

    def received(self, message: Any) -> None:
        request = TYPES["StreamingInputCallRequest"].FromString(bytes(message))
        self.size += len(request.payload.body)

    def half_closed(self) -> None:
        reply = TYPES["StreamingInputCallResponse"](aggregated_payload_size=self.size)
        self.call.reply((reply.SerializeToString(),))

    def drained(self) -> None: ...
    def cancel(self) -> None: ...


class Sending(Summing):
    """StreamingOutputCall and FullDuplexCall: payloads of the sizes asked for."""

    def received(self, message: Any) -> None:
        request = TYPES["StreamingOutputCallRequest"].FromString(bytes(message))
        if not refused(self.call, request):
            for parameters in request.response_parameters:
                self.call.send((output(parameters.size),))

    def half_closed(self) -> None:
        self.call.finish()


def service() -> dict[str, Method]:
    prefix = "/grpc.testing.TestService/"
    made = [
        Method(prefix + "EmptyCall", unary=empty),
        Method(prefix + "UnaryCall", unary=unary),
        Method(prefix + "StreamingInputCall", stream=Summing),
        Method(prefix + "StreamingOutputCall", stream=Sending),
        Method(prefix + "FullDuplexCall", stream=Sending),
    ]
    return {method.path: method for method in made}


@pytest.fixture(scope="module")
def client(cannot_have: Any) -> Path:
    """The program, built once by Go from its published source."""
    go = shutil.which("go")
    if go is None:
        cannot_have("the interoperability client is built by Go")
    root = Path(os.environ.get("PENSTOCK_TEST_CACHE") or Path(__file__).parents[2] / ".cache")
    folder = root / "go" / CLIENT.replace("/", "_")
    program = folder / "client"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [go, "install", CLIENT],
            env={**os.environ, "GOBIN": str(folder.absolute())},
            capture_output=True, text=True, check=False, timeout=550,
        )  # fmt: skip
        if done.returncode:
            cannot_have(f"go install {CLIENT} failed: {done.stderr.strip()[-1500:]}")
    return program


@pytest.mark.parametrize("kind", ["own", "grpcio"])
@pytest.mark.parametrize("case", CASES)
def test_interoperability(client: Path, grpc_host: Any, kind: str, case: str) -> None:
    host = grpc_host(kind, service())
    address, _, port = host.listen().rpartition(":")
    done = subprocess.run(
        [client, "-server_host", address, "-server_port", port, "-test_case", case],
        env={**os.environ, "GRPC_GO_LOG_SEVERITY_LEVEL": "info"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert " done" in done.stderr.lower(), done.stderr
