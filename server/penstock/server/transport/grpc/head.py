"""What a gRPC call's header fields say: checked and routed once per distinct list, then remembered.

Clients send the same fields again and again but for the time limit, which many of them write anew
for each call: so it is taken out of the key and kept beside the head. Knows gRPC's fields. Must not
know connections or streams; the caller says which classes serve which kind of call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from penstock.protocol.errors import Code, InferError, PenstockError
from penstock.server.grpc_seam import Method, Methods
from penstock.server.transport.grpc.coding import CODINGS
from penstock.server.transport.grpc.wire import binary_value, timeout_ns
from penstock.server.transport.http2.blocks import Fields
from penstock.server.transport.http2.fields import Request, request_of

_MEMO_MAX: Final = 1024
_MEMO_LIST_BYTES_MAX: Final = 4096
_OWN: Final = frozenset(
    (b"content-type", b"te", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding",
     b"content-length", b"host", b"grpc-message-type")
)  # fmt: skip
"""Not metadata: HTTP's and gRPC's."""


class GrpcHead:
    """What the client's headers say; see ``CallHead``. Shared by all calls whose headers are alike.

    ``method`` is None where the call is refused: with ``refusal``, or in plain HTTP with ``status``
    and ``text``. ``coding`` is that of the client's compressed messages, ``reply_coding`` that of
    ours. ``bytes_max`` limits a message; ``content_length`` is -1 if not told.
    """

    __slots__ = (
        "bytes_max", "coding", "content_length", "memo", "metadata", "method", "path", "refusal",
        "reply_coding", "status", "text", "unary",
    )  # fmt: skip

    def __init__(self, path: str = "") -> None:
        self.path = path
        self.metadata: Mapping[str, str | bytes] = {}
        self.memo: Any = None
        self.method: Method | None = None
        self.unary = False
        self.refusal: PenstockError | None = None
        self.status = 0
        self.text = ""
        self.coding = ""
        self.reply_coding = ""
        self.content_length = -1
        self.bytes_max = 0


@dataclass(frozen=True, slots=True)
class HeadLimits:
    message_bytes_max: int
    header_list_bytes_max: int


class Heads:
    """Heads by their fields, bounded in number and in size."""

    def __init__(self, methods: Methods, limits: HeadLimits) -> None:
        self._methods = methods
        self._limits = limits
        self._known: dict[tuple[tuple[bytes, bytes], ...], GrpcHead] = {}

    def resolve(self, fields: Fields) -> tuple[GrpcHead, int]:
        """The head, and how long the client waits in nanoseconds (0: for ever).

        Raises:
            StreamFault: the fields are no request of HTTP/2.
        """
        limit = None
        for name, value in fields:
            if name == b"grpc-timeout":
                limit = value
        if limit is None:
            return self._head(tuple(fields)), 0
        head = self._head(tuple(pair for pair in fields if pair[0] != b"grpc-timeout"))
        try:
            return head, timeout_ns(limit)
        except ValueError as error:
            if head.method is None:
                return head, 0
            return _refused(head.path, InferError(Code.INTERNAL, str(error))), 0

    def _head(self, key: tuple[tuple[bytes, bytes], ...]) -> GrpcHead:
        known = self._known.get(key)
        if known is None:
            request = request_of(list(key))
            known = self._made(request)
            if request.list_bytes <= _MEMO_LIST_BYTES_MAX:
                if len(self._known) >= _MEMO_MAX:
                    self._known.clear()
                self._known[key] = known
        return known

    def _made(self, request: Request) -> GrpcHead:
        plain = self._plain_refusal(request)
        if plain is not None:
            plain.content_length = request.content_length
            return plain
        path = request.path.decode("latin-1")
        method = self._methods.get(path)
        if method is None:
            return _refused(path, InferError(Code.UNIMPLEMENTED, f"unknown method {path}"))
        head = GrpcHead(path)
        head.content_length = request.content_length
        limit = self._limits.message_bytes_max
        head.bytes_max = min(method.request_bytes_max or limit, limit)
        try:
            head.metadata = _metadata(request.fields)
            head.coding, head.reply_coding = _codings(request.fields)
        except PenstockError as error:
            return _refused(path, error)
        head.method = method
        head.unary = method.unary is not None
        return head

    def _plain_refusal(self, request: Request) -> GrpcHead | None:
        """What is answered as HTTP, to those who may not speak gRPC."""
        limit = self._limits.header_list_bytes_max
        if request.list_bytes > limit:
            return _plain(431, f"the header fields are larger than {limit} bytes")
        if request.method != b"POST":
            return _plain(405, "this port serves gRPC, which is POST alone")
        kinds = [value for name, value in request.fields if name == b"content-type"]
        kind = kinds[0].lower() if len(kinds) == 1 else b""
        if kind != b"application/grpc" and not kind.startswith(
            (b"application/grpc+", b"application/grpc;")
        ):
            return _plain(415, "this port serves gRPC: content-type application/grpc is needed")
        return None


def _plain(status: int, text: str) -> GrpcHead:
    head = GrpcHead()
    head.status, head.text = status, text
    return head


def _refused(path: str, error: PenstockError) -> GrpcHead:
    head = GrpcHead(path)
    head.refusal = error
    return head


def _metadata(fields: Fields) -> dict[str, str | bytes]:
    raw: dict[bytes, bytes] = {}
    for name, value in fields:
        if name in _OWN:
            continue
        before = raw.get(name)
        raw[name] = value if before is None else before + b"," + value
    found: dict[str, str | bytes] = {}
    for name, value in raw.items():
        key = name.decode("ascii")
        if key.endswith("-bin"):
            try:
                found[key] = binary_value(value)
            except ValueError as error:
                raise InferError(Code.INTERNAL, f"metadata {key}: {error}") from error
        else:
            found[key] = value.decode("latin-1")
    return found


def _codings(fields: Fields) -> tuple[str, str]:
    """(of the client's messages, of our replies).

    Raises:
        InferError: the first is none that we know.
    """
    given = dict(fields)
    coding = given.get(b"grpc-encoding", b"identity").decode("latin-1").strip().lower()
    if coding == "identity":
        return "", ""
    if coding not in CODINGS:
        text = f"Compression algorithm '{coding}' is not supported"
        raise InferError(Code.UNIMPLEMENTED, text)
    accepted = given.get(b"grpc-accept-encoding", b"").decode("latin-1").lower()
    return coding, coding if coding in accepted.replace(" ", "").split(",") else ""
