"""From a request message to an HTTP request, and from an HTTP reply to a result or a typed error.

Pure: bytes and values in, bytes and values out; shared by both clients. Knows: paths, headers and
status codes of the two protocols. Must not know sockets, connections, clocks or retries.

``GraphPipe`` and ``V2`` are the two implementations of ``Exchange``. A ``Call`` is what a transport
has to send and how to read what comes back; ``Call.read`` raises the errors of ``errors.py``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Generic, NoReturn, Protocol, TypeVar
from urllib.parse import quote

import msgspec

from penstock.client.endpoint import Endpoint
from penstock.client.errors import BadReply, error_of
from penstock.client.result import ModelStatus
from penstock.protocol import graphpipe, oip_json
from penstock.protocol.errors import Code, InferError, ProtocolError
from penstock.protocol.limits import WireLimits
from penstock.protocol.message import InferReply, InferRequest, ModelMetadata

Buffer = bytes | memoryview
Files = Mapping[str, Buffer]
"""By path within a model's directory."""
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

JSON_LENGTH: Final = "inference-header-content-length"
_RESERVED: Final = frozenset(
    ("connection", "content-length", "content-type", "expect", "host", "te", "trailer", "upgrade")
) | {"transfer-encoding", JSON_LENGTH}
_TOKEN: Final = frozenset(
    "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)
_ROUTES_MAX: Final = 1024
_TEXT_MAX: Final = 4096
_RETRY_AFTER_DIGITS_MAX: Final = 9

CODE_BY_STATUS: Final[Mapping[int, Code]] = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    405: Code.UNIMPLEMENTED,
    408: Code.DEADLINE_EXCEEDED,
    409: Code.ALREADY_EXISTS,
    413: Code.OUT_OF_RANGE,
    429: Code.RESOURCE_EXHAUSTED,
    499: Code.CANCELLED,
    500: Code.INTERNAL,
    501: Code.UNIMPLEMENTED,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
}
"""Used where the server does not name the code itself in ``Penstock-Code``."""


