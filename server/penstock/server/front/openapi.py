"""``/openapi.json``: the HTTP routes of this server as an OpenAPI 3.1 document.

Made from the route table: what is served and what is described cannot drift apart. Knows the words
of OpenAPI; what a route does is said beside the route (``operation``), what the messages look like
in ``openapi_schemas``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec

from penstock.server.front.openapi_schemas import SCHEMAS
from penstock.server.front.operation import Operation, Schema, json_operation, ref
from penstock.server.front.routes import Route, Routes, refusal
from penstock.server.http_seam import JSON, Buffer, RequestHead, Responder

_TITLE: Final = "Penstock"
_DESCRIPTION: Final = (
    "A model-serving gateway. Inference goes by KServe v2 (Triton's protocol), by GraphPipe and by "
    "the further protocols below; every error says in words what was wrong."
)
_SEGMENT: Final = re.compile(r"\{(\w+)\}")
_BODY_ERRORS: Final = (400, 408, 413, 503)
"""What any request with a body may be answered by HTTP itself."""
_VERSION: Final[Schema] = {"type": "string", "pattern": "^[0-9]+$"}
_NAME: Final[Schema] = {"type": "string", "minLength": 1}
_DESCRIBE: Final = json_operation(
    "metadata", "This document", {"type": "object", "required": ["openapi", "paths"]}
)


class OpenapiFront:
    """Describes ``routes``, this one included. The document is made when it is first asked for, so
    that routes which are added later are in it."""

    def __init__(self, routes: Routes, version: str) -> None:
        self._routes = routes
        self._version = version
        self._text = b""

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", "/openapi.json", self._tell, describe=_DESCRIBE)

    def _tell(self, responder: Responder, head: RequestHead, body: Buffer) -> None:
        if not self._text:
            self._text = msgspec.json.encode(document(self._routes, self._version))
        responder.reply(200, JSON, (self._text,))


def document(routes: Routes, version: str) -> dict[str, Any]:
    """The description of every route that has one."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if route.describe is not None:
            path = paths.setdefault(route.path, {})
            path.setdefault(route.method.lower(), _operation(route, route.describe))
    return {
        "openapi": "3.1.0",
        "info": {"title": _TITLE, "version": version, "description": _DESCRIPTION},
        "paths": paths,
        "components": {"schemas": dict(SCHEMAS)},
    }


def _operation(route: Route, operation: Operation) -> dict[str, Any]:
    told: dict[str, Any] = {
        "operationId": _identifier(route),
        "summary": operation.summary,
        "parameters": [*_path_parameters(route.path), *_header_parameters(operation.fields)],
        "responses": _responses(route, operation),
    }
    if operation.api:
        told["tags"] = [operation.api]
    if operation.details:
        told["description"] = operation.details
    if operation.request:
        told["requestBody"] = {
            "required": operation.request_needed,
            "content": _content(operation.request),
        }
    return told


def _identifier(route: Route) -> str:
    words = re.findall(r"\w+", route.path)
    return "_".join([route.method.lower(), *words])


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": _VERSION if name == "version" else _NAME,
        }
        for name in _SEGMENT.findall(path)
    ]


def _header_parameters(fields: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "header", "description": meaning, "schema": {"type": "string"}}
        for name, meaning in fields.items()
    ]


def _responses(route: Route, operation: Operation) -> dict[str, Any]:
    responses: dict[str, Any] = {"200": {"description": "OK", "content": _content(operation.reply)}}
    statuses = {*operation.errors, *(_BODY_ERRORS if operation.request else ())}
    if operation.api:
        statuses.add(403)
    if "{" in route.path:
        statuses.add(404)
    for status in sorted(statuses):
        responses[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": _error(route.path),
        }
    return responses


def _error(path: str) -> dict[str, Any]:
    """In the form of the protocol that lives at ``path``."""
    head: Any = _Path(path)
    media = refusal(head, "")[0].partition(";")[0]
    return _content({media: ref("Error") if media == JSON else {"type": "string"}})


class _Path:
    """As much of a head as wording an error takes."""

    def __init__(self, path: str) -> None:
        self.path = path


def _content(media: Mapping[str, Schema]) -> dict[str, Any]:
    return {name: {"schema": schema} for name, schema in media.items()}
