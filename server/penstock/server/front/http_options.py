"""What an operator chooses about the HTTP routes, whatever is behind them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from penstock.protocol.limits import DEFAULT, WireLimits
from penstock.server.front.cors import Cors, CorsOptions
from penstock.server.front.restriction import Rules


@dataclass(frozen=True, slots=True)
class HttpFrontOptions:
    """``limits`` bound what one message may be, ``forward`` matches the headers that become
    parameters of inference requests, ``rules`` restrict groups of the API."""

    limits: WireLimits = DEFAULT
    forward: re.Pattern[str] | None = None
    rules: Rules = field(default_factory=dict)
    cors: CorsOptions = field(default_factory=CorsOptions)

    @property
    def cross_origin(self) -> Cors | None:
        return Cors(self.cors) if self.cors.origins else None