class Reply:
    """A whole HTTP reply. Header names are lower case; ``body`` is read-only."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: Mapping[str, str], body: memoryview) -> None:
        self.status = status
        self.headers = headers
        self.body = body.toreadonly()


class Route:
    """Where a call goes. ``head`` is the request head up to and without ``Content-Length``."""

    __slots__ = ("content_type", "head", "method", "target")

    def __init__(self, method: str, target: str, content_type: str, head: bytes) -> None:
        self.method = method
        self.target = target
        self.content_type = content_type
        self.head = head


class Call(Generic[T_co]):
    """One HTTP exchange: the body is ``buffers`` in order, ``length`` bytes in all."""

    __slots__ = ("buffers", "json_length", "length", "read", "route")

    def __init__(
        self,
        route: Route,
        read: Callable[[Reply], T_co],
        buffers: Sequence[Buffer] = (),
        json_length: int | None = None,
    ) -> None:
        self.route = route
        self.read = read
        self.buffers = buffers
        self.json_length = json_length
        length = 0
        for buffer in buffers:
            length += len(buffer) if type(buffer) is bytes else memoryview(buffer).nbytes
        self.length = length

    def head(self) -> bytes:
        """The complete request head of HTTP/1.1."""
        route = self.route
        if route.method == "GET":
            return route.head + b"\r\n"
        if self.json_length is None:
            return b"%bContent-Length: %d\r\n\r\n" % (route.head, self.length)
        return b"%bContent-Length: %d\r\nInference-Header-Content-Length: %d\r\n\r\n" % (
            route.head,
            self.length,
            self.json_length,
        )


class Exchange(Protocol):
    """One protocol as its calls."""

    @property
    def headers(self) -> Mapping[str, str]:
        """What every request carries besides what a call adds."""
        ...

    names_inputs: bool
    """Whether an input must be sent by its name (otherwise ``""`` is the model's default)."""
    names_outputs: bool
    """Whether replies carry the names of their tensors."""

    def infer(self, request: InferRequest) -> Call[InferReply]: ...
    def metadata(self, model: str, version: str) -> Call[ModelMetadata]: ...
    def is_live(self) -> Call[bool]: ...
    def is_ready(self, model: str | None, version: str) -> Call[bool]: ...
    def models(self) -> Call[tuple[ModelStatus, ...]]: ...
    def load(self, model: str, config: str | None, files: Files) -> Call[None]: ...
    def unload(self, model: str) -> Call[None]: ...


class _Common:
    """Routes, errors and the calls that are the same in both protocols (they use v2's paths)."""

    __slots__ = ("_limits", "_routes", "_shared", "endpoint", "headers")

    def __init__(self, endpoint: Endpoint, headers: Mapping[str, str], limits: WireLimits) -> None:
        self.endpoint = endpoint
        self.headers = headers_checked(headers)
        self._limits = limits
        lines = [f"Host: {endpoint.authority}", *(f"{k}: {v}" for k, v in self.headers.items())]
        self._shared = "".join(f"{line}\r\n" for line in lines)
        self._routes: dict[tuple[str, str, str], Route] = {}

    def is_live(self) -> Call[bool]:
        return Call(self._fixed("GET", "/v2/health/live"), self._read_server_health)

    def is_ready(self, model: str | None, version: str) -> Call[bool]:
        if model is None:
            return Call(self._fixed("GET", "/v2/health/ready"), self._read_server_health)
        path = f"{_v2_path(model, version)}/ready"
        return Call(self._fixed("GET", path), self._read_model_health)

    def models(self) -> Call[tuple[ModelStatus, ...]]:
        return Call(self._fixed("POST", "/v2/repository/index"), self._read_models)

    def load(self, model: str, config: str | None, files: Files) -> Call[None]:
        # msgspec writes bytes as base64, as the extension wants them.
        parameters: dict[str, Any] = {f"file:{path}": data for path, data in files.items()}
        if config is not None:
            parameters["config"] = config
        return self._change(model, "load", parameters)

    def unload(self, model: str) -> Call[None]:
        return self._change(model, "unload", {"unload_dependents": False})

    def _change(self, model: str, what: str, parameters: dict[str, Any]) -> Call[None]:
        path = f"/v2/repository/models/{_segment(model, 'model')}/{what}"
        body = msgspec.json.encode({"parameters": parameters})
        return Call(self._fixed("POST", path), self._read_change, (body,))

    def _read_change(self, reply: Reply) -> None:
        if reply.status != 200:
            self._fail(reply)

    def _fixed(self, method: str, path: str, content_type: str = "") -> Route:
        """A route that is not kept: only inference is hot."""
        target = self.endpoint.base + path
        typed = f"Content-Type: {content_type}\r\n" if content_type else ""
        head = f"{method} {target} HTTP/1.1\r\n{self._shared}{typed}".encode("latin-1")
        return Route(method, target, content_type, head)

    def _kept(self, path: Callable[[str, str], str], key: tuple[str, str, str]) -> Route:
        """The POST route to model ``key[0]``, version ``key[1]``, content type ``key[2]``."""
        route = self._routes.get(key)
        if route is None:
            if len(self._routes) >= _ROUTES_MAX:
                self._routes.clear()
            route = self._routes[key] = self._fixed("POST", path(key[0], key[1]), key[2])
        return route

    def _read_server_health(self, reply: Reply) -> bool:
        if reply.status in (401, 403, 404):
            self._fail(reply)  # A wrong URL or key is not "not ready yet".
        return reply.status == 200

    def _read_model_health(self, reply: Reply) -> bool:
        if reply.status in (401, 403):
            self._fail(reply)
        return reply.status == 200

    def _read_models(self, reply: Reply) -> tuple[ModelStatus, ...]:
        if reply.status != 200:
            self._fail(reply)
        try:
            return msgspec.json.decode(reply.body, type=tuple[ModelStatus, ...])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadReply(f"the list of models is not one: {error}") from None

    def _text(self, reply: Reply) -> str:
        return bytes(reply.body[:_TEXT_MAX]).decode(errors="replace").strip()

    def _fail(self, reply: Reply) -> NoReturn:
        code = Code.__members__.get(reply.headers.get("penstock-code", ""))
        if code is None:
            code = CODE_BY_STATUS.get(reply.status, Code.UNKNOWN)
        text = self._text(reply) or f"HTTP status {reply.status} without a message"
        if 300 <= reply.status < 400:
            text = f"redirects are not followed (to {reply.headers.get('location', 'nowhere')})"
        raise error_of(code, text, retry_after_s(reply.headers))


class GraphPipe(_Common):
    """FlatBuffers frames in POST bodies."""

    __slots__ = ("_frames",)
    names_inputs: bool = False
    names_outputs: bool = False

    def __init__(self, endpoint: Endpoint, headers: Mapping[str, str], limits: WireLimits) -> None:
        super().__init__(endpoint, headers, limits)
        self._frames = graphpipe.RequestEncoder()

    def infer(self, request: InferRequest) -> Call[InferReply]:
        route = self._kept(_graphpipe_path, (request.model, request.version, _BINARY))
        return Call(route, self._read_infer, self._frames.encode(request))

    def metadata(self, model: str, version: str) -> Call[ModelMetadata]:
        route = self._kept(_graphpipe_path, (model, version, _BINARY))
        return Call(route, self._read_metadata, (graphpipe.encode_metadata_request(),))

    def _read_infer(self, reply: Reply) -> InferReply:
        if reply.status != 200:
            self._fail(reply)
        try:
            return graphpipe.decode_reply(reply.body, self._limits)
        except ProtocolError as error:
            raise BadReply(f"the reply is not a GraphPipe frame: {error}") from error
        except InferError as error:
            wait_s = retry_after_s(reply.headers)
            raise error_of(error.code, error.message, wait_s) from None

    def _read_metadata(self, reply: Reply) -> ModelMetadata:
        if reply.status != 200:
            self._fail(reply)
        try:
            return graphpipe.decode_metadata(reply.body, self._limits)
        except ProtocolError as error:
            raise BadReply(f"the reply is not GraphPipe metadata: {error}") from error


class _Codec(threading.local):
    """An encoder and a decoder for each thread: they remember, and are not made to be shared."""

    def __init__(self, limits: WireLimits) -> None:
        self.requests = oip_json.RequestEncoder()
        self.replies = oip_json.ReplyDecoder(limits)


class V2(_Common):
    """KServe v2: JSON with binary tensors behind it."""

    __slots__ = ("_codec",)
    names_inputs: bool = True
    names_outputs: bool = True

    def __init__(self, endpoint: Endpoint, headers: Mapping[str, str], limits: WireLimits) -> None:
        super().__init__(endpoint, headers, limits)
        self._codec = _Codec(limits)

    def infer(self, request: InferRequest) -> Call[InferReply]:
        buffers, json_length = self._codec.requests.encode(request)
        content_type = _JSON if json_length is None else _BINARY
        route = self._kept(_v2_infer_path, (request.model, request.version, content_type))
        return Call(route, self._read_infer, buffers, json_length)

    def metadata(self, model: str, version: str) -> Call[ModelMetadata]:
        return Call(self._fixed("GET", _v2_path(model, version)), self._read_metadata)

    def _read_infer(self, reply: Reply) -> InferReply:
        if reply.status != 200:
            self._fail(reply)
        json_length = json_length_of(reply.headers)
        if json_length is not None and json_length > len(reply.body):
            raise BadReply(f"JSON of {json_length} bytes in a body of {len(reply.body)}")
        try:
            return self._codec.replies.decode(reply.body, json_length)
        except ProtocolError as error:
            raise BadReply(f"the reply is not a v2 inference response: {error}") from error

    def _read_metadata(self, reply: Reply) -> ModelMetadata:
        if reply.status != 200:
            self._fail(reply)
        try:
            return oip_json.parse_model_metadata(bytes(reply.body))
        except ProtocolError as error:
            raise BadReply(f"the reply is not v2 model metadata: {error}") from error

    def _text(self, reply: Reply) -> str:
        return oip_json.decode_error(bytes(reply.body)) or super()._text(reply)


_BINARY: Final = "application/octet-stream"
_JSON: Final = "application/json"
PROTOCOLS: Final[Mapping[str, Callable[[Endpoint, Mapping[str, str], WireLimits], Exchange]]] = {
    "graphpipe": GraphPipe,
    "v2": V2,
}


def headers_checked(headers: Mapping[str, str]) -> dict[str, str]:
    """A copy of ``headers`` that is safe to put into a request head, with ``User-Agent``.

    Raises:
        ValueError: a header that is malformed or that the client sets itself.
    """
    for name, value in headers.items():
        if not name or not _TOKEN.issuperset(name):
            raise ValueError(f"{name!r} is not a header name")
        if name.lower() in _RESERVED:
            raise ValueError(f"the client sets the header {name} itself")
        if any(c != "\t" and not " " <= c <= "~" for c in value):
            raise ValueError(f"the value of header {name} has control or non-ASCII characters")
    agent = {} if "user-agent" in map(str.lower, headers) else {"User-Agent": "penstock-python"}
    return {**agent, **headers}


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """``Retry-After`` in seconds; None where it is absent or a date (that needs a clock)."""
    value = headers.get("retry-after")
    if value is None or not (value.isascii() and value.isdigit()):
        return None
    return float(value) if len(value) <= _RETRY_AFTER_DIGITS_MAX else None


def json_length_of(headers: Mapping[str, str]) -> int | None:
    """``Inference-Header-Content-Length``; None where it is absent.

    Raises:
        BadReply: it is not a number.
    """
    value = headers.get(JSON_LENGTH)
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise BadReply(f"{JSON_LENGTH} is {value[:32]!r}, not a length")
    return int(value)


def _segment(name: str, what: str) -> str:
    if name in (".", ".."):
        raise ValueError(f"{what} cannot be {name!r}: it would change the path")
    return quote(name, safe="")


def _graphpipe_path(model: str, version: str) -> str:
    if not model:
        if version:
            raise ValueError("a version needs the name of its model")
        return "/"
    path = f"/graphpipe/{_segment(model, 'a model')}"
    return f"{path}/{_segment(version, 'a version')}" if version else path


def _v2_path(model: str, version: str) -> str:
    if not model:
        raise ValueError("the v2 protocol has no default model: name one")
    path = f"/v2/models/{_segment(model, 'a model')}"
    return f"{path}/versions/{_segment(version, 'a version')}" if version else path


def _v2_infer_path(model: str, version: str) -> str:
    return f"{_v2_path(model, version)}/infer"
