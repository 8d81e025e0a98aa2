"""One request to a server and what of its answer matters: the rows of the tables in ``cases``.

Knows how HTTP bodies and gRPC messages are written down. Must not know servers or answers.

Every case of a table has a name of its own. Cases run in the order of their table, on one server
for all tables: whoever changes something changes it back in a later case.

``check`` says how near the answer must be to the recorded one: ``exact`` (same status, same
document or message, same error text), ``shape`` (same status, same keys and types in the document),
``status`` (same status, and an error where that is one), ``error`` (both are errors: for texts and
codes that no client can rely on). ``ignore`` names keys that are left out of the comparison,
wherever they are.
"""

from __future__ import annotations

import json as jsons
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Check = Literal["exact", "shape", "status", "error"]
Server = Literal["explicit", "fixed", "decoupled"]
"""``explicit``: models are loaded and unloaded by requests; ``fixed``: they are not, and one of
them could not be loaded at the start; ``decoupled``: models answer any number of times."""


@dataclass(frozen=True)
class Case:
    name: str
    check: Check = field(default="exact", kw_only=True)
    ignore: Sequence[str] = field(default=(), kw_only=True)
    server: Server = field(default="explicit", kw_only=True)
    memory: bytes = field(default=b"", kw_only=True)
    """Written to the start of the shared memory before the request."""
    peek: int = field(default=0, kw_only=True)
    """Bytes at the start of the shared memory that belong to the answer."""


@dataclass(frozen=True)
class Http(Case):
    """A request whose parts are sent as they are; see ``request`` for bodies in JSON."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Grpc(Case):
    """A call of ``/inference.GRPCInferenceService/METHOD``.

    A message is protobuf's JSON form of the request, or its bytes. A call of ``ModelStreamInfer``
    sends all messages and then says that no more come.
    """

    method: str
    messages: Sequence[Mapping[str, Any] | bytes] = ({},)
    metadata: Sequence[tuple[str, str]] = ()


def get(name: str, path: str, **more: Any) -> Http:
    return Http(name, "GET", path, **more)


def post(
    name: str,
    path: str,
    json: Any = None,
    binary: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> Http:
    """``json``: a document, or text that is sent as it is; ``binary`` follows it, with the header
    that tells where it begins."""
    head = b""
    if json is not None:
        head = (json if isinstance(json, str) else jsons.dumps(json)).encode()
    headers = dict(headers or {})
    if binary is not None:
        headers.setdefault("Inference-Header-Content-Length", str(len(head)))
    return Http(name, "POST", path, headers, head + (binary or b""), **more)


def tensor(name: str, datatype: str, shape: Sequence[Any], data: Any = None, **more: Any) -> Any:
    """An input of a request in JSON; ``more`` are its parameters."""
    document: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
    if data is not None:
        document["data"] = data
    if more:
        document["parameters"] = more
    return document


def infer(name: str, model: str, inputs: Any, outputs: Any = None, **more: Any) -> Http:
    """``POST .../MODEL/infer``; ``document`` adds fields to the request's JSON."""
    document: dict[str, Any] = {"inputs": inputs, **more.pop("document", {})}
    if outputs is not None:
        document["outputs"] = outputs
    return post(name, f"/v2/models/{model}/infer", document, **more)
