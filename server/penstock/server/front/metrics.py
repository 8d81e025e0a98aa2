"""The metrics port: /metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from penstock.server.front.routes import Routes
from penstock.server.http_seam import Buffer, RequestHead, Responder
from penstock.server.metrics import CONTENT_TYPE, exposition
from penstock.server.models import ModelTable


class MetricsFront:
    """``connections`` gives the number of open client connections by port."""

    def __init__(self, models: ModelTable, connections: Callable[[], Mapping[str, int]]) -> None:
        self._models = models
        self._connections = connections

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", "/metrics", self._scrape)
        routes.add("GET", "/metrics/", self._scrape)

    def _scrape(self, responder: Responder, head: RequestHead, body: Buffer) -> None:
        page = exposition(self._models, self._connections())
        responder.reply(200, CONTENT_TYPE, (page,))
