"""Which endpoint serves a method and a path. Resolved once per distinct head.

A pattern is a path whose ``{name}`` segments match one path segment each (``{version}`` digits
only); the captured parts are percent-decoded and given to the route's ``prepare``, whose result is
kept in ``head.memo`` for the endpoint.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec

from penstock.server.http_seam import JSON, Endpoint, RequestHead, Responder, plain_refusal

Prepare = Callable[[RequestHead, dict[str, str]], Any]


class _Route(NamedTuple):
    method: str
    pattern: re.Pattern[str]
    endpoint: Endpoint
    prepare: Prepare | None


class Routes:
    """The route table of one port, tried in the order of addition."""

    def __init__(self) -> None:
        self._routes: list[_Route] = []

    def add(
        self, method: str, path: str, endpoint: Endpoint, prepare: Prepare | None = None
    ) -> None:
        """Adds a route; a route for GET serves HEAD too."""
        expression = re.escape(path).replace(r"\{", "{").replace(r"\}", "}")
        expression = expression.replace("{version}", r"(?P<version>[0-9]+)")
        expression = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", expression)
        self._routes.append(_Route(method, re.compile(expression), endpoint, prepare))

    def resolve(self, head: Any) -> Endpoint:
        """The endpoint for ``head``; the one for "not found" or "wrong method" if there is none."""
        method = "GET" if head.method == "HEAD" else head.method
        allowed: list[str] = []
        for route in self._routes:
            match = route.pattern.fullmatch(head.path)
            if match is None:
                continue
            if route.method != method:
                allowed.append(route.method)
                continue
            if route.prepare is not None:
                captured = {k: unquote(v) for k, v in match.groupdict().items()}
                head.memo = route.prepare(head, captured)
            return route.endpoint
        if not allowed:
            return _not_found
        head.memo = ", ".join([*allowed, "HEAD"] if "GET" in allowed else allowed)
        return _wrong_method


def _not_found(responder: Responder, head: RequestHead, body: object) -> None:
    _refuse(responder, head, 404, "Not Found")


def _wrong_method(responder: Responder, head: RequestHead, body: object) -> None:
    _refuse(responder, head, 405, "Method Not Allowed", b"Allow: %b\r\n" % head.memo.encode())


def _refuse(
    responder: Responder, head: RequestHead, status: int, text: str, fields: bytes = b""
) -> None:
    content_type, body = refusal(head, text)
    responder.reply(status, content_type, (body,), fields)


def refusal(head: RequestHead | None, text: str) -> tuple[str, bytes]:
    """An error in the form of the protocol that lives at this path; see ``http_seam.Refusal``."""
    if head is not None and head.path.startswith("/v2"):
        return JSON, msgspec.json.encode({"error": text})
    return plain_refusal(head, text)
