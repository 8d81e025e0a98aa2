"""What a route does, said once: for the API description, for restrictions, for people.

Knows the words of an API description (OpenAPI 3.1) for one route. Schemas are those of JSON Schema
2020-12, as plain dictionaries; ``openapi`` puts the document together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

Schema = Mapping[str, Any]

BINARY: Final[Schema] = {}
"""The schema of bytes: none, says OpenAPI 3.1."""


def ref(name: str) -> Schema:
    """The schema of this name among those of the document (``openapi_schemas``)."""
    return {"$ref": f"#/components/schemas/{name}"}


@dataclass(frozen=True, slots=True)
class Operation:
    """``api`` is the group that the route belongs to (``restriction.GROUPS``); empty: to none.

    ``reply`` and ``request`` are by media type; an empty ``request`` means that no body is read.
    ``errors`` are the statuses that the endpoint may answer beside 200, in the form of the protocol
    that lives at the path. ``fields`` are request headers with a meaning, and what that is.
    """

    api: str
    summary: str
    reply: Mapping[str, Schema]
    request: Mapping[str, Schema] = field(default_factory=dict)
    errors: tuple[int, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    details: str = ""
    request_needed: bool = True


def json_operation(
    api: str,
    summary: str,
    reply: Schema,
    request: Schema | None = None,
    errors: tuple[int, ...] = (),
    *,
    request_needed: bool = False,
    details: str = "",
) -> Operation:
    """An operation that takes a JSON document, or nothing, and answers one."""
    json = "application/json"
    return Operation(
        api,
        summary,
        {json: reply},
        {} if request is None else {json: request},
        errors,
        details=details,
        request_needed=request_needed,
    )
