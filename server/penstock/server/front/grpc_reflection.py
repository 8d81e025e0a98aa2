"""gRPC's server reflection, v1 and v1alpha: tools such as grpcurl learn the services from it.

Knows descriptors only. The services' own schemas are told, each file with those that it imports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.descriptor import FileDescriptor

from penstock.protocol.errors import Code, InferError
from penstock.server.front.failure import failure
from penstock.server.front.grpc_unary import REQUEST_BYTES_MAX, parsed
from penstock.server.grpc_schema import METHODS, REFLECTION, REFLECTION_ALPHA
from penstock.server.grpc_seam import Call, Method
from penstock.server.http_seam import Buffer

PATHS: Final = tuple(f"/{name}/ServerReflectionInfo" for name in (REFLECTION, REFLECTION_ALPHA))


@dataclass(frozen=True, slots=True)
class Described:
    """Services and the pool that knows them; ``files`` are serialized descriptors by file name."""

    services: Sequence[str]
    pool: Any
    files: Mapping[str, bytes]


class GrpcReflectionFront:
    """Tells of ``described``; where two know a file of the same name, the first one counts."""

    def __init__(self, described: Sequence[Described]) -> None:
        self._described = described

    def methods(self) -> list[Method]:
        return [
            Method(path, stream=self._opener(path), request_bytes_max=REQUEST_BYTES_MAX)
            for path in PATHS
        ]

    def _opener(self, path: str) -> Any:
        types = METHODS[path]
        return lambda call, head: _Inquiry(self, call, types.request, types.reply)

    def answer(self, request: Any, reply: Any) -> None:
        """Fills ``reply``; what cannot be found is said in it.

        Raises:
            InferError: INVALID_ARGUMENT, nothing is asked.
        """
        kind = request.WhichOneof("message_request")
        if kind is None:
            raise InferError(Code.INVALID_ARGUMENT, "the request asks for nothing")
        try:
            getattr(self, "_" + kind)(getattr(request, kind), reply)
        except KeyError:
            reply.error_response.error_code = Code.NOT_FOUND.grpc_status
            reply.error_response.error_message = f"{kind}: not found"

    def _list_services(self, _: str, reply: Any) -> None:
        for name in sorted(name for part in self._described for name in part.services):
            reply.list_services_response.service.add(name=name)

    def _file_by_filename(self, name: str, reply: Any) -> None:
        for part in self._described:
            if name in part.files:
                _tell(part, part.pool.FindFileByName(name), reply)
                return
        raise KeyError(name)

    def _file_containing_symbol(self, symbol: str, reply: Any) -> None:
        for part in self._described:
            file = _file_of(part.pool, symbol)
            if file is not None:
                _tell(part, file, reply)
                return
        raise KeyError(symbol)

    def _file_containing_extension(self, asked: Any, reply: Any) -> None:
        raise KeyError(asked.containing_type)  # These schemas have no extensions.

    def _all_extension_numbers_of_type(self, name: str, reply: Any) -> None:
        for part in self._described:
            try:
                part.pool.FindMessageTypeByName(name)
            except KeyError:
                continue
            reply.all_extension_numbers_response.base_type_name = name
            return
        raise KeyError(name)


def _file_of(pool: Any, symbol: str) -> Any:
    try:
        return pool.FindFileContainingSymbol(symbol)
    except KeyError:
        pass
    try:
        return pool.FindMethodByName(symbol).containing_service.file  # The other one lacks these.
    except KeyError:
        return None


def _tell(part: Described, file: FileDescriptor, reply: Any) -> None:
    told: dict[str, bytes] = {}
    waiting = [file]
    while waiting:
        one = waiting.pop(0)
        if one.name not in told:
            told[one.name] = part.files[one.name]
            waiting.extend(one.dependencies)
    reply.file_descriptor_response.file_descriptor_proto.extend(told.values())


class _Inquiry:
    """One call; see ``grpc_seam.Stream``. Each request is answered at once."""

    full = False

    def __init__(
        self, front: GrpcReflectionFront, call: Call, request_type: Any, reply_type: Any
    ) -> None:
        self._front = front
        self._call = call
        self._request_type = request_type
        self._reply_type = reply_type

    def received(self, message: Buffer) -> None:
        try:
            request = parsed(self._request_type, message)
            reply = self._reply_type(valid_host=request.host, original_request=request)
            self._front.answer(request, reply)
            self._call.send((reply.SerializeToString(),))
        except Exception as error:
            self._call.fail(failure(error))

    def half_closed(self) -> None:
        self._call.finish()

    def drained(self) -> None:
        """Nothing was held back."""

    def cancel(self) -> None:
        """Nothing is in progress."""
