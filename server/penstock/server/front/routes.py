"""Which endpoint serves a method and a path. Resolved once per distinct head.

A pattern is a path whose ``{name}`` segments match one path segment each (``{version}`` digits
only); the captured parts are percent-decoded and given to the route's ``prepare``, whose result is
kept in ``head.memo`` for the endpoint. Query strings are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec

from penstock.server.front.cors import Cors
from penstock.server.front.operation import Operation
from penstock.server.front.restriction import Rules
from penstock.server.http_seam import JSON, Endpoint, RequestHead, Responder, plain_refusal

Prepare = Callable[[RequestHead, dict[str, str]], Any]
_JSON_PATHS = ("/v1", "/v2", "/invocations", "/models")
"""Whose protocols have errors as JSON."""


class Route(NamedTuple):
    method: str
    path: str
    pattern: re.Pattern[str]
    endpoint: Endpoint
    prepare: Prepare | None
    describe: Operation | None


class Routes:
    """The route table of one port, tried in the order of addition.

    ``rules`` say who may use which group of the API, ``cors`` which web pages may use any.
    """

    def __init__(self, rules: Rules | None = None, cors: Cors | None = None) -> None:
        self._routes: list[Route] = []
        self._rules = rules or {}
        self._cors = cors

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes)

    def add(
        self,
        method: str,
        path: str,
        endpoint: Endpoint,
        prepare: Prepare | None = None,
        describe: Operation | None = None,
    ) -> None:
        """Adds a route; a route for GET serves HEAD too. ``describe`` puts it into /openapi.json
        and into a group of the API."""
        expression = re.escape(path).replace(r"\{", "{").replace(r"\}", "}")
        expression = expression.replace("{version}", r"(?P<version>[0-9]+)")
        expression = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", expression)
        route = Route(method, path, re.compile(expression), endpoint, prepare, describe)
        self._routes.append(route)

    def resolve(self, head: Any) -> Endpoint:
        """The endpoint for ``head``; the one for "not found" or "wrong method" if there is none."""
        endpoint = self._find(head)
        return endpoint if self._cors is None else self._cors.around(head, endpoint)

    def _find(self, head: Any) -> Endpoint:
        method = "GET" if head.method == "HEAD" else head.method
        allowed: list[str] = []
        for route in self._routes:
            match = route.pattern.fullmatch(head.path)
            if match is None:
                continue
            if self._rules and self._is_forbidden(route, head):
                return _restricted
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

    def _is_forbidden(self, route: Route, head: Any) -> bool:
        rule = self._rules.get(route.describe.api) if route.describe is not None else None
        if rule is None or rule.admits(head.headers.get(rule.key.lower().encode())):
            return False
        head.memo = rule.key
        return True


def _not_found(responder: Responder, head: RequestHead, body: object) -> None:
    _refuse(responder, head, 404, "Not Found")


def _wrong_method(responder: Responder, head: RequestHead, body: object) -> None:
    _refuse(responder, head, 405, "Method Not Allowed", b"Allow: %b\r\n" % head.memo.encode())


def _restricted(responder: Responder, head: RequestHead, body: object) -> None:
    text = f"This API is restricted, expecting header '{head.memo}'"
    _refuse(responder, head, 403, text, b"Penstock-Code: PERMISSION_DENIED\r\n")


def _refuse(
    responder: Responder, head: RequestHead, status: int, text: str, fields: bytes = b""
) -> None:
    content_type, body = refusal(head, text)
    responder.reply(status, content_type, (body,), fields)


def refusal(head: RequestHead | None, text: str) -> tuple[str, bytes]:
    """An error in the form of the protocol that lives at this path; see ``http_seam.Refusal``."""
    if head is not None and head.path.startswith(_JSON_PATHS):
        return JSON, msgspec.json.encode({"error": text})
    return plain_refusal(head, text)
