"""Where a server listens: the URL that a caller gives, taken apart.

Knows: the accepted forms of URL. Must not know sockets.

``http://host[:port][/base]``, ``https://...``, ``unix:/path/to.sock`` and ``unix:///path/to.sock``
(HTTP over a Unix socket, no base path).
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server. ``base`` has no trailing slash; ``unix`` is a path, or empty for TCP.

    ``authority`` is the value of the ``Host`` header.
    """

    host: str
    port: int
    base: str
    authority: str
    tls: bool = False
    unix: str = ""

    def __str__(self) -> str:
        if self.unix:
            return f"unix:{self.unix}"
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.base}"


def parse(url: str) -> Endpoint:
    """Take ``url`` apart.

    Raises:
        ValueError: it is none of the accepted forms; the message says which part is wrong.
    """
    if not url.isascii() or any(c <= " " or c == "\x7f" for c in url):
        raise ValueError(f"{url!r}: a URL has neither spaces nor control nor non-ASCII characters")
    if url.startswith("unix:"):
        return _parse_unix(url)
    parts = urlsplit(url)
    if parts.scheme not in _PORTS:
        raise ValueError(f"{url!r}: expected http://, https:// or unix:/path")
    if not parts.hostname:
        raise ValueError(f"{url!r} names no host")
    if "@" in parts.netloc:
        raise ValueError("credentials in a URL end up in logs; pass an Authorization header")
    if parts.query or parts.fragment:
        raise ValueError(f"{url!r}: a query or a fragment has no meaning here")
    default = _PORTS[parts.scheme]
    try:
        port = parts.port or default
    except ValueError as error:
        raise ValueError(f"{url!r}: {error}") from None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Endpoint(
        host=parts.hostname,
        port=port,
        base=parts.path.rstrip("/"),
        authority=host if port == default else f"{host}:{port}",
        tls=parts.scheme == "https",
    )


def _parse_unix(url: str) -> Endpoint:
    path = url.removeprefix("unix:")
    if path.startswith("//"):
        path = path[2:]
    if not path.startswith("/"):
        raise ValueError(f"{url!r}: a Unix socket is given by its absolute path")
    return Endpoint(host="", port=0, base="", authority="localhost", unix=path)
