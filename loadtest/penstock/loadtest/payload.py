"""One prebuilt request: HTTP/1.1 bytes to be sent again and again.

Knows HTTP/1.1's request form. Must not know codecs, sockets or servers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Payload:
    """One valid request. ``json_bytes``: the JSON part's length on the v2 wire, else 0.

    ``contains``: byte strings that every right answer's body has.
    """

    wire: str
    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    json_bytes: int = 0
    contains: tuple[bytes, ...] = ()

    def http(self) -> bytes:
        """The complete HTTP/1.1 request."""
        return build_request(self.path, self.body, self.headers)


def build_request(
    target: str, body: bytes = b"", headers: Mapping[str, str] | None = None, *, host: str = "load"
) -> bytes:
    """The bytes of a POST (of a GET if ``body`` is empty) to the path ``target``."""
    lines = [f"{'POST' if body else 'GET'} {target} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
