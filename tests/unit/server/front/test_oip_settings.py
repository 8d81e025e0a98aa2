"""Trace and logging settings over HTTP, in Triton's shape."""

import json

import pytest

from penstock.server.front.oip_settings import OipSettingsFront
from penstock.server.front.routes import Routes
from penstock.server.log_settings import LogSettings
from penstock.server.transport.http1 import Http1Connection
from penstock.server.transport.listener import Http1Listener


@pytest.fixture
def settings(served):
    """The settings' routes over the models of ``served``."""
    logs = LogSettings([])
    routes = Routes()
    OipSettingsFront(served.gateway, served.gateway.tracer.book, logs).add_to(routes)
    served.listener = Http1Listener(routes.resolve, Http1Connection)
    return served


async def test_trace_settings_of_the_server_and_a_model(settings):
    assert (await settings.json("GET", "/v2/trace/setting"))["trace_level"] == ["OFF"]
    changed = await settings.json("POST", "/v2/trace/setting", {"trace_rate": "5"})
    assert changed["trace_rate"] == "5"
    path = "/v2/models/add/trace/setting"
    body = {"trace_level": ["TIMESTAMPS"], "trace_rate": 2}
    changed = await settings.json("POST", path, body)
    assert (changed["trace_level"], changed["trace_rate"]) == (["TIMESTAMPS"], "2")
    cleared = await settings.json("POST", path, {"trace_level": None, "trace_rate": None})
    assert (cleared["trace_level"], cleared["trace_rate"]) == (["OFF"], "5")
    assert await settings.json("GET", path) == cleared


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "text"),
    [
        ("GET", "/v2/models/nope/trace/setting", b"", 400, "Request for unknown model : nope"),
        ("GET", "/v2/models/add/versions/1/trace/setting", b"", 404, "Not Found"),
        ("POST", "/v2/trace/setting", b'{"trace_level":"X"}', 400, "'X'"),
        ("POST", "/v2/trace/setting", b'{"trace_file":"x"}', 501, "network protocol"),
        ("POST", "/v2/trace/setting", b'{"trace_rate":[{}]}', 400, "trace_rate"),
        ("POST", "/v2/trace/setting", b"[]", 400, "not a JSON object"),
        ("POST", "/v2/logging", b'{"log_info":"x"}', 400, "log_info"),
        ("POST", "/v2/logging", b"{", 400, "not a JSON object"),
        ("DELETE", "/v2/logging", b"", 405, "Method Not Allowed"),
    ],
)
async def test_refusals(settings, method, path, body, status, text):
    reply = await settings.ask(method, path, body)
    assert reply.status == status
    assert text in reply.body.decode()


async def test_logging(settings):
    before = await settings.json("GET", "/v2/logging")
    assert set(before) == {
        "log_file", "log_info", "log_warning", "log_error", "log_verbose_level", "log_format",
    }  # fmt: skip
    reply = await settings.ask("POST", "/v2/logging", b'{"log_file":"x"}')
    assert (reply.status, "error" in json.loads(reply.body)) == (501, True)
    assert await settings.json("POST", "/v2/logging", b"{}") == before
