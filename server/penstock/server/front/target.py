"""What the head of an inference request says, beside its body. Made once per distinct head."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from penstock.protocol.message import NO_PARAMETERS, InferRequest, Parameter
from penstock.server.front.compression import accepted
from penstock.server.http_seam import RequestHead

TIMEOUT_FIELD: Final = "Penstock-Timeout-Ms"
_TIMEOUT_MS_MAX: Final = 1 << 31
_LENGTH: Final = re.compile(rb"-?[0-9]{1,40}")


class Target:
    """Whom a request is for and how it travels.

    ``json_length`` is None where the whole body is JSON, 0 where it is the raw input;
    ``timeout_ns`` how long the client waits, 0 for ever. ``forwarded`` are the headers that become
    parameters. ``fault`` says what is wrong with the head; ``odd`` whether there is anything that a
    request rarely has: a fault, a content coding, a timeout, forwarded headers.
    """

    __slots__ = (
        "accepts", "coding", "fault", "forwarded", "json_length", "model", "odd", "timeout_ns",
        "version",
    )  # fmt: skip

    def __init__(
        self,
        head: RequestHead,
        captured: Mapping[str, str],
        forward: re.Pattern[str] | None = None,
    ) -> None:
        self.fault = ""
        self.model = captured["model"]
        self.version = captured.get("version", "")
        self.json_length = self._length(head.headers.get(b"inference-header-content-length"))
        self.coding = head.headers.get(b"content-encoding", b"").strip().lower()
        if self.coding == b"identity":
            self.coding = b""
        self.accepts = accepted(head.headers.get(b"accept-encoding", b""))
        self.timeout_ns = self._timeout(head.headers.get(TIMEOUT_FIELD.lower().encode()))
        self.forwarded = _forwarded(head, forward) if forward is not None else NO_PARAMETERS
        self.odd = bool(self.fault or self.coding or self.timeout_ns or self.forwarded)

    def _length(self, raw: bytes | None) -> int | None:
        if raw is None:
            return None
        if _LENGTH.fullmatch(raw) is None:
            self.fault = "Inference-Header-Content-Length is not a length"
            return 0
        return int(raw)

    def _timeout(self, raw: bytes | None) -> int:
        if raw is None:
            return 0
        if not raw.isdigit() or len(raw) > 10 or not 0 < int(raw) <= _TIMEOUT_MS_MAX:
            self.fault = f"{TIMEOUT_FIELD} is not a number of milliseconds from 1 to 2147483648"
            return 0
        return int(raw) * 1_000_000

    def address(self, request: InferRequest) -> None:
        """Puts on a decoded request what the head says of it."""
        request.model = self.model
        request.version = self.version
        if self.forwarded:
            # A header wins: it may come from a proxy that the operator trusts more than the body.
            request.parameters = {**request.parameters, **self.forwarded}


def _forwarded(head: RequestHead, pattern: re.Pattern[str]) -> Mapping[str, Parameter]:
    names = ((name.decode("latin-1"), value) for name, value in head.headers.items())
    return {name: value.decode("latin-1") for name, value in names if pattern.search(name)}


def forward_pattern(text: str) -> re.Pattern[str] | None:
    """The headers to forward, for ``--http-header-forward-pattern``; empty is none.

    As HTTP has it, upper and lower case are the same; names are seen in lower case.

    Raises:
        ValueError: not a regular expression.
    """
    if not text:
        return None
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"'{text}' is not a regular expression: {error}") from None
