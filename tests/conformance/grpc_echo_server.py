"""A gRPC server of our transport alone, for other people's clients: ``python grpc_echo_server.py``.

Methods of ``test.Echo``: Unary and Chat send back what they get; Large answers ``b"n"`` with n
zeros; Fail fails with the status that the metadata ``code`` names; Hold never answers; Cancelled
tells how many calls were cancelled; Metadata answers with what it got as JSON.
Writes its port to stdout and ends with its stdin.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import uvloop

from penstock.protocol.errors import Code, InferError
from penstock.server.grpc_seam import Method
from penstock.server.transport.grpc.listener import GrpcListener
from penstock.server.transport.tls import Certificates, PemFiles


class Echo:
    def __init__(self) -> None:
        self.cancelled = 0

    def methods(self) -> dict[str, Method]:
        unary = {
            "Unary": lambda call, head, message: call.reply((message,)),
            "Large": lambda call, head, message: call.reply((memoryview(bytes(int(message))),)),
            "Fail": self.fail,
            "Hold": lambda call, head, message: self,
            "Cancelled": lambda call, head, message: call.reply((b"%d" % self.cancelled,)),
            "Metadata": self.metadata,
        }
        made = [Method(f"/test.Echo/{name}", unary=method) for name, method in unary.items()]
        made.append(Method("/test.Echo/Chat", stream=lambda call, head: Chat(self, call)))
        return {method.path: method for method in made}

    @staticmethod
    def fail(call: Any, head: Any, message: Any) -> None:
        call.fail(InferError(Code[head.metadata["code"]], bytes(message).decode()), [("why", "so")])

    @staticmethod
    def metadata(call: Any, head: Any, message: Any) -> None:
        told = {k: v if isinstance(v, str) else v.hex() for k, v in head.metadata.items()}
        call.reply((json.dumps(told).encode(),), [("seen", str(len(told)))])

    def cancel(self) -> None:
        self.cancelled += 1


class Chat:
    full = False

    def __init__(self, echo: Echo, call: Any) -> None:
        self._echo, self._call = echo, call

    def received(self, message: Any) -> None:
        self._call.send((message,))

    def half_closed(self) -> None:
        self._call.finish()

    def drained(self) -> None: ...

    def cancel(self) -> None:
        self._echo.cancel()


async def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--cert", "--key", "--ca"):
        parser.add_argument(name, type=Path)
    files = parser.parse_args()
    tls = Certificates(PemFiles(files.cert, files.key, files.ca), ["h2"]) if files.cert else None
    listener = GrpcListener(Echo().methods())
    print(await listener.listen("127.0.0.1", 0, tls), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await listener.close(2)


if __name__ == "__main__":
    uvloop.run(main())
