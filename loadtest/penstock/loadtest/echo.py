"""The yardstick: the least that a Python HTTP/1.1 server can do for a request.

A bare asyncio.Protocol on uvloop; httptools parses the whole request and calls back for every
header and body piece, the reply is a constant of 128 body bytes, one write a request. What a
gateway costs is told as a multiple of this, so nothing here may be slower than it needs to be:
callbacks keep nothing, the reply is built once.

Must not know what is in a request.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
from collections.abc import Sequence
from typing import cast

import httptools
import uvloop

REPLY_BODY = b"x" * 128
REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 128\r\n\r\n" + REPLY_BODY


class Echo(asyncio.Protocol):
    """One connection: every complete request is answered with ``REPLY``."""

    __slots__ = ("_parser", "_transport")

    _transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._transport.close()

    def on_header(self, name: bytes, value: bytes) -> None: ...

    def on_body(self, body: bytes) -> None: ...

    def on_message_complete(self) -> None:
        self._transport.write(REPLY)
        if not self._parser.should_keep_alive():
            self._transport.close()


async def serve(host: str, port: int) -> asyncio.Server:
    """Listen; port 0 is any free one (``port_of`` tells which)."""
    return await asyncio.get_running_loop().create_server(Echo, host, port, backlog=4096)


def port_of(server: asyncio.Server) -> int:
    """The port that a server got."""
    port: int = server.sockets[0].getsockname()[1]
    return port


async def _main(host: str, port: int) -> None:
    server = await serve(host, port)
    print(f"port {port_of(server)}", flush=True)
    gc.freeze()
    await server.serve_forever()


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until killed."""
    parser = argparse.ArgumentParser(prog="python -m penstock.loadtest.echo", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args(argv)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(args.host, args.port))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
