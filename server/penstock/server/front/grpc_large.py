"""Large gRPC messages that are read element by element: decoded on threads beside the event loop.

Knows which messages these are, and that a decoder serves one thread. The clients' shared memory is
the event loop's alone: a message that refers to it is decoded there after all, if it may at all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final, NoReturn

from penstock.protocol.limits import WireLimits
from penstock.protocol.message import InferRequest, RegionRef, Regions
from penstock.protocol.oip_proto import RequestDecoder
from penstock.protocol.oip_proto_cost import is_slow
from penstock.protocol.oip_region import NO_REGIONS
from penstock.server.front.offload import Offload, Work
from penstock.server.http_seam import Buffer

INLINE_MESSAGE_BYTES_MAX: Final = 256 * 1024
"""So many bytes of short strings take some 20 ms; smaller messages are not looked at."""

Then = Callable[[InferRequest], None]
Refuse = Callable[[Exception], None]


class _LoopOnly(Exception):
    """The message needs what only the event loop may touch."""


class _LoopRegions:
    def resolve(self, ref: RegionRef) -> NoReturn:
        raise _LoopOnly

    def target(self, ref: RegionRef) -> NoReturn:
        raise _LoopOnly


class _Own(threading.local):
    """One decoder for each thread that asks."""

    def __init__(self, limits: WireLimits, regions: Regions) -> None:
        self.decoder = RequestDecoder(limits, regions)


class LargeMessages:
    """``decoder`` is the event loop's own, ``regions`` what it has."""

    def __init__(
        self, limits: WireLimits, regions: Regions, decoder: RequestDecoder, offload: Offload
    ) -> None:
        self._own = _Own(limits, regions if regions is NO_REGIONS else _LoopRegions())
        self._decoder = decoder
        self._offload = offload

    def decode(self, message: Buffer, then: Then, refuse: Refuse) -> Work | None:
        """Decodes ``message`` aside if that takes long, and then calls ``then`` or, with what was
        raised by either, ``refuse``. None says that it does not take long: nothing was done.

        Raises:
            InferError: RESOURCE_EXHAUSTED, too much is being decoded already.
        """
        if not is_slow(message):
            return None
        own = self._own

        def decoded(request: Any, error: Exception | None) -> None:
            try:
                if isinstance(error, _LoopOnly):
                    request = self._decoder.decode(message)
                elif error is not None:
                    raise error
                then(request)
            except Exception as fault:
                refuse(fault)

        return self._offload.run(lambda: own.decoder.decode(message), decoded)
