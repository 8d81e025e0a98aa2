"""What a connection stands between: an ``Output`` below it and an ``Application`` above."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from penstock.server.transport.http2.blocks import Fields
from penstock.server.transport.http2.stream import Stream


class Output(Protocol):
    def write(self, data: Any) -> None: ...
    def writelines(self, list_of_data: Any) -> None: ...


class Application(Protocol):
    """What stands on a connection."""

    @property
    def streams_max(self) -> int: ...
    @property
    def header_list_bytes_max(self) -> int: ...
    @property
    def ping_interval_s_min(self) -> int:
        """Pings of a client that come sooner, with nothing sent between them, are strikes."""
        ...

    @property
    def ping_strikes_max(self) -> int: ...

    def resolve(self, fields: Fields) -> Any:
        """What ``make`` needs to know of a request; a pure function of the fields, remembered.

        Raises:
            StreamFault: the fields are no request.
        """
        ...

    def make(self, connection: Any, number: int, entry: Any) -> Stream: ...

    def soon(self, callback: Callable[[], None]) -> object:
        """Calls ``callback`` at the end of this turn of the event loop, or at once."""
        ...
