"""The Open Inference Protocol over HTTP: Triton's shared memory extensions, system and CUDA.

Knows the documents. What a region is, and which are there, is ``shared_memory``'s.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from penstock.protocol.errors import Code, InferError
from penstock.server.front import oip_operations as told
from penstock.server.front.json_endpoint import answering, json_object
from penstock.server.front.routes import Routes
from penstock.server.http_seam import Buffer, RequestHead
from penstock.server.shared_memory import Kind, SharedMemory


class OipSharedMemoryFront:
    """Status, registration and its end of the regions of one registry."""

    def __init__(self, regions: SharedMemory) -> None:
        self._regions = regions

    def add_to(self, routes: Routes) -> None:
        for word, kind in (("system", Kind.SYSTEM), ("cuda", Kind.CUDA)):
            every = f"/v2/{word}sharedmemory"
            one = every + "/region/{region}"
            for path in (every, one):
                status, unregister = answering(self._status), answering(self._unregister)
                routes.add("GET", path + "/status", status, _named(kind), told.REGIONS)
                path += "/unregister"
                routes.add("POST", path, unregister, _named(kind), told.UNREGISTER)
        system, cuda = answering(self._register_system), answering(self._register_cuda)
        path = "/v2/{}sharedmemory/region/{{region}}/register"
        routes.add("POST", path.format("system"), system, _named(Kind.SYSTEM), told.REGISTER)
        routes.add("POST", path.format("cuda"), cuda, _named(Kind.CUDA), told.REGISTER)

    def _status(self, head: RequestHead, body: Buffer) -> object:
        return [asdict(region) for region in self._regions.status(*head.memo)]

    def _unregister(self, head: RequestHead, body: Buffer) -> object:
        self._regions.unregister(*head.memo)
        return {}

    def _register_system(self, head: RequestHead, body: Buffer) -> object:
        asked = json_object(body)
        offset = _unsigned(asked, "offset") if "offset" in asked else 0
        self._regions.register_system(
            head.memo[0], _text(asked, "key"), offset, _unsigned(asked, "byte_size")
        )
        return {}

    def _register_cuda(self, head: RequestHead, body: Buffer) -> object:
        asked = json_object(body)
        coded = _field(asked, "raw_handle")
        try:
            handle = b64decode(
                _text(coded if isinstance(coded, dict) else {}, "b64"), validate=True
            )
        except ValueError:
            raise _invalid("'raw_handle' is not base64") from None
        self._regions.register_cuda(
            head.memo[0], handle, _unsigned(asked, "device_id"), _unsigned(asked, "byte_size")
        )
        return {}


def _named(kind: Kind) -> Callable[[RequestHead, Mapping[str, str]], tuple[str, Kind]]:
    return lambda head, captured: (captured.get("region", ""), kind)


def _field(asked: Mapping[str, Any], name: str) -> object:
    if name not in asked:
        raise _invalid(f"Shared memory register request has no '{name}' field")
    return asked[name]


def _text(asked: Mapping[str, Any], name: str) -> str:
    value = _field(asked, name)
    if not isinstance(value, str):
        raise _invalid(f"Unable to parse '{name}': attempt to access JSON non-string as string")
    return value


def _unsigned(asked: Mapping[str, Any], name: str) -> int:
    value = _field(asked, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _invalid(
            f"Unable to parse '{name}': "
            "attempt to access JSON non-unsigned-integer as unsigned-integer"
        )
    return value


def _invalid(text: str) -> InferError:
    return InferError(Code.INVALID_ARGUMENT, text)
