"""Sends cases to a server and writes down its answers, in a form that can be kept and compared.

Knows HTTP, gRPC and the shared memory that cases write to. Must not know which server it talks to,
nor what is right.

An HTTP answer: ``status``, those ``headers`` that mean something, and of the body ``json``,
``binary`` (base64, what follows the JSON) or ``text``. A gRPC answer: ``code``, ``text`` of an
error and ``replies``.
"""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Final

import grpc
from google.protobuf import json_format
from grpc_health.v1 import health_pb2
from tritonclient.grpc import service_pb2

from .case import Case, Grpc, Http

TIMEOUT_S: Final = 15.0
SERVICE: Final = "inference.GRPCInferenceService"
MEMORY_KEY: Final = "/penstock-conformance"
MEMORY_BYTES: Final = 16384
_HEADERS: Final = (
    "content-type", "content-encoding", "inference-header-content-length", "accept-encoding",
)  # fmt: skip

Answer = dict[str, Any]


class Target:
    """A server; ``words`` replace ``@NAME@`` in requests, where sides are given other things."""

    def __init__(self, http_port: int, grpc_port: int, words: Mapping[str, str]) -> None:
        self.http_port = http_port
        self._words = words
        self._channel = grpc.insecure_channel(
            f"127.0.0.1:{grpc_port}", options=[("grpc.max_receive_message_length", -1)]
        )

    def close(self) -> None:
        self._channel.close()

    def ask(self, case: Case, memory: SharedMemory) -> Answer:
        memory.buf[: len(case.memory)] = case.memory
        answer = self._http(case) if isinstance(case, Http) else self._grpc(case)  # type: ignore[arg-type]
        if case.peek:
            answer["memory"] = base64.b64encode(memory.buf[: case.peek]).decode()
        return answer

    def _filled(self, text: str) -> str:
        for name, value in self._words.items():
            text = text.replace(f"@{name}@", value)
        return text

    def _http(self, case: Http) -> Answer:
        body = case.body
        if b"@" in body:
            body = self._filled(body.decode("latin-1")).encode("latin-1")
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=TIMEOUT_S)
        try:
            connection.request(case.method, case.path, body, dict(case.headers))
            reply = connection.getresponse()
            return _http_answer(reply.status, reply.headers, reply.read())
        except (http.client.HTTPException, OSError) as error:
            return {"closed": type(error).__name__}
        finally:
            connection.close()

    def _grpc(self, case: Grpc) -> Answer:
        path, request, reply = _method(case.method)
        sent = [self._message(message, request) for message in case.messages]
        replies: list[Any] = []
        try:
            if case.method == "ModelStreamInfer":
                stream = self._channel.stream_stream(path)
                for got in stream(iter(sent), timeout=TIMEOUT_S, metadata=case.metadata):
                    replies.append(_document(got, reply))
            else:
                (message,) = sent
                unary = self._channel.unary_unary(path)
                got = unary(message, timeout=TIMEOUT_S, metadata=case.metadata)
                replies.append(_document(got, reply))
        except grpc.RpcError as error:
            return {"code": error.code().name, "text": error.details(), "replies": replies}
        return {"code": "OK", "replies": replies}

    def _message(self, message: Mapping[str, Any] | bytes, kind: Any) -> bytes:
        if isinstance(message, bytes):
            return message
        filled = self._filled(json.dumps(message))
        out: bytes = json_format.Parse(filled, kind()).SerializeToString()
        return out


def _http_answer(status: int, headers: Any, body: bytes) -> Answer:
    answer: Answer = {"status": status}
    answer["headers"] = {n: headers[n] for n in _HEADERS if n in headers}
    match headers.get("content-encoding"):
        case "gzip":
            body = gzip.decompress(body)
        case "deflate":
            body = zlib.decompress(body)
    length = headers.get("inference-header-content-length")
    document, binary = (body, b"") if length is None else (body[: int(length)], body[int(length) :])
    if events := _events(headers, document):
        answer["events"] = events
        return answer
    try:
        answer["json"] = json.loads(document)
    except ValueError:
        answer["text"] = document.decode(errors="replace")
    if length is not None:
        answer["binary"] = base64.b64encode(binary).decode()
        answer["headers"]["inference-header-content-length"] = "there"  # JSON's spaces are free
    return answer


def _events(headers: Any, body: bytes) -> list[Any]:
    """The documents of a stream of server-sent events."""
    if not headers.get("content-type", "").startswith("text/event-stream"):
        return []
    lines = body.decode().split("\n")
    return [json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:")]


def _method(name: str) -> tuple[str, Any, Any]:
    """(path, type of its requests, type of its replies)."""
    if name == "Check":
        return (
            "/grpc.health.v1.Health/Check",
            health_pb2.HealthCheckRequest,
            health_pb2.HealthCheckResponse,
        )
    method = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name.get(
        name
    )
    if method is None:  # a case of a method that is not there
        return f"/{SERVICE}/{name}", service_pb2.ServerLiveRequest, service_pb2.ServerLiveResponse
    kinds = (getattr(service_pb2, t.name) for t in (method.input_type, method.output_type))
    return (f"/{SERVICE}/{name}", *kinds)  # type: ignore[return-value]


def _document(message: bytes, kind: Any) -> Any:
    return json_format.MessageToDict(kind.FromString(message), preserving_proto_field_name=True)


@contextmanager
def shared_memory() -> Iterator[SharedMemory]:
    """The region that cases know as ``MEMORY_KEY``."""
    memory = SharedMemory(MEMORY_KEY.removeprefix("/"), create=True, size=MEMORY_BYTES)
    try:
        yield memory
    finally:
        memory.close()
        memory.unlink()


def replay(target: Target, cases: Sequence[Case]) -> dict[str, Answer]:
    """The answers by the cases' names."""
    with shared_memory() as memory:
        return {case.name: target.ask(case, memory) for case in cases}
